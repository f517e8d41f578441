"""A diagnosis as settings: several datasets and policies, one report in one folder."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefstage.core.errors import InputError
from prefstage.core.ledger import Ledger
from prefstage.core.outcome import Outcome
from prefstage.data import ResponseEncoder, load_candidates, load_pairs, load_tokenizer
from prefstage.diagnosing.config import DiagnoseSettings
from prefstage.diagnosing.diagnosis import Diagnosis, diagnose, reported
from prefstage.diagnosing.scoring import OrderFigures, ScoredBy, diagnose_orders
from prefstage.judging import Judge, load_judge, stored
from prefstage.scoring import ReferenceCache, Scorer

# What each setting is for: without that one nothing would read it.
_READ_WITH = {
    "store": "judge",
    "second_judge": "judge",
    "judge": "pairs",
    "on_policy": "pairs",
    **dict.fromkeys(
        ("reference", "cache", "ranked", "max_prompt_tokens", "max_response_tokens"), "policy"
    ),
}


def run_diagnosis(settings: DiagnoseSettings, *, out: Path | None = None) -> Outcome:
    """Diagnose datasets as `diagnose` does, with models and judges loaded as the settings say.

    Args:
        settings: What is diagnosed, by whom, and how.
        out: Folder for report.md and report.json; None writes nothing.

    Returns:
        The report, as Markdown and as JSON.

    Raises:
        InputError: If there is no dataset, two have the same name, or nothing reads a setting.
        DataError: If data cannot be read.
        ModelError: If a policy cannot be loaded.
    """
    pairs_by_name, ranked_by_name = _named(settings.pairs), _named(settings.ranked)
    _check(settings, [*pairs_by_name, *ranked_by_name])
    sources = dict([*pairs_by_name, *ranked_by_name])
    loaded: dict[str, Any] = {}
    for name, source in sources.items():
        load: Any = load_pairs if (name, source) in pairs_by_name else load_candidates
        file = settings.quarantine_file and Path(settings.quarantine_file)
        # Each of several datasets has a file of its own for its bad rows.
        if file and len(sources) > 1:
            file = file.with_stem(f"{file.stem}-{name}")
        loaded[name] = load(source, on_bad_row=settings.on_bad_row, quarantine_file=file)
    answers = None if settings.on_policy is None else list(load_candidates(settings.on_policy))
    diagnoses, orders = list[Diagnosis](), list[OrderFigures]()
    with ExitStack() as stack:
        judges = [
            None if spec is None else _judge(spec, settings.store, stack)
            for spec in (settings.judge, settings.second_judge)
        ]
        reference = None if settings.reference is None else _model(settings.reference, settings)
        for policy in settings.policy or (None,):
            model = None if policy is None else _model(policy, settings)
            diagnoses += [
                diagnose(
                    loaded[name],
                    name=name,
                    policy=model,
                    reference=reference,
                    judge=judges[0],
                    second_judge=judges[1],
                    on_policy=answers,
                    config=settings,
                )
                for name, _ in pairs_by_name
            ]
            if model is not None:
                orders += [
                    diagnose_orders(loaded[name], name=name, policy=model, config=settings)
                    for name, _ in ranked_by_name
                ]
    notes = [f"{name}: {note}" for name, rows in loaded.items() for note in _notes(rows)]
    return reported(diagnoses, [asdict(order) for order in orders], notes, out=out)


def _notes(rows: Any) -> list[str]:
    bad = rows.report.quarantined
    return [*rows.report.notes, *([f"{bad} bad rows put aside"] if bad else [])]


def _check(settings: DiagnoseSettings, names: list[tuple[str, Any]]) -> None:
    if not names:
        raise InputError.of(
            saw="no dataset",
            expected="pairs, or candidates with scores",
            cure="give --pairs FILE or --ranked FILE",
        )
    if len({name for name, _ in names}) < len(names):
        raise InputError.of(
            saw=f"datasets {', '.join(name for name, _ in names)}",
            expected="different names",
            cure="name them: --pairs NAME=FILE",
        )
    for name, needs in _READ_WITH.items():
        if getattr(settings, name) and not getattr(settings, needs):
            raise InputError.of(
                saw=f"--{name.replace('_', '-')} without --{needs}",
                expected=f"--{needs} too, which it is for",
                cure=f"give --{needs}, or leave it out",
            )


def _named(texts: tuple[str, ...]) -> list[tuple[str, str]]:
    """Name and source of each: NAME=SOURCE, or a source, named as its last part."""
    pairs = []
    for text in texts:
        name, equals, source = text.partition("=")
        # A folder or an option of a source may hold an equals sign too.
        is_named = equals and "/" not in name and "?" not in name
        pairs.append((name, source) if is_named else (Path(text).name or text, text))
    return pairs


def _model(name: str, settings: DiagnoseSettings) -> ScoredBy:
    scorer = Scorer.load(name, dtype=settings.dtype)
    encoder = ResponseEncoder(
        load_tokenizer(name),
        **settings.encoding,
        max_prompt_tokens=settings.max_prompt_tokens,
        max_response_tokens=settings.max_response_tokens,
    )
    cached = scorer if settings.cache is None else ReferenceCache(settings.cache, scorer)
    return ScoredBy(Path(name).name or name, cached, encoder)


def _judge(spec: str, store: Path | None, stack: ExitStack) -> Judge:
    judge = load_judge(spec)
    return judge if store is None else stored(judge, stack.enter_context(Ledger(store)))
