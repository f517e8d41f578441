"""The model card: what a trained model is, from which data, by which loss, with what result."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefstage.losses import get_loss
from prefstage.training.items import LEFT_OUT

PREFSTAGE_CITATION = """\
@software{prefstage,
  title = {prefstage: which preference data does a language model need next?},
  author = {{The prefstage developers}},
  license = {Apache-2.0}
}"""

_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})|(?<!\d)(\d{4}\.\d{5})(?!\d)")
_SHOWN_LETTERS = 120
_MANY = 10_000


def model_card(
    *,
    name: str,
    base: str,
    losses: Sequence[Mapping[str, Any]],
    data: Sequence[Mapping[str, Any]],
    base_on_hub: bool = False,
    license: str | None = None,
    adapter: str | None = None,
    reference: str | None = None,
    provenance: Mapping[str, str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    steps: int = 0,
    epochs: float = 0.0,
    exported: str | None = None,
    before: tuple[int, Mapping[str, float]] = (0, {}),
    after: tuple[int, Mapping[str, float]] = (0, {}),
    train_loss: float | None = None,
    versions: Mapping[str, str | None] | None = None,
    language: str | list[str] | None = None,
    tags: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """Write a model card: YAML front matter for the Hub, then Markdown.

    Args:
        name: Of the model.
        base: Name of the model that training began from.
        losses: Terms of the loss, as `LossMix.resolved`: "name", "weight" and settings.
        data: Of the sets: "name" (Hub id, or the name of its file; never a path of one machine),
            "on_hub" (whether that is an id of the Hub), "use" ("training" or "evaluation", with
            the set's name), "kind", "items" (how many), "fingerprint", and "counts" of what
            reading and encoding did, by name.
        base_on_hub: Whether `base` is an id of the Hub.
        license: The base model's, if known.
        adapter: Kind of adapter ("LORA"), or None for a full model.
        reference: Whose log-probs the loss compared with, or None.
        provenance: What is known of how the data came about: "judge", "stage", ....
        arguments: Training arguments that differ from their defaults.
        steps: Optimiser steps done.
        epochs: Passes over the data.
        exported: Which of them this model is, and why, if not the last.
        before: Optimiser step and metrics by name of the first evaluation.
        after: Those of the model as it is, or of the last evaluation.
        train_loss: Mean over all steps, or None.
        versions: Of the packages.
        language: Of the model, as the Hub writes it.
        tags: Further tags.
        notes: What else a reader should know.

    Returns:
        The text of README.md.
    """
    # Imported only here: the Hub's library takes half a second.
    from huggingface_hub import ModelCardData

    names = [term["name"] for term in losses]
    metadata = ModelCardData(
        base_model=base if base_on_hub else None,
        datasets=[facts["name"] for facts in data if facts["on_hub"]] or None,
        license=license,
        library_name="peft" if adapter else "transformers",
        model_name=name,
        pipeline_tag="text-generation",
        language=language,
        tags=list(dict.fromkeys(["prefstage", "preference-optimization", *names, *tags])),
    )
    kind = f"the adapter ({adapter})" if adapter else "the model"
    lead = (
        f"This is {kind} that prefstage trained from {_link(base, base_on_hub)}, "
        f"{steps:,} optimiser steps ({epochs:g} epochs) by {_sum_of(losses)}."
    )
    shown = [(f"`{name}`", f"`{_shown(value)}`") for name, value in (arguments or {}).items()]
    numbers = [(name, number) for name, number in (versions or {}).items() if number]
    sections = [
        f"---\n{metadata.to_yaml(line_break=chr(10)).strip()}\n---",
        f"# {name}",
        lead + (f" It is {exported}." if exported else ""),
        _use(name, adapter),
        _data(data, provenance or {}),
        _loss(losses, reference),
        _results(before, after, train_loss),
        "\n".join(f"Note: {note}." for note in notes),
        _table("Training arguments", ("argument", "value"), shown),
        _table("Versions", ("package", "version"), numbers),
        _citations(losses),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _sum_of(losses: Sequence[Mapping[str, Any]]) -> str:
    return " + ".join(
        term["name"] if term["weight"] == 1 else f"{term['weight']:g}·{term['name']}"
        for term in losses
    )


def arxiv_numbers(source: str) -> list[str]:
    """The arXiv numbers in a loss's source, without repetition, in order."""
    return list(dict.fromkeys(first or second for first, second in _ARXIV.findall(source)))


def _use(name: str, adapter: str | None) -> str:
    kind = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    imports = (
        f"from transformers import AutoTokenizer\nfrom peft import {kind}"
        if adapter
        else f"from transformers import {kind}, AutoTokenizer"
    )
    return f"""\
## Use

```python
{imports}

model = {kind}.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
messages = [{{"role": "user", "content": "Why is the sky blue?"}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**inputs, max_new_tokens=256)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""


def _data(data: Sequence[Mapping[str, Any]], provenance: Mapping[str, str]) -> str:
    rows = [
        (
            facts["use"],
            _link(facts["name"], facts["on_hub"], under="datasets/"),
            f"{facts['items']:,} {facts['kind']}",
            f"`{facts['fingerprint']}`",
        )
        for facts in data
    ]
    lines = [f"- {what}: {value}" for what, value in provenance.items()]
    for facts in data:
        for name, count in facts["counts"].items():
            left_out = LEFT_OUT.get(name)
            text = f"{count:,} {left_out}" if left_out else f"{name.replace('_', ' ')}: {count:,}"
            if count and name not in ("prompts", "responses"):
                lines.append(f"- {facts['use']}: {text}")
    table = _table("Data", ("use", "data set", "items", "fingerprint"), rows)
    return "\n\n".join([table, "\n".join(lines)] if lines else [table])


def _loss(losses: Sequence[Mapping[str, Any]], reference: str | None) -> str:
    lines = ["## Loss", ""]
    for term in losses:
        loss = get_loss(term["name"])
        settings = "".join(
            f", {name} = {_shown(value)}"
            for name, value in term.items()
            if name not in ("name", "weight")
        )
        source = re.sub(
            r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", loss.source
        )
        lines.append(
            f"- **{loss.name}** (weight {term['weight']:g}{settings}): "
            f"{loss.summary.rstrip('.')}. Source: {source.rstrip('.')}."
        )
    if reference:
        lines += ["", f"Reference: {reference}."]
    return "\n".join(lines)


def _results(
    before: tuple[int, Mapping[str, float]],
    after: tuple[int, Mapping[str, float]],
    train_loss: float | None,
) -> str:
    (first, start), (last, end) = before, after
    rows = [(f"`{n}`", f"{start[n]:.4g}", f"{end[n]:.4g}") for n in end if n in start]
    if not rows:
        return "" if train_loss is None else f"## Results\n\nMean training loss: {train_loss:.6g}."
    columns = 2 if first == last else 3
    heads = ("metric", f"step {first}", f"step {last}")
    return _table("Results", heads[:columns], [row[:columns] for row in rows])


def _citations(losses: Sequence[Mapping[str, Any]]) -> str:
    entries = [
        f"@misc{{arxiv{number.replace('.', '_')},\n"
        f"  note = {{{loss.name}: {loss.source.rstrip('.')}}},\n"
        f"  eprint = {{{number}}},\n  archivePrefix = {{arXiv}},\n"
        f"  url = {{https://arxiv.org/abs/{number}}}\n}}"
        for loss in (get_loss(term["name"]) for term in losses)
        for number in arxiv_numbers(loss.source)
    ]
    text = "\n\n".join([*dict.fromkeys(entries), PREFSTAGE_CITATION])
    return f"## Citation\n\n```bibtex\n{text}\n```"


def _link(name: str, on_hub: bool, *, under: str = "") -> str:
    return f"[{name}](https://huggingface.co/{under}{name})" if on_hub else f"`{name}`"


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [
        f"| {' | '.join(' '.join(text.split()).replace('|', chr(92) + '|') for text in line)} |"
        for line in [heads, ["---"] * len(heads), *rows]
    ]
    return f"## {title}\n\n" + "\n".join(lines)


def _shown(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) and abs(value) < _MANY else str(value)
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}…"
