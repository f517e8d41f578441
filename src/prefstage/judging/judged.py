"""Judging whole data sets: kept in a ledger, with progress, against labels; and `judge`."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field

from prefstage.core import (
    InputError,
    Ledger,
    Outcome,
    kept_ledger,
    locked_file,
    progress,
    write_json,
)
from prefstage.data.records import Candidates, Message, Pair, prompt_id_of
from prefstage.data.settings import BadRowSettings
from prefstage.judging.base import (
    TIE,
    Comparison,
    Item,
    Judge,
    Judgment,
    answered_once,
    check_decided,
    compare_by_rewards,
    content_of,
    flipped,
    in_order,
    mean_wins,
    turned,
    wilson_interval,
)
from prefstage.judging.loading import as_judge

if TYPE_CHECKING:
    from prefstage.data import CandidateSet, PairSet
    from prefstage.data.sets import DataSource

T = TypeVar("T")
_TABLES = (".parquet", ".jsonl")


def stored(judge: Judge, ledger: Ledger) -> Judge:
    """Keep a judge's judgments, so that nothing is judged twice, in this run or later.

    Args:
        judge: Any judge. Pointwise judges stay pointwise, and their rewards are stored; of
            a judge that is paid by the reply, every raw reply is stored as it arrives.
        ledger: Where judgments are kept, under the judge's fingerprint.

    Returns:
        A judge with the same name and fingerprint that asks `judge` only for what the ledger
        lacks, and writes each judgment to the ledger as soon as it is known.
    """
    return judge.with_replies_in(ledger) or _StoredJudge(judge, ledger)


def stored_for(stack: ExitStack, judge: Judge, store: Path | None, beside: Path | None) -> Judge:
    """Keep what a judge says in `store`; else, if its replies are paid for, in `beside`."""
    if store is None and type(judge).with_replies_in is Judge.with_replies_in:
        return judge
    return stored(judge, stack.enter_context(kept_ledger(store or beside)))


def stored_judgment(judge: str, comparison: Comparison, ledger: Ledger) -> Judgment | None:
    """Look a judgment up, in whichever order of the pair it was made.

    Args:
        judge: The judge's fingerprint.
        comparison: The pair, in the order in which to answer.
        ledger: Where to look.

    Returns:
        The judgment, or None if it is not known.
    """
    ordered = in_kept_order(comparison)
    row = ledger.get("judgments", question_key(judge, ordered))
    return None if row is None else _turned_back(Judgment(*row), comparison, ordered)


def stored_reward(judge: str, item: Item, ledger: Ledger) -> float | None:
    """Look a reward up.

    Args:
        judge: The judge's fingerprint.
        item: (prompt, response).
        ledger: Where to look.

    Returns:
        The reward that this judge gave, or None if it is not known.
    """
    row = ledger.get("rewards", _reward_key(judge, item))
    return None if row is None else float(row[0])


def question_key(judge: str, question: Comparison) -> tuple[str, str, str, str]:
    """A comparison's key in the ledger, in this order of its responses."""
    return judge, prompt_id_of(question.prompt), _hash(question.a), _hash(question.b)


