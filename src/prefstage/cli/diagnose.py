"""`prefstage diagnose`: what is in pairs, and what training on them could do."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefstage.cli.chat_options import (
    ChatFormat,
    ControlTokensOption,
    TemplateDate,
    TemplateOptions,
    chat_settings,
)
from prefstage.cli.manners import Outcome, mannered, say
from prefstage.core.config import load_config
from prefstage.core.errors import InputError
from prefstage.core.files import write_json, write_text
from prefstage.core.results import write_result

if TYPE_CHECKING:
    from prefstage.diagnosing.diagnosis import Diagnosis
    from prefstage.diagnosing.scoring import ScoredBy
    from prefstage.judging import Judge

Number = int | None
Text = str | None

_PAIRS, _RANKED = ("pairs",), ("ranked",)
_SETTINGS = ("beta", "target_loss", "max_pairs", "seed", "confidence")
_ENCODING = ("max_prompt_tokens", "max_response_tokens")

PairsOption = Annotated[
    list[str] | None,
    typer.Option(help="Pairs to diagnose: file, folder or Hub id; NAME=... names them."),
]
RankedOption = Annotated[
    list[str] | None,
    typer.Option(help="Candidates with scores (n > 2): does the policy rank them alike? NAME=..."),
]
PolicyOption = Annotated[
    list[str] | None, typer.Option(help="Model folder or Hub id; may stand several times.")
]
ReferenceOption = Annotated[
    Text, typer.Option(help="What training started from; leave out before training.")
]
JudgeOption = Annotated[Text, typer.Option(help="Who says which response is better.")]
SecondOption = Annotated[Text, typer.Option(help="Another judge, for their consistency.")]
OnOption = Annotated[Text, typer.Option(help="The policy's own answers, from prefstage sample.")]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder for report.md and report.json (figures' data in it).")
]
StoreOption = Annotated[
    Path | None, typer.Option(help="Judgment store (SQLite): what is in it is not judged again.")
]
CacheOption = Annotated[
    Path | None, typer.Option(help="Folder for log-probs: what is in it is not scored again.")
]
ConfigOption = Annotated[Path | None, typer.Option(help="Settings as YAML; options win.")]
BetaOption = Annotated[float | None, typer.Option(help="Of the training planned [0.1].")]
LossOption = Annotated[
    float | None, typer.Option(help="DPO loss that training is expected to reach, nats [0.5].")
]
MaxOption = Annotated[Number, typer.Option(help="A random sample of so many pairs [all].")]
SeedOption = Annotated[Number, typer.Option(help="Of sample and bootstrap [0].")]
ConfidenceOption = Annotated[float | None, typer.Option(help="Of intervals [0.95].")]
PromptOption = Annotated[Number, typer.Option(help="Longer prompts keep their end (counted).")]
ResponseOption = Annotated[
    Number, typer.Option(help="Longer responses keep their start (counted).")
]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")]
BadRowOption = Annotated[str, typer.Option(help="error, or quarantine.")]
QuarantineOption = Annotated[
    Path | None, typer.Option(help="Where bad rows go with --on-bad-row quarantine.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@mannered
def diagnose(
    *,
    pairs: PairsOption = None,
    ranked: RankedOption = None,
    policy: PolicyOption = None,
    reference: ReferenceOption = None,
    judge: JudgeOption = None,
    second_judge: SecondOption = None,
    on: OnOption = None,
    out: OutOption = None,
    store: StoreOption = None,
    cache: CacheOption = None,
    config: ConfigOption = None,
    beta: BetaOption = None,
    target_loss: LossOption = None,
    max_pairs: MaxOption = None,
    seed: SeedOption = None,
    confidence: ConfidenceOption = None,
    chat_format: ChatFormat = None,
    template_options: TemplateOptions = None,
    template_date: TemplateDate = None,
    control_tokens: ControlTokensOption = None,
    max_prompt_tokens: PromptOption = None,
    max_response_tokens: ResponseOption = None,
    dtype: DtypeOption = "auto",
    on_bad_row: BadRowOption = "error",
    quarantine_file: QuarantineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is in a dataset of pairs, and what training a policy on it could do.

    Rankings, learnability and distinctness need --policy; agreement, position bias and answer
    quality need --judge. Several datasets and policies are compared in one table.
    """
    _diagnose(dict(locals()))


def _diagnose(given: dict[str, Any]) -> None:
    """The command, with its options by name."""
    from prefstage.data import load_candidates, load_pairs
    from prefstage.diagnosing.config import DiagnosisConfig
    from prefstage.diagnosing.diagnosis import diagnose as run
    from prefstage.diagnosing.scoring import OrderFigures, diagnose_orders

    settings = load_config(
        DiagnosisConfig, given["config"], {name: given[name] for name in _SETTINGS}
    )
    _check(given)
    pairs = {name: _loaded(load_pairs, name, source, given) for name, source in _all(given, _PAIRS)}
    ranked = {n: _loaded(load_candidates, n, source, given) for n, source in _all(given, _RANKED)}
    own = list(load_candidates(given["on"])) if given["on"] is not None else None
    found, orders = list["Diagnosis"](), list[OrderFigures]()
    with ExitStack() as stack:
        judges = [_judge(given[each], given["store"], stack) for each in ("judge", "second_judge")]
        reference = _model(given["reference"], given) if given["reference"] else None
        for name in given["policy"] or [None]:
            model = _model(name, given) if name is not None else None
            for label, rows in pairs.items():
                found.append(
                    run(
                        rows,
                        name=label,
                        policy=model,
                        reference=reference,
                        judge=judges[0],
                        second_judge=judges[1],
                        on_policy=own,
                        config=settings,
                    )
                )
            if model is not None:
                orders += [
                    diagnose_orders(rows, name=label, policy=model, config=settings)
                    for label, rows in ranked.items()
                ]
    notes = [f"{n}: {note}" for n, rows in (pairs | ranked).items() for note in _notes(rows)]
    _say(found, [asdict(each) for each in orders], notes, given)


