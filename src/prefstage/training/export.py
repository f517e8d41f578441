"""What stands beside a trained model's weights: card, resolved configuration, generation."""

import copy
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from prefstage.core.files import write_text
from prefstage.losses import get_loss
from prefstage.training.best import best_checkpoint, exported_step, exported_told, metrics_at
from prefstage.training.items import ItemSet
from prefstage.training.model_card import CardFacts, DataFacts, LossFacts, model_card
from prefstage.training.run_settings import package_versions

RESOLVED_CONFIG = "training_config.yaml"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_REFERENCES = {
    "start": "the model as training began",
    "adapter-off": "the model without its adapter",
}
_STAGE_FILE = "stage.json"

# Of the arguments: where things lie on this machine, how it is watched, and who may upload.
_LOCAL = re.compile(
    r"output_dir|run_name|report_to|disable_tqdm|log_level|.*_token|hub_.*|push_to_hub|"
    r"trackio_.*|project|reference_cache|logging_dir|local_rank|use_cpu|ddp_.*|do_.*|"
    r"resume_from_checkpoint|.*_config|dataloader_.*"
)


def name_data(source: Any) -> tuple[str, bool]:
    """Name a data set without telling where it lies on this machine.

    Args:
        source: As given to the trainer: a loaded set, a `datasets.Dataset`, a file or Hub id.

    Returns:
        Its name, and whether that is an id of the Hub.
    """
    report = getattr(source, "report", None)
    given = report.source if report is not None else source
    if not isinstance(given, str | Path):
        info = getattr(source, "info", None)
        return str(getattr(info, "dataset_name", None) or type(source).__name__), False
    return _name(str(given))


def names_of(train: Any, evaluated: Any) -> dict[str, tuple[str, bool]]:
    """Name the data sets by their use.

    Args:
        train: To train on, as given to the trainer.
        evaluated: To evaluate on: one, several by name, or None.

    Returns:
        Name, and whether it is an id of the Hub, by "training", "evaluation" or
        "evaluation: NAME".
    """
    return {use: name_data(source) for use, source in _by_use(train, evaluated).items()}


def _by_use(train: Any, evaluated: Any) -> dict[str, Any]:
    sets = {"training": train}
    if isinstance(evaluated, Mapping):
        sets |= {f"evaluation: {name}": each for name, each in evaluated.items()}
    else:
        sets["evaluation"] = evaluated
    return {use: each for use, each in sets.items() if each is not None}


def told_in_card(
    language: Any = None,
    license: str | None = None,
    tags: Any = None,
    model_name: str | None = None,
    finetuned_from: str | None = None,
    *others: Any,
    **more: Any,
) -> dict[str, Any]:
    """Take up what `Trainer.push_to_hub` hands to the model card.

    Args:
        language: Of the model.
        license: Of the model.
        tags: Further tags.
        model_name: Of the model.
        finetuned_from: Base model.
        others: Not used: tasks and data sets are known.
        more: Likewise.

    Returns:
        Facts of the card that replace what was found.
    """
    told = {
        "license": license,
        "name": model_name,
        "base": finetuned_from,
        "language": language,
        "tags": [tags] if isinstance(tags, str) else tags,
    }
    return {name: value for name, value in told.items() if value is not None}


