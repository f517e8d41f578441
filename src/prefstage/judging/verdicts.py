"""`judge`: what a judge says of a dataset's pairs, or of its candidates."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from prefstage.core import InputError, Ledger, Outcome, write_json
from prefstage.data.settings import BadRowSettings
from prefstage.judging.base import Judge
from prefstage.judging.judged import (
    agreement_with_labels,
    compare_all,
    comparison_of,
    score_candidates,
    stored,
)
from prefstage.judging.loading import as_judge

if TYPE_CHECKING:
    from prefstage.data import CandidateSet, PairSet
    from prefstage.data.sources import DataSource

_TABLES = (".parquet", ".jsonl")


class JudgeConfig(BadRowSettings):
    """How a dataset is read that a judge looks at, and where its judgments are kept."""

    store: Path | None = Field(
        default=None,
        description="Judgment store (SQLite): what is in it is not judged again.",
    )


class JudgeSettings(JudgeConfig):
    """As YAML and the command have it: with the judge and the data."""

    judge: str = Field(
        description="reward:PATH, pairrm:PATH, openai:MODEL@URL, table:FILE, "
        "python:module:function, or a checkpoint; options as ?key=value&key=value."
    )
    pairs: str | None = Field(default=None, description="Pairs to judge: file, folder or Hub id.")
    candidates: str | None = Field(
        default=None, description="Candidates to score: file, folder or Hub id."
    )


@dataclass(frozen=True)
class Judged(Outcome):
    """What `judge` returns.

    Attributes:
        dataset: The rows with the columns `judge_probability` and `judge_status`, or `scores`.
    """

    dataset: Any = None


def judge(
    judge: str | Path | Judge,
    *,
    pairs: "DataSource | None" = None,
    candidates: "DataSource | None" = None,
    out: str | Path | None = None,
    config: JudgeConfig | None = None,
) -> Judged:
    """Judge pairs (does the judge agree with the labels?), or score candidates.

    Args:
        judge: As for `load_judge`, or a judge.
        pairs: Pairs: P(chosen ≻ rejected | x) of each, and how often the judge agrees with
            the labels. Either these or `candidates`.
        candidates: Candidates: the reward of each response, or its mean probability to beat
            the prompt's other responses.
        out: Judged rows (.parquet, .jsonl), or the figures (.json).
        config: The store of judgments, and what happens to bad rows.

    Returns:
        The figures, and the rows as judged.

    Raises:
        InputError: If not exactly one of `pairs` and `candidates` is there, or `out` has
            another ending.
        DataError: If the data cannot be read.
    """
    from prefstage.data import load_candidates, load_pairs
    from prefstage.data.storage import save_dataset

    config, out = config or JudgeConfig(), None if out is None else Path(out)
    if (pairs is None) == (candidates is None):
        names = "neither --pairs nor --candidates", "both --pairs and --candidates"
        raise InputError.of(
            saw=names[pairs is not None],
            expected="one of them",
            cure="give --pairs to compare two responses a prompt, --candidates to score any number",
        )
    if out is not None and out.suffix not in (*_TABLES, ".json"):
        raise InputError.of(
            saw=f"--out {out}",
            expected="a name that ends in .parquet or .jsonl (judged rows) or .json (summary)",
            cure="change the ending",
        )
    reading: Any = config.model_dump(include=set(BadRowSettings.model_fields))
    with ExitStack() as stack:
        # What is looked at is read first, so that a wrong path is found before a model is loaded.
        rows: Any = (
            load_pairs(pairs, **reading)
            if pairs is not None
            else load_candidates(candidates, **reading)
        )
        who = as_judge(judge)
        if config.store is not None:
            who = stored(who, stack.enter_context(Ledger(config.store)))
        lines, result, table = (_judge_pairs if pairs is not None else _score)(who, rows)
    result |= {
        "judge": who.name,
        "judge_fingerprint": who.fingerprint,
        "counts": dict(who.counts),
        "rows_quarantined": rows.report.quarantined,
        "notes": list(rows.report.notes),
    }
    if out is not None and out.suffix in _TABLES:
        save_dataset(table, out)
    elif out is not None:
        write_json(out, result)
    counts = [f"{name.replace('_', ' ')} {count}" for name, count in result["counts"].items()]
    lines += [f"counts: {', '.join(counts)}"] if counts else []
    if result["rows_quarantined"]:
        lines.append(f"rows put aside as bad: {result['rows_quarantined']}")
    lines += [f"note: {note}" for note in result["notes"]]
    return Judged("\n".join(lines), result, [] if out is None else [out], dataset=table)


def _judge_pairs(who: Judge, loaded: "PairSet") -> tuple[list[str], dict[str, Any], Any]:
    pairs = list(loaded)
    judgments = compare_all(who, [comparison_of(pair) for pair in pairs])
    agreement = agreement_with_labels(pairs, judgments)
    table = (
        loaded.dataset.remove_columns("judge_probability")
        .add_column("judge_probability", [judgment.probability for judgment in judgments])
        .add_column("judge_status", [judgment.status for judgment in judgments])
    )
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
    return lines, agreement.as_dict(), table


def _score(who: Judge, loaded: "CandidateSet") -> tuple[list[str], dict[str, Any], Any]:
    rows = list(loaded)
    scores = score_candidates(who, rows)
    kind = "reward" if who.pointwise else "mean win probability"
    by_source: dict[str, list[float]] = {}
    for row, row_scores in zip(rows, scores, strict=True):
        for source, score in zip(row.sources, row_scores, strict=True):
            by_source.setdefault(source or "(unnamed)", []).append(score)
    means = {source: sum(values) / len(values) for source, values in by_source.items()}
    responses = sum(map(len, scores))
    lines = [f"{responses} responses to {len(rows)} prompts scored by {who.name} ({kind})"]
    lines += [
        f"  {mean:8.3f}  {source}"
        for source, mean in sorted(means.items(), key=lambda item: -item[1])
    ]
    result = {"prompts": len(rows), "responses": responses, "score": kind, "mean": means}
    return lines, result, loaded.dataset.remove_columns("scores").add_column("scores", scores)