# Keeps the reward of each response, or one judgment per unordered pair of responses.
class _StoredJudge(Judge):
    def __init__(self, judge: Judge, ledger: Ledger) -> None:
        self._judge, self._ledger = judge, ledger
        self._reused = 0
        self.name, self.fingerprint = judge.name, judge.fingerprint

    @property
    def pointwise(self) -> bool:
        return self._judge.pointwise

    @property
    def counts(self) -> Mapping[str, int]:
        return {**self._judge.counts, "reused": self._reused}

    @property
    def complaints(self) -> list[str]:
        return self._judge.complaints

    def close(self) -> None:
        self._judge.close()

    def stream(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Judgment]]:
        if self.pointwise:
            yield from super().stream(comparisons)
            return
        # Always asked in the order in which a pair is kept: (f(a, b) + 1 - f(b, a)) / 2 rounds
        # otherwise when a and b are exchanged, and a tie would depend on who asked first.
        ordered = [in_kept_order(comparison) for comparison in comparisons]
        keys = [question_key(self.fingerprint, comparison) for comparison in ordered]

        def ask(positions: Sequence[int]) -> Iterator[tuple[int, Judgment]]:
            for index, judgment in self._judge.stream(
                [ordered[position] for position in positions]
            ):
                key, values = keys[positions[index]], (judgment.probability, judgment.status)
                yield index, Judgment(*self._ledger.put("judgments", key, values))

        known = (
            TIE if c.a == c.b else self._counted(stored_judgment(self.fingerprint, c, self._ledger))
            for c in ordered
        )
        for position, judgment in answered_once(keys, known, ask):
            yield position, _turned_back(judgment, comparisons[position], ordered[position])

    def stream_scores(self, items: Sequence[Item]) -> Iterator[tuple[int, float]]:
        keys = [_reward_key(self.fingerprint, item) for item in items]

        def ask(positions: Sequence[int]) -> Iterator[tuple[int, float]]:
            for index, reward in self._judge.stream_scores(
                [items[position] for position in positions]
            ):
                kept: tuple[float, ...] = (reward,)
                if not math.isnan(reward):  # no number: the judge is asked again next time
                    kept = self._ledger.put("rewards", keys[positions[index]], kept)
                yield index, float(kept[0])

        rewards = (stored_reward(self.fingerprint, item, self._ledger) for item in items)
        return answered_once(keys, map(self._counted, rewards), ask)

    def _counted(self, known: T | None) -> T | None:
        self._reused += known is not None
        return known


def _reward_key(judge: str, item: Item) -> tuple[str, str, str]:
    prompt, response = item
    return judge, prompt_id_of(prompt), _hash(response)


def _hash(text: str) -> str:
    # Half of a surrogate pair can stand in a text that came as JSON; UTF-8 has no bytes for it.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def in_kept_order(comparison: Comparison) -> Comparison:
    """The comparison in the one order of its responses that a ledger keeps, whoever asks."""
    return turned(comparison) if _hash(comparison.b) < _hash(comparison.a) else comparison


def _turned_back(judgment: Judgment, asked: Comparison, ordered: Comparison) -> Judgment:
    return judgment if asked.a == ordered.a else flipped(judgment)


def comparison_of(pair: Pair) -> Comparison:
    """A pair as a comparison: chosen is `a`, rejected is `b`."""
    a, b = ("\n".join(map(content_of, side)) for side in (pair.chosen, pair.rejected))
    return Comparison(pair.prompt_id, pair.prompt, a, b)


def compare_all(
    judge: Judge, comparisons: Sequence[Comparison], *, part: bool = False
) -> list[Judgment]:
    """Judge all comparisons, showing progress on a terminal.

    Args:
        judge: Any judge; pointwise ones score each response once.
        comparisons: What to judge.
        part: Whether these are not all: the caller then checks by `check_decided` at the end.

    Returns:
        One judgment per comparison, in order. What was not decided is told in a warning.

    Raises:
        ServiceError: If not one comparison was decided.
    """
    if judge.pointwise:
        judgments = compare_by_rewards(lambda items: score_all(judge, items), comparisons)
    else:
        judgments = _shown("judging", judge.stream(comparisons), len(comparisons))
    if not part:
        asked = [j for j, c in zip(judgments, comparisons, strict=True) if c.a != c.b]
        decided = sum(judgment.status == "decided" for judgment in asked)
        check_decided(judge, decided=decided, asked=len(asked))
    return judgments


def score_all(judge: Judge, items: Sequence[Item]) -> list[float]:
    """Score all responses by a pointwise judge, showing progress on a terminal."""
    return _shown("scoring", judge.stream_scores(items), len(items))


