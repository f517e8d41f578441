"""What stands with a trained model's weights: card, resolved configuration, generation settings."""

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from prefstage.core import parse_yaml, read_bytes, read_json, redacted_values, write_text
from prefstage.losses import get_loss
from prefstage.training.checkpoints import package_versions
from prefstage.training.datasets import sets_by_name
from prefstage.training.items import LEFT_OUT

RESOLVED_CONFIG = "training_config.yaml"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_REFERENCES = {
    "start": "the model as training began",
    "adapter-off": "the model without its adapter",
}
_USES = ("training", "evaluation", "evaluation: {}")

# Of the arguments: where things lie on this machine, how it is watched, and who may upload.
_LOCAL = re.compile(
    r"output_dir|run_name|report_to|disable_tqdm|log_level|.*_token|hub_.*|push_to_hub|"
    r"trackio_.*|project|reference_cache|logging_dir|local_rank|use_cpu|ddp_.*|do_.*|"
    r"resume_from_checkpoint|.*_config|dataloader_.*"
)


_CARD_HEAD = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
_LONGEST_CARD = 1 << 20  # bytes
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})|(?<!\d)(\d{4}\.\d{5})(?!\d)")
_SHOWN_LETTERS = 120
_MANY = 10_000


# --- Which model is exported ---------------------------------------------------------------------


def plain_metrics(entry: Mapping[str, float]) -> dict[str, float]:
    """The metrics of an evaluation and of dynamics, without how long they took.

    Args:
        entry: An entry of the log, or what `evaluate` returned.

    Returns:
        Metrics by name.
    """
    return {
        name: value
        for name, value in entry.items()
        if name.startswith(("eval_", "dynamics/"))
        and not name.endswith(("runtime", "per_second", "runtime_s"))
    }


def metrics_at(history: Sequence[Mapping[str, float]], step: int) -> dict[str, float]:
    """The metrics of the evaluations at a step.

    Args:
        history: The trainer's log.
        step: Optimiser step.

    Returns:
        Metrics by name; nothing if there was no evaluation.
    """
    return {
        name: value
        for entry in history
        if entry["step"] == step
        for name, value in plain_metrics(entry).items()
    }


def exported_step(trainer: Any) -> int:
    """The optimiser step of the weights at hand: the best checkpoint's, once it is loaded."""
    best = trainer.best_step
    return int(trainer.state.global_step if best is None else best)


def best_checkpoint(trainer: Any) -> dict[str, Any] | None:
    """By what the exported model was chosen.

    Args:
        trainer: The trainer, after training.

    Returns:
        "step", "metric", its "value" there, and "greater_is_better"; None unless
        `load_best_model_at_end` is on.
    """
    args, step = trainer.args, exported_step(trainer)
    if not args.load_best_model_at_end:
        return None
    name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
    return {
        "step": step,
        "metric": name,
        "value": metrics_at(trainer.state.log_history, step).get(name),
        "greater_is_better": bool(args.greater_is_better),
    }


def describe_exported(result: Mapping[str, Any]) -> str | None:
    """Say which model was exported, where it is not simply the last one.

    Args:
        result: As in train.json.

    Returns:
        Such as "the model of step 20 of 60, best by eval_loss = 0.61 (the lowest)"; None
        unless `load_best_model_at_end` was on.
    """
    best = result.get("best")  # unknown to runs of older versions
    if best is None:
        return None
    text = f"the model of step {best['step']} of {result['steps']}"
    if best["value"] is None:
        return f"{text}, as no checkpoint has an evaluation"
    which = "highest" if best["greater_is_better"] else "lowest"
    return f"{text}, best by {best['metric']} = {best['value']:.4g} (the {which} of a checkpoint)"


def describe_steps(result: Mapping[str, Any]) -> str:
    """Say how many steps the exported model has, and of how many.

    Args:
        result: As in train.json.

    Returns:
        Such as "60", or "20 of 60".
    """
    exported = result.get("exported_step", result["steps"])
    return f"{exported} of {result['steps']}" if exported != result["steps"] else str(exported)


# --- From what it was trained --------------------------------------------------------------------


def names_of(train: Any, evaluated: Any) -> dict[str, tuple[str, bool]]:
    """Name the data sets by their use, without telling where they lie on this machine.

    Args:
        train: To train on, as the trainer got it: a loaded set, a `datasets.Dataset`, a file
            or Hub id.
        evaluated: To evaluate on: one, several by name, or None.

    Returns:
        Name, and whether it is an id of the Hub, by "training", "evaluation" or
        "evaluation: NAME".
    """
    names = {}
    for use, source in sets_by_name(train, evaluated, *_USES).items():
        path, info = _path_of(source), getattr(source, "info", None)
        known = str(getattr(info, "dataset_name", None) or type(source).__name__)
        names[use] = (known, False) if path is None else _name(path)
    return names


