"""`build_pairs`: from a recipe to datasets of pairs, with a card."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset

from prefstage.building.account import Account
from prefstage.building.augmented import reward_augmented
from prefstage.building.built import Built, Group, built_dataset
from prefstage.building.card import dataset_card
from prefstage.building.choosing import rescored
from prefstage.building.filters import filtered
from prefstage.building.methods import Materials, groups_of
from prefstage.building.parting import parted
from prefstage.building.recipe import Plan, Recipe, read_recipe
from prefstage.building.relabelling import measure_reversal, with_judge_probability
from prefstage.building.reversal import SETTING, check_reversal
from prefstage.building.splitting import TRAIN
from prefstage.building.statistics import PairStatistics, pair_statistics
from prefstage.core.config import write_config
from prefstage.core.errors import InputError
from prefstage.core.files import write_json, write_text
from prefstage.core.results import write_result
from prefstage.core.runs import RunFolder
from prefstage.data.formats import format_named
from prefstage.data.grouping import keep_sources
from prefstage.data.loading import load_candidates, load_pairs
from prefstage.data.records import Ties
from prefstage.data.rows import LoadReport
from prefstage.data.sets import CandidateSet, PairSet
from prefstage.data.storage import save_dataset
from prefstage.data.tokenizer_files import with_date
from prefstage.judging.base import Judge
from prefstage.judging.loading import load_judge
from prefstage.judging.store import JudgmentStore
from prefstage.judging.stored import stored
from prefstage.sampling.base import Sampler
from prefstage.sampling.loading import load_sampler

RESULT, CARD, CONFIG = "build.json", "README.md", "config.yaml"
JUDGMENTS = "judgments.sqlite"
_SHOWN_REASONS = 3

T = TypeVar("T")


@dataclass(frozen=True)
class BuildResult:
    """What a build made.

    Attributes:
        parts: Each part's splits, as pairs with provenance columns.
        statistics: Score figures of each part, over its splits.
        result: Counts, names and figures, as in build.json.
        card: The dataset card, Markdown.
    """

    parts: Mapping[str, Mapping[str, PairSet]]
    statistics: Mapping[str, PairStatistics]
    result: Mapping[str, Any]
    card: str

    @property
    def train(self) -> PairSet:
        """The pairs for training of a build of one part.

        Raises:
            InputError: If there are several parts.
        """
        if len(self.parts) != 1:
            raise InputError.of(
                saw=f"a build of {len(self.parts)} parts ({', '.join(self.parts)})",
                expected="one part",
                cure="take .parts[NAME]['train']",
            )
        (splits,) = self.parts.values()
        return splits[TRAIN]


def build_pairs(
    recipe: Recipe | Mapping[str, Any] | Path | str,
    *,
    out: Path | None = None,
    judge: Judge | None = None,
    sampler: Sampler | None = None,
) -> BuildResult:
    """Build preference pairs by a recipe.

    Args:
        recipe: A recipe, its settings, or its YAML file; see docs/building.md.
        out: A run folder. Answers and judgments are kept there as they arrive, so that the
            same call goes on after a kill and buys nothing twice; the pairs are written to
            ``PART/SPLIT.parquet``, with README.md (the card), build.json and config.yaml.
        judge: The judge itself, in place of loading the recipe's.
        sampler: The policy itself, in place of loading the recipe's.

    Returns:
        The pairs by part and split, with statistics, counts and the card.

    Raises:
        ConfigError: If the recipe is wrong.
        InputError: If the data are, no pair can be built from them, or the judge reverses more
            than 40 % of the labels that it replaces and the recipe does not accept that.
        RunFolderError: If `out` holds another run.
    """
    plan, account = read_recipe(recipe), Account()
    dated = with_date(plan.recipe, plan.recipe.policy, None if out is None else Path(out))
    plan = replace(plan, recipe=dated)
    data = _load(plan)
    with ExitStack() as stack:
        judge, sampler, aspects = _helpers(plan, judge, sampler, stack)
        folder = Path(out) if out is not None else Path(stack.enter_context(_scratch()))
        if out is not None:
            RunFolder.open(folder, command="build", inputs=_inputs(plan, data, judge, sampler))
            write_config(plan.recipe, folder / CONFIG)
        store = stack.enter_context(JudgmentStore(folder / JUDGMENTS))
        judge = stored(judge, store) if judge is not None else None
        aspects = {name: stored(each, store) for name, each in aspects.items()}
        candidates = data if isinstance(data, CandidateSet) else None
        if candidates is not None and judge is not None and plan.method.policy == "none":
            _measure_reversal(plan, candidates, judge, account)
            candidates = CandidateSet.of(rescored(candidates, judge), report=candidates.report)
        pairs = data if isinstance(data, PairSet) else None
        materials = Materials(plan, account, folder, candidates, pairs, judge, sampler, aspects)
        dataset = built_dataset(flat_rows(_groups(materials)))
        _check_some(dataset, account, plan)
        made = _result(plan, account, dataset, report=data.report, judge=judge, sampler=sampler)
        if out is not None:
            _write(folder, made)
    return made


def _load(plan: Plan) -> CandidateSet | PairSet:
    recipe = plan.recipe
    how = {"on_bad_row": recipe.on_bad_row, "quarantine_file": recipe.quarantine_file}
    if recipe.pairs is not None:
        return load_pairs(recipe.pairs, **how)  # type: ignore[call-overload,no-any-return]  # how
    rows: CandidateSet = load_candidates(str(recipe.candidates), **how)  # type: ignore[call-overload]  # how
    return keep_sources(rows, recipe.sources) if recipe.sources is not None else rows


def _measure_reversal(plan: Plan, candidates: CandidateSet, judge: Judge, account: Account) -> None:
    """Of pairs that are read as candidates: a judge that scores them replaces their labels."""
    recipe = plan.recipe
    if format_named(candidates.report.format, "candidates").kind != "pairs" or recipe.sources:
        return
    how = {"on_bad_row": recipe.on_bad_row, "quarantine_file": recipe.quarantine_file}
    pairs: PairSet = load_pairs(str(recipe.candidates), **how)  # type: ignore[call-overload]  # how
    account.reversal = measure_reversal(pairs, judge)
    check_reversal(account.reversal.as_dict(), accepted=recipe.accept_reversal, judge=judge.name)


def _helpers(
    plan: Plan, judge: Judge | None, sampler: Sampler | None, stack: ExitStack
) -> tuple[Judge | None, Sampler | None, dict[str, Judge]]:
    recipe = plan.recipe
    if judge is None and recipe.judge is not None:
        judge = _entered(stack, load_judge(recipe.judge))
    if sampler is None and recipe.policy is not None:
        how = recipe.sampling.model_copy(update={"seed": recipe.seed})
        sampler = _entered(stack, load_sampler(recipe.policy, how, options=recipe.load_options))
    specs: dict[str, str] = getattr(plan.settings, "aspects", {})
    return judge, sampler, {name: _entered(stack, load_judge(s)) for name, s in specs.items()}


def _inputs(
    plan: Plan, data: CandidateSet | PairSet, judge: Judge | None, sampler: Sampler | None
) -> dict[str, Any]:
    return {  # without the yes to reversed labels: who gives it goes on with what was judged
        "recipe": plan.recipe.model_dump(mode="json", exclude={SETTING}),
        "data": data.fingerprint,
        "judge": judge.fingerprint if judge is not None else None,
        "policy": sampler.fingerprint if sampler is not None else None,
    }


def _groups(materials: Materials) -> Iterator[Group]:
    recipe, account = materials.plan.recipe, materials.account
    groups = _without_ties(groups_of(materials), recipe.ties, account)
    if materials.judge is not None:
        groups = with_judge_probability(groups, materials.judge)
    if recipe.augment is not None:
        groups = reward_augmented(
            groups,
            template=recipe.augment.template,
            digits=recipe.augment.digits,
            account=account,
        )
    return filtered(groups, recipe.filters, account=account)


def _without_ties(groups: Iterator[Group], ties: Ties, account: Account) -> Iterator[Group]:
    """Leave out pairs that still carry raters' even votes, unless they are asked for."""
    for group in groups:
        kept = [each for each in group if ties == "keep" or not each.pair.tied]
        if len(kept) < len(group):
            why = "tie of the raters (ties: keep keeps it)"
            account.skip(why, group[0].pair.prompt_id, len(group) - len(kept))
        if kept:
            yield kept