def score_candidates(
    judge: Judge, candidates: Sequence[Candidates], *, part: bool = False
) -> list[list[float]]:
    """Give each response a score.

    A pointwise judge's score is its reward. Any other judge compares all responses to a prompt
    with each other, and a response's score is its mean P(wins), as of `mean_wins`.

    Args:
        judge: Any judge.
        candidates: Prompts with their responses.
        part: As in `compare_all`.

    Returns:
        For each prompt the scores of its responses, in order. [prompts][responses].
    """
    if judge.pointwise:
        rewards = iter(
            score_all(judge, [(row.prompt, text) for row in candidates for text in row.responses])
        )
        return [[next(rewards) for _ in row.responses] for row in candidates]
    judgments = iter(
        compare_all(
            judge,
            [
                Comparison(row.prompt_id, row.prompt, a, b)
                for row in candidates
                for a, b in combinations(row.responses, 2)
            ],
            part=part,
        )
    )
    return [mean_wins(len(row.responses), judgments) for row in candidates]


def _shown(label: str, results: Iterator[tuple[int, T]], count: int) -> list[T]:
    with progress(label, count) as tick:

        def ticked() -> Iterator[tuple[int, T]]:
            for result in results:
                yield result
                tick()

        return in_order(ticked(), count)


_TIE_VOTE = 0.5


def agreement_with_labels(pairs: Sequence[Pair], judgments: Sequence[Judgment]) -> dict[str, Any]:
    """Compare judgments P(chosen ≻ rejected) with the labels of their pairs.

    Args:
        pairs: The labelled pairs; an `agreement` of ½ is a tie.
        judgments: One a pair, in order.

    Returns:
        Figures, JSON-serialisable; shares are in [0, 1], and None where nothing is known:
        `pairs`, all that were judged; `label_ties`, those that the dataset calls a tie, which count
        for nothing below; `judge_ties`, of the others those with P = ½ although decided, which
        count half; `undecided`, of the others those without a readable judgment, which count half;
        `agreement`, the share of labelled pairs where P(chosen ≻ rejected) > ½; `interval`, its
        95 % Wilson interval; `longer_wins`, what the rule "the longer response is better" would
        reach; `prefers_longer`, the share of labelled pairs of unequal length (in characters)
        where the judge prefers the longer response.

    Source:
        Interval: Wilson 1927, JASA 22(158); pairs taken as independent.
    """
    labelled = [both for both in zip(pairs, judgments, strict=True) if not both[0].tied]
    votes = [_vote(judgment.probability - 0.5) for _, judgment in labelled]
    longer = [_vote(_length(pair.chosen) - _length(pair.rejected)) for pair, _ in labelled]
    undecided = sum(judgment.status == "undecided" for _, judgment in labelled)
    agreement = _mean(votes)
    return {
        "pairs": len(pairs),
        "label_ties": len(pairs) - len(labelled),
        "judge_ties": votes.count(_TIE_VOTE) - undecided,
        "undecided": undecided,
        "agreement": agreement,
        "interval": list(wilson_interval(agreement or 0.0, len(votes))),
        "longer_wins": _mean(longer),
        "prefers_longer": _mean(
            [
                vote if long else 1.0 - vote
                for vote, long in zip(votes, longer, strict=True)
                if long != _TIE_VOTE
            ]
        ),
    }


def _vote(difference: float) -> float:
    return _TIE_VOTE if difference == 0 else float(difference > 0)


def _length(side: Sequence[Message]) -> int:
    return sum(len(content_of(message)) for message in side)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


# --- `judge` --------------------------------------------------------------------------------------