def provenance_of(source: Any) -> dict[str, str]:
    """What was measured of a data set: the stage and judge in its file's folder.

    Args:
        source: As the trainer got it.

    Returns:
        "stage", "boundary score", "judge" and "policy measured" where ``stage.json`` of
        `prefstage measure` lies in the data's folder; else nothing.
    """
    path = Path(_path_of(source) or "none")
    file = (path if path.is_dir() else path.parent) / "stage.json"
    try:
        stage = read_json(file) if path.exists() else {}
        return {
            "stage": str(stage["stage"]),
            "boundary score": f"{stage['boundary_score']:.3f}",
            "judge": _name(stage["judge"])[0],
            "policy measured": _name(stage["policy"])[0],
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _path_of(source: Any) -> str | None:
    path = getattr(getattr(source, "report", None), "source", source)
    return str(path) if isinstance(path, str | Path) else None


# A path leads nowhere on other machines and tells of this one: only its last part is shown.
def _name(path: str) -> tuple[str, bool]:
    if not Path(path).exists() and _HUB_ID.fullmatch(path):
        return path, True
    return Path(path).name or path, False


# --- Writing -------------------------------------------------------------------------------------


def write_export(trainer: Any, folder: Path, **fields: Any) -> None:
    """Write what stands with the weights of a trained model.

    README.md (the card), the resolved configuration, the chat template where the tokenizer
    brought none, and a generation configuration that ends where trained responses end.

    Args:
        trainer: The `PreferenceTrainer`; its model and tokenizer are in the folder already.
        folder: Where they are.
        fields: Of the card, in place of what the trainer knows: "license", "name", "base".
    """
    write_text(folder / "README.md", model_card(**card_facts(trainer) | fields))
    # Every setting that the trained weights depend on, defaults included: defaults change.
    resolved = {
        "base_model": _base(trainer)[0],
        "loss": trainer.loss.resolved(),
        "reference": _name(str(trainer.args.reference))[0],
        "data": _data_facts(trainer),
        "provenance": dict(trainer.provenance),
        "arguments": {
            name: value
            for name, value in trainer.args.to_dict().items()
            if not _LOCAL.fullmatch(name) and name not in ("loss", "reference")
        },
        "settings": trainer.settings_of_run,
        "exported_step": exported_step(trainer),
        "versions": package_versions(),
    }
    write_text(
        folder / RESOLVED_CONFIG,
        yaml.safe_dump(redacted_values(resolved), sort_keys=False, allow_unicode=True),
    )
    if not trainer.processing_class.chat_template:
        write_text(folder / "chat_template.jinja", trainer.encoder.chat_template)
    generation = copy.deepcopy(getattr(_bare(trainer.model), "generation_config", None))
    if generation is not None:
        # Ids that end a generated response: the model's own, and the trained end of a turn. An
        # end that is plain text, as a format for base models may have it, is no id.
        eos, end = generation.eos_token_id, trainer.encoder.end_of_turn_ids[-1]
        special = [end] if end in trainer.processing_class.added_tokens_decoder else []
        ids = list(dict.fromkeys([*([eos] if isinstance(eos, int) else eos or ()), *special]))
        generation.eos_token_id = ids if len(ids) > 1 else next(iter(ids), None)
        generation.save_pretrained(folder)


def card_facts(trainer: Any) -> dict[str, Any]:
    """Collect what the model card tells.

    Args:
        trainer: The `PreferenceTrainer`.

    Returns:
        Arguments of `model_card`.
    """
    state, reference = trainer.state, str(trainer.args.reference)
    base, on_hub = _base(trainer)
    history, exported = state.log_history, exported_step(trainer)
    evaluated = [entry for entry in history if any(name.startswith("eval_") for name in entry)]
    steps = sorted({entry["step"] for entry in evaluated if entry["step"] <= exported}) or [0]
    losses = [entry["train_loss"] for entry in history if "train_loss" in entry]
    kinds = [config.peft_type for config in getattr(trainer.model, "peft_config", {}).values()]
    return {
        "name": str(trainer.args.hub_model_id or Path(trainer.args.output_dir).resolve().name),
        "base": base,
        "base_on_hub": on_hub,
        "license": _license_of(trainer.model),
        "adapter": ", ".join(str(getattr(kind, "value", kind)) for kind in kinds) or None,
        "losses": trainer.loss.resolved(),
        "reference": _REFERENCES.get(reference, f"`{_name(reference)[0]}`")
        if "reference" in trainer.loss.needs
        else None,
        "data": _data_facts(trainer),
        "provenance": trainer.provenance,
        "arguments": _changed(trainer.args),
        "steps": state.global_step,
        "exported": None
        if trainer.best_step is None
        else describe_exported({"steps": state.global_step, "best": best_checkpoint(trainer)}),
        "epochs": float(state.epoch or 0),
        "before": (steps[0], metrics_at(evaluated, steps[0])),
        "after": (steps[-1], metrics_at(evaluated, steps[-1])),
        "train_loss": losses[-1] if losses else None,
        "versions": package_versions(),
        "notes": tuple(trainer.notes),
    }


def _data_facts(trainer: Any) -> list[dict[str, Any]]:
    return [
        dict(zip(("name", "on_hub"), trainer.data_names.get(use, ("unnamed", False)), strict=True))
        | {
            "use": use,
            "kind": items.kind,
            "items": len(items),
            "fingerprint": items.fingerprint,
            "counts": {n: count for n, count in items.counts.items() if isinstance(count, int)},
        }
        for use, items in sets_by_name(trainer.train_dataset, trainer.eval_dataset, *_USES).items()
    ]


# A hundred defaults would hide the few settings that somebody chose.
def _changed(args: Any) -> dict[str, Any]:
    made = {
        field.name: field.default
        if field.default_factory is dataclasses.MISSING
        else field.default_factory()
        for field in dataclasses.fields(args)
    }
    usual = {name: getattr(default, "value", default) for name, default in made.items()}
    return {
        name: value
        for name, value in args.to_dict().items()
        if value != usual[name]
        and (value or usual[name])  # None, False and [] are alike
        and not _LOCAL.fullmatch(name)
        and name != "loss"
    }


def _base(trainer: Any) -> tuple[str, bool]:
    bare = _bare(trainer.model)
    if hasattr(bare, "merged_from"):
        return str(bare.merged_from), False
    named = str(bare.config.name_or_path or "")
    return _name(named) if named else (f"a new {type(bare).__name__}", False)


# What is trained from a model stands under its licence, where its card names one.
def _license_of(model: Any) -> str | None:
    card = Path(_bare(model).config.name_or_path or "none") / "README.md"
    try:
        # Somebody else's file: it says what it likes at any length, and nothing depends on it.
        head = _CARD_HEAD.match(read_bytes(card, limit=_LONGEST_CARD).decode(errors="replace"))
        known = (parse_yaml(head[1]) or {})["license"] if head else None
        return known if isinstance(known, str) else None
    except (OSError, ValueError, TypeError, LookupError):
        return None


def _bare(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model


# --- The model card -------------------------------------------------------------------------------


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

    known = {term["name"]: get_loss(term["name"]) for term in losses}
    metadata = ModelCardData(
        base_model=base if base_on_hub else None,
        datasets=[facts["name"] for facts in data if facts["on_hub"]] or None,
        license=license,
        library_name="peft" if adapter else "transformers",
        model_name=name,
        pipeline_tag="text-generation",
        language=language,
        tags=list(dict.fromkeys(["prefstage", "preference-optimization", *known, *tags])),
    )
    return _filled(
        metadata=metadata.to_yaml(line_break="\n").strip(),
        name=name,
        adapter=adapter,
        base=base,
        base_on_hub=base_on_hub,
        steps=steps,
        epochs=epochs,
        exported=exported,
        data=data,
        provenance=provenance or {},
        left_out=LEFT_OUT,
        losses=losses,
        known_losses=known,
        reference=reference,
        before=before,
        after=after,
        train_loss=train_loss,
        notes=notes,
        arguments=[(f"`{n}`", f"`{_shown(value)}`") for n, value in (arguments or {}).items()],
        versions=[(n, number) for n, number in (versions or {}).items() if number],
        papers=[(loss, number) for loss in known.values() for number in arxiv_numbers(loss.source)],
    )


def _filled(**facts: Any) -> str:
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"shown": _shown, "linked": _linked, "cell": _cell}
    template = (files("prefstage.training") / "model_card.md.jinja").read_text(encoding="utf-8")
    # What is not there leaves blank lines.
    return re.sub(r"\n{3,}", "\n\n", environment.from_string(template).render(facts)).strip() + "\n"


def arxiv_numbers(source: str) -> list[str]:
    """The arXiv numbers in a loss's source, without repetition, in order."""
    return list(dict.fromkeys(first or second for first, second in _ARXIV.findall(source)))


def _linked(source: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", source)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _shown(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) and abs(value) < _MANY else str(value)
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}…"