def flat_rows(groups: Iterator[Group]) -> Iterator[Built]:
    """The pairs of all groups, one by one.

    Args:
        groups: As the builders yield them.

    Yields:
        Each pair.
    """
    for group in groups:
        yield from group


def _check_some(dataset: Dataset, account: Account, plan: Plan) -> None:
    if len(dataset):
        return
    reasons = [f"{count} x {why}" for why, count in account.skipped.most_common(_SHOWN_REASONS)]
    raise InputError.of(
        saw=f"no pair from {account.prompts} rows by {plan.name}"
        + (f" ({'; '.join(reasons)})" if reasons else ""),
        expected="at least one pair",
        cure="give scores (a judge), more responses a prompt, or milder filters",
    )


def _result(
    plan: Plan,
    account: Account,
    dataset: Dataset,
    *,
    report: LoadReport,
    judge: Judge | None,
    sampler: Sampler | None,
) -> BuildResult:
    recipe = plan.recipe
    parts, statistics = {}, {}
    for part, splits in parted(dataset, recipe.splits, seed=recipe.seed).items():
        statistics[part] = pair_statistics(*splits.values())
        parts[part] = {
            name: _pair_set(rows, f"{plan.name}, {part}, {name}", report)
            for name, rows in splits.items()
        }
    counts = {part: {name: len(s) for name, s in each.items()} for part, each in parts.items()}
    result = {
        "method": plan.name,
        "source": report.source,
        "judge": judge.name if judge is not None else None,
        "policy": sampler.name if sampler is not None else None,
        "license": recipe.license,
        "seed": recipe.seed,
        **account.as_dict(),
        "rows_quarantined": report.quarantined,
        "parts": counts,
        "statistics": {name: each.as_dict() for name, each in statistics.items()},
    }
    result["notes"] = [*account.notes, *report.notes, *_warnings(account, statistics)]
    files = {
        part: {name: f"{part}/{name}.parquet" for name in each} for part, each in parts.items()
    }
    told = recipe.model_dump(mode="json", exclude={"quarantine_file"})  # a place on one machine
    card = dataset_card(files=files, result=result, statistics=statistics, recipe=told)
    return BuildResult(parts, statistics, result, card)