class JudgeConfig(BadRowSettings):
    """How a dataset is read that a judge looks at, and where its judgments are kept."""

    store: Path | None = Field(
        default=None,
        description="Judgment store (SQLite): what is in it is not judged again "
        "[openai: judges: OUT.judgments.sqlite].",
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
        RunFolderError: If another process is making `out`.
    """
    from prefstage.data import load_candidates, load_pairs
    from prefstage.data.storage import save_dataset

    config, out = config or JudgeConfig(), None if out is None else Path(out)
    InputError.unless(
        (pairs is None) != (candidates is None),
        saw=("neither --pairs nor" if pairs is None else "both --pairs and") + " --candidates",
        expected="one of them",
        cure="give --pairs to compare two responses a prompt, --candidates to score any number",
    )
    InputError.unless(
        out is None or out.suffix in (*_TABLES, ".json"),
        saw=f"--out {out}",
        expected="a name that ends in .parquet or .jsonl (judged rows) or .json (summary)",
        cure="change the ending",
    )
    reading: Any = config.model_dump(include=set(BadRowSettings.model_fields))
    with locked_file(out), ExitStack() as stack:
        # What is looked at is read first, so that a wrong path is found before a model is loaded.
        load: Any = load_candidates if pairs is None else load_pairs
        rows = load(candidates if pairs is None else pairs, **reading)
        who = as_judge(judge)
        beside = None if out is None else out.with_name(f"{out.name}.judgments.sqlite")
        who = stored_for(stack, who, config.store, beside)
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
    bad = result["rows_quarantined"]
    lines += [
        *([f"counts: {', '.join(counts)}"] if counts else []),
        *([f"rows put aside as bad: {bad}"] if bad else []),
        *(f"note: {note}" for note in result["notes"]),
    ]
    return Judged("\n".join(lines), result, [] if out is None else [out], dataset=table)


def _judge_pairs(who: Judge, loaded: "PairSet") -> tuple[list[str], dict[str, Any], Any]:
    pairs = list(loaded)
    judgments = compare_all(who, [comparison_of(pair) for pair in pairs])
    figures = agreement_with_labels(pairs, judgments)
    labelled = len(pairs) - figures["label_ties"]
    lines = [f"{len(pairs)} pairs judged by {who.name}"]
    if labelled:
        low, high = figures["interval"]
        shares = (figures["longer_wins"], figures["prefers_longer"])
        longer, prefers = (math.nan if share is None else share for share in shares)
        lines += [
            f"agrees with the labels of {labelled} pairs: {figures['agreement']:.1%}"
            f" [{low:.1%}, {high:.1%}] (95 % interval)",
            f'"longer is better" would reach {longer:.1%}; '
            f"the judge prefers the longer response in {prefers:.1%}",
        ]
    lines.append(
        f"ties: {figures['label_ties']} in the labels, {figures['judge_ties']} by the judge;"
        f" undecided: {figures['undecided']}"
    )
    return (
        lines,
        figures,
        loaded.dataset.remove_columns("judge_probability")
        .add_column("judge_probability", [judgment.probability for judgment in judgments])
        .add_column("judge_status", [judgment.status for judgment in judgments]),
    )


def _score(who: Judge, loaded: "CandidateSet") -> tuple[list[str], dict[str, Any], Any]:
    rows = list(loaded)
    scores = score_candidates(who, rows)
    kind = "reward" if who.pointwise else "mean win probability"
    by_source: dict[str, list[float]] = {}
    for row, row_scores in zip(rows, scores, strict=True):
        for source, score in zip(row.sources, row_scores, strict=True):
            if math.isfinite(score):
                by_source.setdefault(source or "(unnamed)", []).append(score)
    means = {source: sum(values) / len(values) for source, values in by_source.items()}
    responses = sum(map(len, scores))
    unknown = responses - sum(map(len, by_source.values()))
    lines = [
        f"{responses} responses to {len(rows)} prompts scored by {who.name} ({kind})"
        + (f", {unknown} of them without a score: nothing was decided" if unknown else ""),
        *(
            f"  {mean:8.3f}  {source}"
            for source, mean in sorted(means.items(), key=lambda item: -item[1])
        ),
    ]
    return (
        lines,
        {"prompts": len(rows), "responses": responses, "score": kind, "mean": means},
        loaded.dataset.remove_columns("scores").add_column("scores", scores),
    )
