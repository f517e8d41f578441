"""`build_pairs`: from a recipe to datasets of pairs, with a card."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Dataset

from prefstage.building.account import SETTING, Account, check_reversal, describe_reversal
from prefstage.building.answers import reward_augmented
from prefstage.building.built import Group, built_dataset, parted
from prefstage.building.card import (
    PairStatistics,
    dataset_card,
    has_scores,
    pair_statistics,
    quality_table,
)
from prefstage.building.choosing import rescored
from prefstage.building.filters import filtered
from prefstage.building.methods import Materials, groups_of
from prefstage.building.recipe import TRAIN, Plan, Recipe, read_recipe
from prefstage.building.relabelling import measure_reversal, with_judge_probability
from prefstage.core.config import write_config
from prefstage.core.errors import InputError
from prefstage.core.files import write_json, write_text
from prefstage.core.ledger import Ledger
from prefstage.core.outcome import Outcome, shown
from prefstage.core.results import write_result
from prefstage.core.runs import RunFolder
from prefstage.data.formats import format_named
from prefstage.data.loading import keep_sources, load_candidates, load_pairs
from prefstage.data.rows import LoadReport
from prefstage.data.sets import CandidateSet, PairSet
from prefstage.data.storage import save_dataset
from prefstage.data.tokenizer_files import with_date
from prefstage.judging.base import Judge
from prefstage.judging.judged import stored
from prefstage.judging.loading import as_judge
from prefstage.sampling.base import Sampler, as_sampler

RESULT, CARD, CONFIG = "build.json", "README.md", "config.yaml"
_SHOWN_REASONS = 3


@dataclass(frozen=True, kw_only=True)
class BuildResult(Outcome):
    """What a build made; its `result` has counts, names and figures, as in build.json.

    Attributes:
        parts: Each part's splits, as pairs with provenance columns.
        statistics: Score figures of each part, over its splits.
        card: The dataset card, Markdown.
    """

    parts: Mapping[str, Mapping[str, PairSet]]
    statistics: Mapping[str, PairStatistics]
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
    out: str | Path | None = None,
    judge: Judge | Callable[..., Any] | None = None,
    sampler: Sampler | None = None,
) -> BuildResult:
    """Build preference pairs by a recipe.

    Args:
        recipe: A recipe, its settings, or its YAML file; see docs/building.md. Among settings,
            `candidates` and `pairs` may be the data themselves (a set or records), `judge` a
            judge and `policy` a sampler.
        out: A run folder. Answers and judgments are kept there as they arrive, so that the
            same call goes on after a kill and buys nothing twice; the pairs are written to
            ``PART/SPLIT.parquet``, with README.md (the card), build.json and config.yaml.
        judge: The judge itself, in place of loading the recipe's.
        sampler: The policy itself, in place of loading the recipe's.

    Returns:
        The pairs by part and split, with statistics, counts and the card. Equal builds give
        sets of equal fingerprints.

    Raises:
        ConfigError: If the recipe is wrong.
        InputError: If the data are, no pair can be built from them, or the judge reverses more
            than 40 % of the labels that it replaces and the recipe does not accept that.
        RunFolderError: If `out` holds another run, or another process works in it.
    """
    named, objects = _named(recipe)
    plan, account = read_recipe(named), Account()
    out = None if out is None else Path(out)
    plan = replace(plan, recipe=with_date(plan.recipe, plan.recipe.policy, out))
    judge = objects.get("judge") if judge is None else as_judge(judge)
    sampler = objects.get("policy") if sampler is None else as_sampler(sampler)
    data = _load(plan, objects)
    with ExitStack() as stack:
        judge, sampler, aspects = _opened(plan, judge, sampler, stack)
        # Without a folder too, what a judge was asked is kept on disk: it may be asked again.
        folder = out or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="prefstage-build-"))
        )
        if out is not None:
            inputs = {
                # Without the yes to reversed labels: who gives it goes on with what was judged.
                "recipe": plan.recipe.model_dump(mode="json", exclude={SETTING}),
                "data": data.fingerprint,
                "judge": judge.fingerprint if judge is not None else None,
                "policy": sampler.fingerprint if sampler is not None else None,
            }
            stack.enter_context(RunFolder.hold(folder, command="build", inputs=inputs))
            write_config(plan.recipe, folder / CONFIG)
        store = stack.enter_context(Ledger.in_folder(folder))
        judge = stored(judge, store) if judge is not None else None
        aspects = {name: stored(aspect, store) for name, aspect in aspects.items()}
        candidates = data if isinstance(data, CandidateSet) else None
        pairs = data if isinstance(data, PairSet) else None
        materials = Materials(plan, account, store, candidates, pairs, judge, sampler, aspects)
        if candidates is not None and judge is not None and plan.method.policy == "none":
            _measure_reversal(materials, objects.get("candidates", plan.recipe.candidates))
            scored = CandidateSet.of(rescored(candidates, judge), report=candidates.report)
            materials = replace(materials, candidates=scored)
        dataset = built_dataset(chain.from_iterable(_groups(materials)))
        _check_some(dataset, account, plan)
        made = _result(materials, dataset, data.report)
        return made if out is None else replace(made, written=_write(folder, made))


def _named(recipe: Any) -> tuple[Any, dict[str, Any]]:
    """The recipe with names in place of data, judge and policy that stand in it; and these."""
    if not isinstance(recipe, Mapping):
        return recipe, {}
    values = {name: recipe.get(name) for name in ("candidates", "pairs", "judge", "policy")}
    objects = {name: v for name, v in values.items() if not isinstance(v, str | Path | None)}
    names = {name: getattr(v, "name", "memory") for name, v in objects.items()}
    names |= {name: str(v) for name, v in values.items() if isinstance(v, Path)}
    for name, made_of in (("judge", as_judge), ("policy", as_sampler)):
        if name in objects:
            objects[name] = made_of(objects[name])
    return {**recipe, **names}, objects


def _load(plan: Plan, objects: Mapping[str, Any]) -> CandidateSet | PairSet:
    recipe = plan.recipe
    how: Any = {"on_bad_row": recipe.on_bad_row, "quarantine_file": recipe.quarantine_file}
    if recipe.pairs is not None:
        pairs: PairSet = load_pairs(objects.get("pairs", recipe.pairs), **how)
        return pairs
    rows: CandidateSet = load_candidates(objects.get("candidates", recipe.candidates), **how)
    return keep_sources(rows, recipe.sources) if recipe.sources is not None else rows


def _measure_reversal(materials: Materials, source: Any) -> None:
    """Of pairs that are read as candidates: a judge that scores them replaces their labels."""
    recipe, judge = materials.plan.recipe, materials.judge
    form = materials.candidates.report.format
    if recipe.sources or format_named(form, "candidates").kind != "pairs":
        return
    how: Any = {"on_bad_row": recipe.on_bad_row, "quarantine_file": recipe.quarantine_file}
    reversal = measure_reversal(load_pairs(source, **how), judge)
    materials.account.reversal = reversal
    check_reversal(reversal.as_dict(), accepted=recipe.accept_reversal, judge=judge.name)


def _opened(
    plan: Plan, judge: Any, sampler: Any, stack: ExitStack
) -> tuple[Judge | None, Sampler | None, dict[str, Judge]]:
    # What is loaded here (a server, a model) is also closed here; what was brought stays open.
    recipe = plan.recipe
    if judge is None and recipe.judge is not None:
        judge = stack.enter_context(as_judge(recipe.judge))
    if sampler is None and recipe.policy is not None:
        how = recipe.sampling.model_copy(update={"seed": recipe.seed})
        sampler = stack.enter_context(as_sampler(recipe.policy, how, options=recipe.load_options))
    specs: dict[str, str] = getattr(plan.settings, "aspects", {})
    aspects = {name: stack.enter_context(as_judge(spec)) for name, spec in specs.items()}
    return judge, sampler, aspects


def _groups(materials: Materials) -> Iterator[Group]:
    recipe, account = materials.plan.recipe, materials.account
    groups = groups_of(materials)
    if recipe.ties != "keep":
        groups = _without_ties(groups, account)
    if materials.judge is not None:
        groups = with_judge_probability(groups, materials.judge)
    if recipe.augment is not None:
        groups = reward_augmented(groups, account=account, **recipe.augment.model_dump())
    return filtered(groups, recipe.filters, account=account)


def _without_ties(groups: Iterator[Group], account: Account) -> Iterator[Group]:
    for group in groups:
        kept = [built for built in group if not built.pair.tied]
        why = "tie of the raters (ties: keep keeps it)"
        account.skip(why, group[0].pair.prompt_id, len(group) - len(kept))
        if kept:
            yield kept


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


def _result(materials: Materials, dataset: Dataset, report: LoadReport) -> BuildResult:
    plan, account, recipe = materials.plan, materials.account, materials.plan.recipe
    parts, statistics = {}, {}
    for part, splits in parted(dataset, recipe.splits, seed=recipe.seed).items():
        statistics[part] = pair_statistics(*splits.values())
        parts[part] = {
            name: _pair_set(rows, f"{plan.name}, {part}, {name}", report)
            for name, rows in splits.items()
        }
    result = {
        "method": plan.name,
        "source": report.source,
        "judge": materials.judge_name,
        "policy": materials.sampler.name if materials.sampler is not None else None,
        "license": recipe.license,
        "seed": recipe.seed,
        **account.as_dict(),
        "rows_quarantined": report.quarantined,
        "parts": {p: {name: len(s) for name, s in splits.items()} for p, splits in parts.items()},
        "statistics": {part: figures.as_dict() for part, figures in statistics.items()},
    }
    result["notes"] = [*account.notes, *report.notes, *_warnings(account, statistics)]
    files = {p: {name: f"{p}/{name}.parquet" for name in splits} for p, splits in parts.items()}
    # The quarantine file is a path on one machine: nothing that readers of the card can use.
    settings = recipe.model_dump(mode="json", exclude={"quarantine_file"})
    card = dataset_card(files=files, result=result, statistics=statistics, recipe=settings)
    return BuildResult(
        summary=_summary(result, statistics),
        result=result,
        parts=parts,
        statistics=statistics,
        card=card,
    )


def _summary(result: Mapping[str, Any], statistics: Mapping[str, PairStatistics]) -> str:
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
        counts = ", ".join(f"{name} {count}" for name, count in splits.items())
        lines.append(f"{part}: {counts}")
    if has_scores(statistics):
        lines += ["", quality_table(statistics)]
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])


def _pair_set(dataset: Dataset, name: str, report: LoadReport) -> PairSet:
    made = LoadReport(report.source, f"built: {name}", len(dataset), len(dataset))
    return PairSet(dataset, made)


def _warnings(account: Account, statistics: Mapping[str, PairStatistics]) -> list[str]:
    """What filters may have undone."""
    tolerance = account.figures.get("gap_tolerance")
    if tolerance is None:
        return []
    means = {part: figures.average_difference or 0.0 for part, figures in statistics.items()}
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


def _write(folder: Path, made: BuildResult) -> list[Path]:
    written = []
    for part, splits in made.parts.items():
        for name, pairs in splits.items():
            written.append(folder / part / f"{name}.parquet")
            save_dataset(pairs.dataset, written[-1])
    write_text(folder / CARD, made.card)
    write_json(folder / RESULT, made.result)
    facts = {name: made.result[name] for name in ("method", "source", "judge")}
    headline = f"{made.result['pairs_built']:,} pairs by {facts['method']}"
    write_result(folder, "build", headline=headline, facts=facts)  # last: all else is there
    return [*written, *(folder / name for name in (CARD, RESULT, CONFIG))]