def _pair_set(dataset: Dataset, name: str, report: LoadReport) -> PairSet:
    made = LoadReport(report.source, f"built: {name}", len(dataset), len(dataset))
    return PairSet(dataset, made)


def _warnings(account: Account, statistics: Mapping[str, PairStatistics]) -> list[str]:
    """What filters may have undone."""
    tolerance = account.figures.get("gap_tolerance")
    if tolerance is None:
        return []
    means = {part: each.average_difference or 0.0 for part, each in statistics.items()}
    apart = {
        level: abs(means.get(f"{level}-HQ", 0.0) - means.get(f"{level}-LQ", 0.0))
        for level in ("LG", "SG")
    }
    return [
        f"after filters the {level} gap means are {value:.3g} apart, more than the tolerance "
        f"of {tolerance:.3g}"
        for level, value in apart.items()
        if value > tolerance
    ]


def _write(folder: Path, made: BuildResult) -> None:
    for part, splits in made.parts.items():
        for name, pairs in splits.items():
            save_dataset(pairs.dataset, folder / part / f"{name}.parquet")
    write_text(folder / CARD, made.card)
    write_json(folder / RESULT, dict(made.result))
    facts = {name: made.result[name] for name in ("method", "source", "judge")}
    headline = f"{made.result['pairs_built']:,} pairs by {facts['method']}"
    write_result(folder, "build", headline=headline, facts=facts)  # last: all else is there


def _scratch() -> AbstractContextManager[str]:
    return tempfile.TemporaryDirectory(prefix="prefstage-build-")


def _entered(stack: ExitStack, thing: T) -> T:
    """Make sure that what runs something of its own (a server) ends it."""
    if isinstance(thing, AbstractContextManager):
        stack.enter_context(thing)
    return thing