def _loaded(load: Callable[..., Any], name: str, source: str, given: dict[str, Any]) -> Any:
    aside = _aside(given, name)
    return load(source, on_bad_row=given["on_bad_row"], quarantine_file=aside)


def _notes(rows: Any) -> list[str]:
    put_aside = rows.report.quarantined
    return [*rows.report.notes, *([f"{put_aside} bad rows put aside"] if put_aside else [])]


def _say(
    found: Sequence["Diagnosis"],
    orders: list[dict[str, Any]],
    notes: list[str],
    given: dict[str, Any],
) -> None:
    from prefstage.diagnosing.tables import order_table, ranking_table

    reports, out = [each.as_dict() for each in found], given["out"]
    result = {"diagnoses": reports, "orders": orders, "notes": notes}
    parts = [each.as_markdown() for each in found]
    if len(found) > 1 and any(each["rankings"] for each in reports):
        parts.insert(0, f"# All\n\n{ranking_table(reports)}\n")
    if orders:
        parts.append(f"# Whole orders of scored responses\n\n{order_table(orders)}\n")
    text = "\n".join([*parts, *(f"note: {note}" for note in notes)])
    written = []
    if out is not None:
        written = [out / "report.md", out / "report.json"]
        write_text(written[0], text + "\n")
        write_json(written[1], result)
        names = ", ".join(each["dataset"] for each in reports)
        count = sum(len(each["warnings"]) for each in reports)
        write_result(
            out,
            "diagnose",
            headline=f"{count} warning{'' if count == 1 else 's'} about {names}",
            facts={"datasets": names},
        )
    say(Outcome(text, result, written), as_json=given["as_json"])


def _check(given: dict[str, Any]) -> None:
    names = [name for name, _ in _all(given, (*_PAIRS, *_RANKED))]
    if not names:
        raise InputError.of(
            saw="no dataset",
            expected="pairs, or candidates with scores",
            cure="give --pairs FILE or --ranked FILE",
        )
    if len(set(names)) < len(names):
        raise InputError.of(
            saw=f"datasets {', '.join(names)}",
            expected="different names",
            cure="name them: --pairs NAME=FILE",
        )
    unread = {"store": "judge", "second_judge": "judge", "judge": "pairs", "on": "pairs"}
    unread |= dict.fromkeys(("reference", "cache", "ranked", *_ENCODING), "policy")
    for name, needs in unread.items():
        if given[name] and not given[needs]:
            raise InputError.of(
                saw=f"--{name.replace('_', '-')} without --{needs}",
                expected=f"--{needs} too, which it is for",
                cure=f"give --{needs}, or leave it out",
            )


def _aside(given: dict[str, Any], name: str) -> Path | None:
    """Where a dataset's bad rows go; each of several has a file of its own."""
    path: Path | None = given["quarantine_file"]
    several = len(_all(given, (*_PAIRS, *_RANKED))) > 1
    return path.with_stem(f"{path.stem}-{name}") if path and several else path


def _all(given: dict[str, Any], options: Sequence[str]) -> list[tuple[str, str]]:
    """Name and source of every dataset that the options name."""
    return [_named(text) for option in options for text in given[option] or ()]


def _named(text: str) -> tuple[str, str]:
    """Read NAME=SOURCE; a source alone is its own name, without folders."""
    name, equals, source = text.partition("=")
    if equals and "/" not in name and "?" not in name:
        return name, source
    return Path(text).name or text, text


def _model(name: str, given: dict[str, Any]) -> "ScoredBy":
    from prefstage.data import ResponseEncoder, load_tokenizer
    from prefstage.diagnosing.scoring import ScoredBy
    from prefstage.scoring import ReferenceCache, Scorer

    scorer = Scorer.load(name, dtype=given["dtype"])
    limits = {key: given[key] for key in _ENCODING}
    encoder = ResponseEncoder(load_tokenizer(name), **chat_settings(given).encoding, **limits)
    cache = given["cache"]
    kept = ReferenceCache(cache, scorer) if cache is not None else scorer
    return ScoredBy(Path(name).name or name, kept, encoder)


def _judge(spec: str | None, store: Path | None, stack: ExitStack) -> "Judge | None":
    from prefstage.core.ledger import Ledger
    from prefstage.judging import load_judge, stored

    if spec is None:
        return None
    who = load_judge(spec)
    return stored(who, stack.enter_context(Ledger(store))) if store is not None else who
