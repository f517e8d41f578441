"""The model card: what a trained model is, from which data, by which loss, with what result."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True)
class DataFacts:
    """One data set.

    Attributes:
        name: Hub id, or the name of its file; never a path of one machine.
        use: "training" or "evaluation", with the set's name.
        kind: pairs, groups, unpaired or responses.
        items: How many items.
        fingerprint: Hash of content and encoding.
        on_hub: Whether `name` is an id of the Hub.
        counts: What reading and encoding did, by name.
    """

    name: str
    use: str
    kind: str
    items: int
    fingerprint: str
    on_hub: bool = False
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LossFacts:
    """One term of the loss.

    Attributes:
        name: As in `prefstage.LOSSES`.
        weight: Its weight in the sum.
        settings: Its constants.
        summary: What it does, in a line.
        source: Paper and equation.
    """

    name: str
    weight: float
    settings: Mapping[str, Any]
    summary: str
    source: str


@dataclass(frozen=True)
class CardFacts:
    """Everything that the card tells.

    Attributes:
        name: Of the model.
        base: Name of the model that training began from.
        base_on_hub: Whether `base` is an id of the Hub.
        license: The base model's, if known.
        adapter: Kind of adapter ("LORA"), or None for a full model.
        losses: Terms of the loss.
        reference: Whose log-probs the loss compared with, or None.
        data: The sets.
        provenance: What is known of how the data came about: "judge", "stage", ....
        arguments: Training arguments that differ from their defaults.
        steps: Optimiser steps done.
        epochs: Passes over the data.
        exported: Which of them this model is, and why, if not the last.
        before: Evaluation metrics at the first evaluation, by name.
        before_step: Optimiser step of it.
        after: Those of the model as it is, or at the last evaluation.
        after_step: Optimiser step of it.
        train_loss: Mean over all steps, or None.
        versions: Of the packages.
        language: Of the model, as the Hub writes it.
        tags: Further tags.
        notes: What else a reader should know.
    """

    name: str
    base: str
    losses: Sequence[LossFacts]
    data: Sequence[DataFacts]
    base_on_hub: bool = False
    license: str | None = None
    adapter: str | None = None
    reference: str | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 0
    epochs: float = 0.0
    exported: str | None = None
    before: Mapping[str, float] = field(default_factory=dict)
    before_step: int = 0
    after: Mapping[str, float] = field(default_factory=dict)
    after_step: int = 0
    train_loss: float | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)
    language: str | list[str] | None = None
    tags: Sequence[str] = ()
    notes: Sequence[str] = ()


def model_card(facts: CardFacts) -> str:
    """Write a model card: YAML front matter for the Hub, then Markdown.

    Args:
        facts: What it tells.

    Returns:
        The text of README.md.
    """
    title = f"# {facts.name}"
    what = f"the adapter ({facts.adapter})" if facts.adapter else "the model"
    begun = f"This is {what} that prefstage trained from {_link(facts.base, facts.base_on_hub)}"
    lead = f"{begun}, {facts.steps:,} optimiser steps ({facts.epochs:g} epochs) by {_sum(facts)}."
    lead += f" It is {facts.exported}." if facts.exported else ""
    sections = [
        f"---\n{_front_matter(facts)}\n---",
        title,
        lead,
        _use(facts),
        _data(facts),
        _loss(facts),
        _results(facts),
        "\n".join(f"Note: {note}." for note in facts.notes),
        _table("Training arguments", ("argument", "value"), _arguments(facts)),
        _table("Versions", ("package", "version"), _versions(facts)),
        _citations(facts),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def arxiv_numbers(source: str) -> list[str]:
    """Find the arXiv numbers in a loss's source, each once, in order."""
    found = [first or second for first, second in _ARXIV.findall(source)]
    return list(dict.fromkeys(found))