def provenance_of(source: Any) -> dict[str, str]:
    """Find what was measured of a data set: the stage and judge that lie beside its file.

    Args:
        source: As for `name_data`.

    Returns:
        "stage", "boundary score", "judge" and "policy measured" where ``stage.json`` of
        `prefstage measure` lies in the data's folder; else nothing.
    """
    report = getattr(source, "report", None)
    given = report.source if report is not None else source
    if not isinstance(given, str | Path) or not Path(given).exists():
        return {}
    place = Path(given)
    file = (place if place.is_dir() else place.parent) / _STAGE_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        measured = {
            "stage": found["stage"],
            "boundary score": f"{found['boundary_score']:.3f}",
            "judge": _name(found["judge"])[0],
            "policy measured": _name(found["policy"])[0],
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {name: str(value) for name, value in measured.items()}


def write_export(trainer: Any, folder: Path, **told: Any) -> None:
    """Write what stands beside the weights of a trained model.

    README.md (the card), the resolved configuration, the chat template where the tokenizer
    brought none, and a generation configuration that ends where trained responses end.

    Args:
        trainer: The `PreferenceTrainer`; its model and tokenizer are in the folder already.
        folder: Where they are.
        told: What the card shall say instead of what was found: "license", "name", "base".
    """
    write_text(folder / "README.md", model_card(card_facts(trainer, **told)))
    resolved = yaml.safe_dump(resolved_config(trainer), sort_keys=False, allow_unicode=True)
    write_text(folder / RESOLVED_CONFIG, resolved)
    if not trainer.processing_class.chat_template:
        write_text(folder / "chat_template.jinja", trainer.encoder.chat_template)
    generation = copy.deepcopy(getattr(_bare(trainer.model), "generation_config", None))
    if generation is not None:
        generation.eos_token_id = _ends(generation.eos_token_id, trainer)
        generation.save_pretrained(folder)


def resolved_config(trainer: Any) -> dict[str, Any]:
    """Collect every setting that the trained weights depend on, defaults included.

    Args:
        trainer: The `PreferenceTrainer`.

    Returns:
        JSON-serialisable values by name.
    """
    arguments = {
        name: value
        for name, value in trainer.args.to_dict().items()
        if not _LOCAL.fullmatch(name) and name not in ("loss", "reference")
    }
    return {
        "base_model": _base(trainer)[0],
        "loss": trainer.loss.resolved(),
        "reference": _name(str(trainer.args.reference))[0],
        "data": [dataclasses.asdict(each) for each in _data(trainer)],
        "provenance": dict(trainer.provenance),
        "arguments": arguments,
        "settings": trainer.settings_of_run,
        "exported_step": exported_step(trainer),
        "versions": package_versions(),
    }


def card_facts(trainer: Any, **told: Any) -> CardFacts:
    """Collect what the model card tells.

    Args:
        trainer: The `PreferenceTrainer`.
        told: Facts that replace what was found.

    Returns:
        The facts.
    """
    base, on_hub = _base(trainer)
    history = trainer.state.log_history
    evaluated = [entry for entry in history if any(name.startswith("eval_") for name in entry)]
    exported = exported_step(trainer)
    steps = sorted({entry["step"] for entry in evaluated if entry["step"] <= exported})
    losses = [entry["train_loss"] for entry in history if "train_loss" in entry]
    adapters = getattr(trainer.model, "peft_config", {})
    kinds = [str(getattr(each.peft_type, "value", each.peft_type)) for each in adapters.values()]
    needed = "reference" in trainer.loss.needs
    reference = str(trainer.args.reference)
    found = CardFacts(
        name=_model_name(trainer),
        base=base,
        base_on_hub=on_hub,
        license=_license_of(trainer.model),
        adapter=", ".join(kinds) or None,
        losses=[_loss(each) for each in trainer.loss.resolved()],
        reference=_REFERENCES.get(reference, f"`{_name(reference)[0]}`") if needed else None,
        data=_data(trainer),
        provenance=trainer.provenance,
        arguments=_changed(trainer.args),
        steps=trainer.state.global_step,
        exported=exported_told(
            {"steps": trainer.state.global_step, "best": best_checkpoint(trainer)}
        )
        if trainer.best_step is not None
        else None,
        epochs=float(trainer.state.epoch or 0),
        before=metrics_at(evaluated, steps[0]) if steps else {},
        before_step=steps[0] if steps else 0,
        after=metrics_at(evaluated, steps[-1]) if steps else {},
        after_step=steps[-1] if steps else 0,
        train_loss=losses[-1] if losses else None,
        versions=package_versions(),
        notes=tuple(trainer.notes),
    )
    return dataclasses.replace(found, **told)


def _loss(resolved: Mapping[str, Any]) -> LossFacts:
    settings = {name: each for name, each in resolved.items() if name not in ("name", "weight")}
    loss = get_loss(resolved["name"])
    return LossFacts(loss.name, float(resolved["weight"]), settings, loss.summary, loss.source)


def _data(trainer: Any) -> list[DataFacts]:
    return [
        _data_facts(use, each, *trainer.data_names.get(use, ("unnamed", False)))
        for use, each in _by_use(trainer.train_dataset, trainer.eval_dataset).items()
    ]


def _data_facts(use: str, items: ItemSet, name: str, on_hub: bool) -> DataFacts:
    counts = {what: count for what, count in items.counts.items() if isinstance(count, int)}
    return DataFacts(name, use, items.kind, len(items), items.fingerprint, on_hub, counts)


def _changed(args: Any) -> dict[str, Any]:
    """Arguments that differ from their defaults, as far as they matter to others."""
    values = args.to_dict()
    changed = {}
    for field in dataclasses.fields(args):
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        value = values.get(field.name)
        default = getattr(default, "value", default)
        unchanged = value == default or not (value or default)  # None, False and [] are alike
        if not unchanged and not _LOCAL.fullmatch(field.name) and field.name != "loss":
            changed[field.name] = value
    return changed


def _ends(own: Any, trainer: Any) -> list[int] | int | None:
    """Ids that end a generated response: the model's own, and the trained end of a turn.

    An end of turn that is plain text, as a format for base models may have it, is no id.
    """
    known = [own] if isinstance(own, int) else list(own or ())
    end = trainer.encoder.end_of_turn_ids[-1]
    special = end in trainer.processing_class.added_tokens_decoder
    ids = list(dict.fromkeys([*known, end] if special else known))
    if not ids:
        return None
    return ids if ids[1:] else ids[0]


def _base(trainer: Any) -> tuple[str, bool]:
    merged_from = getattr(_bare(trainer.model), "merged_from", None)
    if merged_from is not None:
        return str(merged_from), False
    named = str(getattr(_bare(trainer.model).config, "_name_or_path", "") or "")
    return _name(named) if named else (f"a new {type(_bare(trainer.model)).__name__}", False)


def _model_name(trainer: Any) -> str:
    return str(trainer.args.hub_model_id or Path(trainer.args.output_dir).resolve().name)


def _license_of(model: Any) -> str | None:
    """License in the card that lies beside the base model's weights."""
    from huggingface_hub import ModelCard

    card = Path(getattr(_bare(model).config, "_name_or_path", "") or "none") / "README.md"
    if not card.is_file():
        return None
    try:
        license_named = ModelCard.load(card).data.get("license")
    except (ValueError, yaml.YAMLError):
        return None
    return str(license_named) if license_named else None


def _name(given: str) -> tuple[str, bool]:
    """A Hub id as it is; a path's last part; whether it is an id of the Hub."""
    if not Path(given).exists() and _HUB_ID.fullmatch(given):
        return given, True
    return Path(given).name or given, False


def _bare(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model
