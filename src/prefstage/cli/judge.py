"""`prefstage judge`: what a judge says of pairs, or of candidates."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefstage.cli.manners import Outcome, mannered, say
from prefstage.core.errors import InputError

if TYPE_CHECKING:
    from prefstage.judging import Judge

_TABLES = (".parquet", ".jsonl")

JudgeOption = Annotated[
    str,
    typer.Option(
        help="reward:PATH, pairrm:PATH, openai:MODEL@URL, table:FILE, python:module:function, "
        "or a checkpoint; options as ?key=value&key=value."
    ),
]
PairsOption = Annotated[str | None, typer.Option(help="Pairs to judge: file, folder or Hub id.")]
CandidatesOption = Annotated[
    str | None, typer.Option(help="Candidates to score: file, folder or Hub id.")
]
OutOption = Annotated[
    Path | None, typer.Option(help="Judged rows (.parquet, .jsonl) or the summary (.json).")
]
StoreOption = Annotated[
    Path | None, typer.Option(help="Judgment store (SQLite): what is in it is not judged again.")
]
BadRowOption = Annotated[str, typer.Option(help="error, or quarantine.")]
QuarantineOption = Annotated[
    Path | None, typer.Option(help="Where bad rows go with --on-bad-row quarantine.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@mannered
def judge(
    *,
    judge: JudgeOption,
    pairs: PairsOption = None,
    candidates: CandidatesOption = None,
    out: OutOption = None,
    store: StoreOption = None,
    on_bad_row: BadRowOption = "error",
    quarantine_file: QuarantineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge pairs (does the judge agree with the labels?), or score candidates.

    With --pairs: P(chosen better than rejected) of each pair, and how often the judge agrees
    with the dataset. With --candidates: a score for each response, the reward of a reward
    model, or the mean probability of beating the prompt's other responses.
    """
    _check_arguments(pairs, candidates, out)
    from prefstage.core.ledger import Ledger
    from prefstage.data import load_candidates, load_pairs
    from prefstage.judging import load_judge, stored

    load: Any = load_pairs if pairs is not None else load_candidates
    loaded = load(pairs or candidates, on_bad_row=on_bad_row, quarantine_file=quarantine_file)
    with ExitStack() as stack:
        who = load_judge(judge)
        if store is not None:
            who = stored(who, stack.enter_context(Ledger(store)))
        summary, result, table = (_judge_pairs if pairs else _score)(who, loaded)
    result |= {"judge": who.name, "judge_fingerprint": who.fingerprint, "counts": dict(who.counts)}
    result |= {"rows_quarantined": loaded.report.quarantined, "notes": list(loaded.report.notes)}
    written = _write_table(out, table) if out is not None and out.suffix in _TABLES else []
    text = "\n".join([summary, *_told(result)])
    summary_file = out if out is not None and out.suffix == ".json" else None
    say(Outcome(text, result, written), as_json=as_json, out=summary_file)


def _check_arguments(pairs: str | None, candidates: str | None, out: Path | None) -> None:
    if (pairs is None) == (candidates is None):
        raise InputError.of(
            saw="both --pairs and --candidates" if pairs else "neither --pairs nor --candidates",
            expected="one of them",
            cure="give --pairs to compare two responses a prompt, --candidates to score any number",
        )
    if out is not None and out.suffix not in (*_TABLES, ".json"):
        raise InputError.of(
            saw=f"--out {out}",
            expected="a name that ends in .parquet or .jsonl (judged rows) or .json (summary)",
            cure="change the ending",
        )


def _judge_pairs(who: "Judge", loaded: Any) -> tuple[str, dict[str, Any], Any]:
    from prefstage.judging.judged import agreement_with_labels, compare_all, comparison_of

    pairs = list(loaded)
    judgments = compare_all(who, [comparison_of(pair) for pair in pairs])
    agreement = agreement_with_labels(pairs, judgments)
    table = loaded.dataset.remove_columns("judge_probability").add_column(
        "judge_probability", [judgment.probability for judgment in judgments]
    )
    table = table.add_column("judge_status", [judgment.status for judgment in judgments])
    labelled = agreement.pairs - agreement.label_ties
    lines = [f"{agreement.pairs} pairs judged by {who.name}"]
    if labelled:
        low, high = agreement.interval
        lines += [
            f"agrees with the labels of {labelled} pairs: {agreement.agreement:.1%}"
            f" [{low:.1%}, {high:.1%}] (95 % interval)",
            f'"longer is better" would reach {agreement.longer_wins:.1%}; '
            f"the judge prefers the longer response in {agreement.prefers_longer:.1%}",
        ]
    lines.append(
        f"ties: {agreement.label_ties} in the labels, {agreement.judge_ties} by the judge;"
        f" undecided: {agreement.undecided}"
    )
    return "\n".join(lines), agreement.as_dict(), table


def _score(who: "Judge", loaded: Any) -> tuple[str, dict[str, Any], Any]:
    from prefstage.judging.judged import score_candidates

    rows = list(loaded)
    scores = score_candidates(who, rows)
    kind = "reward" if who.pointwise else "mean win probability"
    by_source = _mean_by_source(
        [
            (s, v)
            for row, each in zip(rows, scores, strict=True)
            for s, v in zip(row.sources, each, strict=True)
        ]
    )
    table = loaded.dataset.remove_columns("scores").add_column("scores", scores)
    responses = sum(len(each) for each in scores)
    lines = [f"{responses} responses to {len(rows)} prompts scored by {who.name} ({kind})"]
    ranked = sorted(by_source.items(), key=lambda item: -item[1])
    lines += [f"  {value:8.3f}  {source}" for source, value in ranked]
    result = {"prompts": len(rows), "responses": responses, "score": kind, "mean": by_source}
    return "\n".join(lines), result, table


def _mean_by_source(scored: Sequence[tuple[str | None, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for source, value in scored:
        values.setdefault(source or "(unnamed)", []).append(value)
    return {source: sum(each) / len(each) for source, each in values.items()}


def _write_table(out: Path, table: Any) -> list[Path]:
    from prefstage.data.storage import save_dataset

    save_dataset(table, out)  # exactly, as sets are saved
    return [out]


def _told(result: dict[str, Any]) -> list[str]:
    counts = [f"{name.replace('_', ' ')} {count}" for name, count in result["counts"].items()]
    lines = [f"counts: {', '.join(counts)}"] if counts else []
    if result["rows_quarantined"]:
        lines.append(f"rows put aside as bad: {result['rows_quarantined']}")
    return lines + [f"note: {note}" for note in result["notes"]]
