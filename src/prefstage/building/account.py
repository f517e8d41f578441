"""What a build made: pairs and where they come from, what was left out, figures and the card."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import yaml

from prefstage.building.statistics import PairStatistics, has_scores, quality_table, shown_score
from prefstage.core import InputError, markdown_table, markdown_text, redacted_values, shown
from prefstage.data.records import Candidates, Pair
from prefstage.judging.base import wilson_interval

# Largest share of reversed labels that needs no yes. Above it the judge and the labels measure
# different things, or nearly so. A judge whose agreement lies below one half with its whole 95 %
# interval reverses more than that of what it decides.
REVERSAL_LIMIT = 0.4

SETTING, _EXAMPLES = "accept_reversal", 3


def reversal_figures(
    kept: int = 0, reversed: int = 0, equal: int = 0, unreadable: int = 0, unlabelled: int = 0
) -> dict[str, Any]:
    """What a judge says of labels, summed up before it replaces them.

    Args:
        kept: Labels that the judge confirms.
        reversed: Labels that it turns round.
        equal: Labelled pairs that it finds equal; they count for nothing.
        unreadable: Labelled pairs without a readable judgment; likewise.
        unlabelled: Pairs that are a tie in the data, which have no label to reverse.

    Returns:
        These counts; "share", reversed labels of those that the judge confirms or turns round,
        None of none; and "interval", its 95 % Wilson interval. JSON-serialisable.
    """
    decided = kept + reversed
    share = reversed / decided if decided else None
    return {
        **{"kept": kept, "reversed": reversed, "equal": equal},
        **{"unreadable": unreadable, "unlabelled": unlabelled, "share": share},
        "interval": list(wilson_interval(share or 0.0, decided)),
    }


@dataclass
class Account:
    """Counts of a build, filled as it goes.

    Attributes:
        prompts: Prompts (or pairs, where pairs go in) that were read.
        pairs: Pairs that were built, before filters.
        skipped: How many were left out, by reason.
        examples: The first prompt ids of every reason.
        figures: Other figures of the method (flips, on-policy share, ...), by name; 0 at first.
        notes: What else a reader should know.
        reversal: As `reversal_figures`, of the labels that a judge replaces; None if none does.
    """

    prompts: int = 0
    pairs: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    figures: defaultdict[str, Any] = field(default_factory=partial(defaultdict, int))
    notes: list[str] = field(default_factory=list)
    reversal: dict[str, Any] | None = None

    def skip(self, reason: str, prompt_id: str, count: int = 1) -> None:
        """Count something that is left out.

        Args:
            reason: What it is, in a few words; counted by it.
            prompt_id: Where.
            count: How many.
        """
        if count < 1:
            return
        self.skipped[reason] += count
        seen = self.examples.setdefault(reason, [])
        if len(seen) < _EXAMPLES and prompt_id not in seen:
            seen.append(prompt_id)

    def passes(self, prompt_id: str, faults: Mapping[str, object]) -> bool:
        """Whether something has none of some faults; the first that it has is counted.

        Args:
            prompt_id: Where.
            faults: By reason, whether it is there.

        Returns:
            Whether none is.
        """
        reason = first_of(faults)
        if reason is not None:
            self.skip(reason, prompt_id)
        return reason is None

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {
            "prompts_read": self.prompts,
            "pairs_built": self.pairs,
            "left_out": dict(self.skipped),
            "examples": self.examples,
            "figures": dict(self.figures),
            "notes": self.notes,
            "reversal": self.reversal,
        }


def first_of(faults: Mapping[str, object]) -> str | None:
    """The first reason that holds, of reasons and whether they do; None if none does."""
    return next((reason for reason, holds in faults.items() if holds), None)


def describe_reversal(reversal: Mapping[str, Any]) -> str:
    """Say how often a judge reverses labels.

    Args:
        reversal: As of `reversal_figures`.

    Returns:
        Such as "24 of 40 labels reversed by the judge: 60.0 % (95 % interval 44.6 % to 73.7 %)",
        with what has no part in it.
    """
    decided = reversal["kept"] + reversal["reversed"]
    text = f"{reversal['reversed']} of {decided} labels reversed by the judge"
    if reversal["share"] is not None:
        share, low, high = (100 * value for value in (reversal["share"], *reversal["interval"]))
        text += f": {share:.1f} % (95 % interval {low:.1f} % to {high:.1f} %)"
    others = {
        "found equal": reversal["equal"],
        "without a readable judgment": reversal["unreadable"],
        "without a label (a tie in the data)": reversal["unlabelled"],
    }
    listed = ", ".join(f"{count} {what}" for what, count in others.items() if count)
    return f"{text}; not counted: {listed}" if listed else text


def is_excessive(reversal: Mapping[str, Any]) -> bool:
    """Whether more labels are reversed than go without a yes."""
    return reversal["share"] is not None and reversal["share"] > REVERSAL_LIMIT


def check_reversal(
    reversal: Mapping[str, Any], *, accepted: bool, judge: str, setting: str = SETTING
) -> None:
    """Stop before labels are replaced by a judge that mostly contradicts them.

    Args:
        reversal: As of `reversal_figures`.
        accepted: Whether the recipe says yes to any share.
        judge: Its name.
        setting: Where the recipe says so.

    Raises:
        InputError: If more than `REVERSAL_LIMIT` of the labels are reversed, and nobody said yes.
    """
    InputError.unless(
        accepted or not is_excessive(reversal),
        saw=f"{describe_reversal(reversal)} ({judge})",
        expected=f"at most {100 * REVERSAL_LIMIT:.0f} % before labels are replaced",
        cure=f"ask another judge, or set {setting}: true to go by this one's labels (a run "
        "folder keeps what it judged)",
    )


# --- Pairs and their provenance ------------------------------------------------------------------

# Columns that a built pair has besides the canonical ones, and their Arrow types.
PROVENANCE = {
    "method": "string",
    "part": "string",
    "origin_prompt_id": "string",
    "place_chosen": "int64",
    "place_rejected": "int64",
    "gap": "float64",
    "judge": "string",
    "label_flipped": "bool",
}


@dataclass(frozen=True)
class Built:
    """A pair and its provenance.

    Attributes:
        pair: The pair.
        method: How it was built, such as "best-vs-worst".
        part: Which dataset of the method it belongs to ("LG-HQ"); equal to `method` where
            the method makes one.
        origin_prompt_id: The prompt that this one was made from (by adding a target score);
            None where it is the pair's prompt. Splits keep both together.
        place_chosen: Position of the chosen response among the prompt's candidates, or None.
        place_rejected: Likewise.
        gap: Score of chosen less score of rejected, or None without scores.
        judge: Whose scores or judgments decided, or None for scores of the dataset.
        label_flipped: Whether a judge turned the dataset's label round; None if not asked.
    """

    pair: Pair
    method: str
    part: str
    origin_prompt_id: str | None = None
    place_chosen: int | None = None
    place_rejected: int | None = None
    gap: float | None = None
    judge: str | None = None
    label_flipped: bool | None = None


# Pairs that stand or fall together: those of one prompt.
Group = list[Built]


@dataclass(frozen=True)
class Scored:
    """One response that can be chosen.

    Attributes:
        text: The response.
        score: Its score, finite; higher is better.
        source: Who wrote it, or None.
        position: Its position among the prompt's candidates.
    """

    text: str
    score: float
    source: str | None
    position: int


# Chosen and rejected.
Choice = tuple[Scored, Scored]


def built_of(
    row: Candidates,
    pair: Choice,
    *,
    method: str,
    part: str | None = None,
    judge: str | None = None,
) -> Built:
    """Make the pair of two responses to a prompt.

    Args:
        row: The prompt.
        pair: The better response and the worse one.
        method: How they were chosen.
        part: Dataset of the method; None for its only one.
        judge: Whose scores they have.

    Returns:
        The pair with its provenance.
    """
    chosen, rejected = pair
    return Built(
        Pair(
            prompt_id=row.prompt_id,
            prompt=row.prompt,
            chosen=(row.message(chosen.position),),
            rejected=(row.message(rejected.position),),
            score_chosen=chosen.score,
            score_rejected=rejected.score,
            source_chosen=chosen.source,
            source_rejected=rejected.source,
        ),
        method,
        part or method,
        place_chosen=chosen.position,
        place_rejected=rejected.position,
        gap=chosen.score - rejected.score,
        judge=judge,
    )


def score_gap(pair: Pair) -> float | None:
    """Score of chosen less score of rejected; None without scores."""
    chosen, rejected = pair.score_chosen, pair.score_rejected
    return None if chosen is None or rejected is None else chosen - rejected


# --- Figures, and the card -----------------------------------------------------------------------

_COLUMNS = """\
Columns: `prompt_id`, `prompt`, `chosen`, `rejected` (messages), `score_chosen`,
`score_rejected`, `source_chosen`, `source_rejected`, `agreement`, `judge_probability` (P(chosen
better than rejected) by the judge), and where each pair comes
from: `method`, `part`, `origin_prompt_id` (the prompt that an augmented one was made from),
`place_chosen`, `place_rejected` (among the prompt's candidates), `gap` (score of chosen less
rejected), `judge` (empty: the dataset's own scores) and `label_flipped`.
"""


def dataset_card(
    *,
    result: Mapping[str, Any],
    statistics: Mapping[str, PairStatistics],
    recipe: Mapping[str, Any],
) -> str:
    """Write the card, whose head the Hub reads.

    Args:
        result: Counts and names, as in build.json.
        statistics: Figures of each part.
        recipe: The resolved recipe.

    Returns:
        Markdown with a YAML head.
    """
    head = {
        "license": recipe.get("license") or "unknown",
        "tags": ["preference", "prefstage"],
        "configs": [
            {
                "config_name": part,
                "data_files": [
                    {"split": split, "path": f"{part}/{split}.parquet"} for split in splits
                ],
            }
            for part, splits in result["parts"].items()
        ],
    }
    by, tables = "without scores", ["The pairs have no scores.\n"]
    if has_scores(statistics):
        # Each side's distribution, as Table 5 has it.
        numbers = ("mean", "std", "min", "q25", "median", "q75", "max")
        distributions = markdown_table(
            ["set", "side", "Mean", "Std", "Min", "25%", "Med", "75%", "Max"],
            [
                [name, side, *(shown_score(values[number]) for number in numbers)]
                for name, part in statistics.items()
                for side, values in (("C", part.chosen), ("R", part.rejected))
            ],
        )
        tables = [quality_table(statistics), "", distributions]
        tables += ["\nC is the chosen side, R the rejected one.\n"]
        by = "with the scores of the data"
    names = {key: markdown_text(value or "") for key, value in result.items()}
    by = f"judged by {names['judge']}" if result["judge"] else by
    written = yaml.safe_dump(redacted_values(recipe), sort_keys=False)
    fence = "`" * (3 + written.count("`"))
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        f"# Preference pairs: {names['method']}\n",
        f"Built by prefstage from {names['source']}, {by}"
        + (f", answered by {names['policy']}" if result["policy"] else "")
        + ".\n",
        f"Licence: {markdown_text(recipe.get('license') or 'not stated in the recipe')}.\n",
        "## Counts\n",
        _counts(result),
        "\n## Scores\n",
        *tables,
        _COLUMNS,
        "## Recipe\n",
        f"{fence}yaml\n{written}{fence}",
    ]
    return "\n".join(parts) + "\n"


def summary_of(result: Mapping[str, Any], statistics: Mapping[str, PairStatistics]) -> str:
    """Say what a build made, for people.

    Args:
        result: Counts and names, as in build.json.
        statistics: Figures of each part.

    Returns:
        Lines, the headline first.
    """
    judge = f", judged by {result['judge']}" if result["judge"] else ""
    lines = [
        f"{result['pairs_built']} pairs by {result['method']} from {result['prompts_read']} rows"
        f" of {result['source']}{judge}"
    ]
    left_out = sorted(result["left_out"].items(), key=lambda reason: -reason[1])
    lines += [f"left out: {count} x {why}" for why, count in left_out]
    if result["reversal"] is not None:
        lines.append(describe_reversal(result["reversal"]))
    figures = result["figures"].items()
    lines += [f"{name.replace('_', ' ')}: {shown(value)}" for name, value in figures]
    for part, splits in result["parts"].items():
        lines.append(f"{part}: {', '.join(f'{name} {count}' for name, count in splits.items())}")
    if has_scores(statistics):
        lines += ["", quality_table(statistics)]
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])


def _counts(result: Mapping[str, Any]) -> str:
    rows = {"read": result["prompts_read"], "pairs built": result["pairs_built"]}
    rows |= {f"left out: {why}": count for why, count in result["left_out"].items()}
    for part, splits in result["parts"].items():
        rows |= {f"pairs in {part}, {split}": count for split, count in splits.items()}
    rows |= {name.replace("_", " "): shown(v) for name, v in result["figures"].items()}
    lines = [markdown_table(["what", "count"], list(rows.items()))]
    if result["reversal"] is not None:
        lines.append(f"\nLabels replaced: {describe_reversal(result['reversal'])}.")
    return "\n".join(lines + [f"\nNote: {note}." for note in result["notes"]])