def _front_matter(facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    names = [loss.name for loss in facts.losses]
    metadata = ModelCardData(
        base_model=facts.base if facts.base_on_hub else None,
        datasets=[each.name for each in facts.data if each.on_hub] or None,
        license=facts.license,
        library_name="peft" if facts.adapter else "transformers",
        model_name=facts.name,
        pipeline_tag="text-generation",
        language=facts.language,
        tags=list(dict.fromkeys(["prefstage", "preference-optimization", *names, *facts.tags])),
    )
    return metadata.to_yaml(line_break="\n").strip()


def _use(facts: CardFacts) -> str:
    kind = "AutoPeftModelForCausalLM" if facts.adapter else "AutoModelForCausalLM"
    package = "peft" if facts.adapter else "transformers"
    imports = (
        f"from transformers import AutoTokenizer\nfrom {package} import {kind}"
        if facts.adapter
        else f"from transformers import {kind}, AutoTokenizer"
    )
    return f"""\
## Use

```python
{imports}

model = {kind}.from_pretrained("{facts.name}")
tokenizer = AutoTokenizer.from_pretrained("{facts.name}")
messages = [{{"role": "user", "content": "Why is the sky blue?"}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**inputs, max_new_tokens=256)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""


def _data(facts: CardFacts) -> str:
    rows = [
        (
            each.use,
            _link(each.name, each.on_hub, data=True),
            f"{each.items:,} {each.kind}",
            f"`{each.fingerprint}`",
        )
        for each in facts.data
    ]
    known = [f"- {what}: {value}" for what, value in facts.provenance.items()]
    counted = [
        f"- {each.use}: {_counted(name, count)}"
        for each in facts.data
        for name, count in each.counts.items()
        if count and name not in ("prompts", "responses")
    ]
    lines = "\n".join([*known, *counted])
    table = _table("Data", ("use", "data set", "items", "fingerprint"), rows)
    return f"{table}\n\n{lines}" if lines else table


def _counted(name: str, count: int) -> str:
    left_out = LEFT_OUT.get(name)
    return f"{name.replace('_', ' ')}: {count:,}" if left_out is None else f"{count:,} {left_out}"


def _loss(facts: CardFacts) -> str:
    lines = ["## Loss", ""]
    for loss in facts.losses:
        settings = ", ".join(f"{name} = {_shown(value)}" for name, value in loss.settings.items())
        lines.append(
            f"- **{loss.name}** (weight {loss.weight:g}{', ' if settings else ''}{settings}): "
            f"{loss.summary.rstrip('.')}. {_cited(loss.source)}"
        )
    if facts.reference:
        lines += ["", f"Reference: {facts.reference}."]
    return "\n".join(lines)


def _results(facts: CardFacts) -> str:
    names = [name for name in facts.after if name in facts.before]
    if not names:
        loss = facts.train_loss
        return "" if loss is None else f"## Results\n\nMean training loss: {loss:.6g}."
    rows = [(f"`{n}`", f"{facts.before[n]:.4g}", f"{facts.after[n]:.4g}") for n in names]
    heads = ("metric", f"step {facts.before_step}", f"step {facts.after_step}")
    if facts.before_step == facts.after_step:
        return _table("Results", heads[:2], [row[:2] for row in rows])
    return _table("Results", heads, rows)


def _arguments(facts: CardFacts) -> list[tuple[str, str]]:
    return [(f"`{name}`", f"`{_shown(value)}`") for name, value in facts.arguments.items()]


def _versions(facts: CardFacts) -> list[tuple[str, str]]:
    return [(name, number) for name, number in facts.versions.items() if number]


def _citations(facts: CardFacts) -> str:
    entries = [
        _entry(loss, number) for loss in facts.losses for number in arxiv_numbers(loss.source)
    ]
    text = "\n\n".join([*dict.fromkeys(entries), PREFSTAGE_CITATION])
    return f"## Citation\n\n```bibtex\n{text}\n```"


def _entry(loss: LossFacts, number: str) -> str:
    return (
        f"@misc{{arxiv{number.replace('.', '_')},\n"
        f"  note = {{{loss.name}: {loss.source.rstrip('.')}}},\n"
        f"  eprint = {{{number}}},\n  archivePrefix = {{arXiv}},\n"
        f"  url = {{https://arxiv.org/abs/{number}}}\n}}"
    )


def _sum(facts: CardFacts) -> str:
    terms = [
        loss.name if loss.weight == 1 else f"{loss.weight:g}·{loss.name}" for loss in facts.losses
    ]
    return " + ".join(terms)


def _cited(source: str) -> str:
    linked = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", source)
    return f"Source: {linked.rstrip('.')}."


def _link(name: str, on_hub: bool, *, data: bool = False) -> str:
    place = "datasets/" if data else ""
    return f"[{name}](https://huggingface.co/{place}{name})" if on_hub else f"`{name}`"


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [heads, ["---"] * len(heads), *rows]
    body = "\n".join(f"| {' | '.join(_cell(each) for each in line)} |" for line in lines)
    return f"## {title}\n\n{body}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _shown(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) and abs(value) < _MANY else str(value)
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}…"
