"""`build_pairs`: from a recipe to datasets of pairs, with a card; what each method takes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Dataset

from prefstage.building.account import (
    SETTING,
    Account,
    Built,
    Group,
    check_reversal,
    dataset_card,
    score_gap,
    summary_of,
)
from prefstage.building.answers import (
    joined,
    per_prompt_pairs,
    policy_answers,
    principled_pairs,
    read_measurement,
    sharpen,
)
from prefstage.building.choosing import (
    Choose,
    all_pairs,
    best_vs_random,
    best_vs_second,
    best_vs_worst,
    gap_quality_pairs,
    gap_warnings,
    pairs_by_choice,
    rejection_pairs,
    tier_pairs,
)
from prefstage.building.filters import built_dataset, filtered, parted, without_ties
from prefstage.building.mixing import draw_prompts, mixed_pairs
from prefstage.building.recipe import TRAIN, Plan, Recipe, read_recipe
from prefstage.building.relabelling import (
    aspect_margins,
    least_divergent,
    measure_reversal,
    relabelled,
    rescored,
    reward_augmented,
    whole_pairs,
    with_judge_probability,
)
from prefstage.building.statistics import PairStatistics, part_statistics
from prefstage.core import (
    LEDGER,
    InputError,
    Ledger,
    Outcome,
    run_folder,
    scratch_folder,
    write_config,
    write_json,
    write_result,
    write_text,
)
from prefstage.data import (
    Candidates,
    CandidateSet,
    LoadReport,
    PairSet,
    Prompt,
    keep_sources,
    load_candidates,
    load_pairs,
    load_prompts,
    pairs_to_candidates,
)
from prefstage.data.reading import Reading
from prefstage.data.rendering import with_date
from prefstage.data.sets import is_names
from prefstage.data.settings import ReadOptions
from prefstage.data.storage import save_dataset
from prefstage.judging import Judge, as_judge, stored
from prefstage.sampling.base import Sampler, as_sampler

RESULT, CARD, CONFIG = "build.json", "README.md", "config.yaml"
_READING = {"on_bad_row", "quarantine_file"}
TWO_SCALES = (
    "the scores are of two kinds (P(chosen wins) of pairs, mean P(wins) of own answers): no mean"
)


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
        InputError.unless(
            len(self.parts) == 1,
            saw=f"a build of {len(self.parts)} parts ({', '.join(self.parts)})",
            expected="one part",
            cure="take .parts[NAME]['train']",
        )
        return next(iter(self.parts.values()))[TRAIN]


@dataclass(frozen=True)
class Materials:
    """What a method works with; what its recipe does not need is None.

    Attributes:
        plan: The recipe, checked.
        account: What to count in.
        ledger: Where answers are kept as they arrive.
        candidates: `CandidateSet`: prompts with responses, scored by the judge if there is one.
        pairs: `PairSet`.
        judge: `Judge`: who scores.
        sampler: `Sampler`: who answers.
        aspects: A judge an aspect, for preference divergence.
    """

    plan: Plan
    account: Account
    ledger: Ledger
    candidates: Any
    pairs: Any
    judge: Any
    sampler: Any
    aspects: dict[str, Judge]

    @property
    def prompts(self) -> list[Candidates]:
        """Each prompt once, without responses."""
        rows = self.candidates if self.candidates is not None else self.pairs
        return _without_responses({row.prompt_id: row.prompt for row in rows})

    def answers(self, prompts: list[Candidates], count: int) -> list[Candidates]:
        """The policy's answers to prompts, `count` each."""
        return policy_answers(
            prompts, self.sampler, answers=count, ledger=self.ledger, account=self.account
        )


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
        folder = out or stack.enter_context(scratch_folder())
        if out is not None:
            inputs = {
                # Without the yes to reversed labels: who gives it goes on with what was judged.
                "recipe": plan.recipe.model_dump(mode="json", exclude={SETTING}),
                "data": data.fingerprint,
                "judge": judge.fingerprint if judge is not None else None,
                "policy": sampler.fingerprint if sampler is not None else None,
            }
            stack.enter_context(run_folder(folder, command="build", inputs=inputs))
            write_config(plan.recipe, folder / CONFIG)
        store = stack.enter_context(Ledger(folder / LEDGER))
        judge = stored(judge, store) if judge is not None else None
        aspects = {name: stored(aspect, store) for name, aspect in aspects.items()}
        candidates, pairs = (data, None) if isinstance(data, CandidateSet) else (None, data)
        if candidates is not None and judge is not None and plan.method.policy == "none":
            sources = objects.get("candidates", plan.recipe.candidates)
            _measure_reversal(plan.recipe, sources, judge, account)
            candidates = CandidateSet.of(rescored(candidates, judge), report=candidates.report)
        materials = Materials(plan, account, store, candidates, pairs, judge, sampler, aspects)
        dataset = built_dataset(chain.from_iterable(_groups(materials)))
        asked = [judge, *aspects.values()] if judge is not None else aspects.values()
        complaints = [line for who in asked for line in who.complaints]
        account.notes += complaints
        skipped = [f"{n} x {why}" for why, n in account.skipped.most_common(3)]
        reasons = f" ({'; '.join(why)})" if (why := [*skipped, *complaints]) else ""
        InputError.unless(
            len(dataset),
            saw=f"no pair from {account.prompts} rows by {plan.name}{reasons}",
            expected="at least one pair",
            cure="give scores (a judge), more responses a prompt, or milder filters",
        )
        made = _result(materials, dataset, data.report)
        return made if out is None else replace(made, written=_write(folder, made))


# The recipe with names in place of data, judge and policy that stand in it; and these.
def _named(recipe: Any) -> tuple[Any, dict[str, Any]]:
    if not isinstance(recipe, Mapping):
        return recipe, {}
    taken: dict[str, Callable[[Any], Any]] = {
        **dict.fromkeys(("candidates", "pairs"), lambda data: data),
        **{"judge": as_judge, "policy": as_sampler},
    }
    values = {name: recipe[name] for name in taken if recipe.get(name) is not None}
    objects = {n: v for n, v in values.items() if not (isinstance(v, str | Path) or is_names(v))}
    names = {n: getattr(v, "name", "memory") for n, v in objects.items()}
    for name in values.keys() - objects.keys():
        names[name] = [*map(str, v)] if is_names(v := values[name]) else str(v)
    return {**recipe, **names}, {name: taken[name](value) for name, value in objects.items()}


def _load(plan: Plan, objects: Mapping[str, Any]) -> CandidateSet | PairSet:
    recipe, how = plan.recipe, plan.recipe.model_dump(include=_READING)
    if recipe.pairs is not None:
        pairs: PairSet = load_pairs(objects.get("pairs", recipe.pairs), **how)
        return pairs
    # Who answers anew needs no responses: a file of prompts will do.
    load = load_candidates if plan.method.policy == "none" else load_prompts
    rows: CandidateSet = load(objects.get("candidates", recipe.candidates), **how)
    return keep_sources(rows, recipe.sources) if recipe.sources is not None else rows


# Of pairs that are read as candidates: a judge that scores them replaces their labels.
def _measure_reversal(recipe: Recipe, sources: Any, judge: Judge, account: Account) -> None:
    how = recipe.model_dump(include=_READING)
    for source in () if recipe.sources else sources if is_names(sources) else [sources]:
        if Reading(source, "candidates", ReadOptions(**how)).format.kind == "pairs":
            account.reversal = measure_reversal(load_pairs(source, **how), judge)[0]
            check_reversal(account.reversal, accepted=recipe.accept_reversal, judge=judge.name)


def _opened(
    plan: Plan, judge: Any, sampler: Any, stack: ExitStack
) -> tuple[Judge | None, Sampler | None, dict[str, Judge]]:
    # What is loaded here (a server, a model) is also closed here; what was brought stays open.
    recipe = plan.recipe
    if judge is None and recipe.judge is not None:
        judge = stack.enter_context(as_judge(recipe.judge))
    if sampler is None and recipe.policy is not None:
        how = recipe.sampling.model_copy(update={"seed": recipe.seed})
        sampler = stack.enter_context(as_sampler(recipe.policy, how, options=recipe))
    specs: dict[str, str] = getattr(plan.settings, "aspects", {})
    aspects = {name: stack.enter_context(as_judge(spec)) for name, spec in specs.items()}
    return judge, sampler, aspects


def _groups(materials: Materials) -> Iterator[Group]:
    recipe, account = materials.plan.recipe, materials.account
    groups = groups_of(materials)
    if recipe.ties != "keep":
        groups = without_ties(groups, account=account)
    if materials.judge is not None:
        groups = with_judge_probability(groups, materials.judge)
    if recipe.augment is not None:
        groups = reward_augmented(groups, account=account, **recipe.augment.model_dump())
    return filtered(groups, recipe.filters, account=account)


def _result(materials: Materials, dataset: Dataset, report: LoadReport) -> BuildResult:
    plan, account, recipe = materials.plan, materials.account, materials.plan.recipe
    datasets = parted(dataset, recipe.splits, seed=recipe.seed)
    statistics = part_statistics(datasets, plan.name, materials.judge, notes=account.notes)
    parts = {
        part: {
            name: PairSet(
                rows,
                LoadReport(
                    report.source, f"built: {plan.name}, {part}, {name}", len(rows), len(rows)
                ),
            )
            for name, rows in splits.items()
        }
        for part, splits in datasets.items()
    }
    result = {
        "method": plan.name,
        "source": report.source,
        "judge": materials.judge.name if materials.judge is not None else None,
        "policy": materials.sampler.name if materials.sampler is not None else None,
        "license": recipe.license,
        "seed": recipe.seed,
        **account.as_dict(),
        "notes": [*account.notes, *report.notes, *gap_warnings(account, statistics)],
        "rows_quarantined": report.quarantined,
        "parts": {p: {name: len(s) for name, s in splits.items()} for p, splits in parts.items()},
        "statistics": {part: asdict(figures) for part, figures in statistics.items()},
    }
    # The quarantine file is a path on one machine: nothing that readers of the card can use.
    card = dataset_card(
        result=result,
        statistics=statistics,
        recipe=recipe.model_dump(mode="json", exclude={"quarantine_file"}),
    )
    return BuildResult(
        summary_of(result, statistics), result, parts=parts, statistics=statistics, card=card
    )


def _write(folder: Path, made: BuildResult) -> list[Path]:
    files = {
        folder / part / f"{name}.parquet": pairs
        for part, splits in made.parts.items()
        for name, pairs in splits.items()
    }
    for path, pairs in files.items():
        save_dataset(pairs.dataset, path)
    write_text(folder / CARD, made.card)
    write_json(folder / RESULT, made.result)
    facts = {name: made.result[name] for name in ("method", "source", "judge")}
    headline = f"{made.result['pairs_built']:,} pairs by {facts['method']}"
    write_result(folder, "build", headline=headline, facts=facts)  # last: all else is there
    return [*files, *(folder / name for name in (CARD, RESULT, CONFIG))]


# --- Each method, from the data that were loaded to groups of built pairs ------------------------


def groups_of(m: Materials) -> Iterator[Group]:
    """Build by the recipe's method.

    Args:
        m: Data, judge, policy, and where to count.

    Returns:
        The groups of pairs, as they are built.
    """
    recipe, settings, account = m.plan.recipe, m.plan.settings, m.account
    judge_name = None if m.judge is None else m.judge.name  # None: the dataset's scores are used
    match m.plan.name:
        case "tiers":
            groups = tier_pairs(
                m.candidates, settings.combinations, account=account, judge_name=judge_name
            )
        case "gap-quality":
            groups = gap_quality_pairs(
                lambda: m.candidates,
                account=account,
                judge_name=judge_name,
                **settings.model_dump(),
            )
        case "relabel":
            groups = relabelled(
                m.pairs, m.judge, account=account, accept_reversal=recipe.accept_reversal
            )
        case "keep":
            groups = _kept(m)
        case "mixing":
            groups = _mixed(m)
        case "preference-divergence":
            pairs = PairSet.of(whole_pairs(m.pairs, account))
            groups = least_divergent(
                pairs,
                aspect_margins(pairs, m.aspects),
                share=settings.share,
                judge_name=", ".join(f"{name}: {who.name}" for name, who in m.aspects.items()),
                account=account,
                accept_reversal=recipe.accept_reversal,
            )
        case "principled":
            groups = principled_pairs(
                m.prompts,
                m.sampler,
                principles=settings.principles,
                seed=recipe.seed,
                ledger=m.ledger,
                account=account,
            )
        case "per-prompt":
            groups = _per_prompt(m)
        case way:
            rows = m.candidates
            if way in ("on-policy", "other-policy"):
                rows = rescored(m.answers(m.prompts, settings.answers), m.judge)
            groups = pairs_by_choice(
                rows,
                _CHOICES[getattr(settings, "choose", way)](settings, recipe.seed),
                method=way,
                account=account,
                judge_name=judge_name,
                minimum_gap=getattr(settings, "min_gap", 0.0),
            )
    return groups


# Of a method's settings and the seed: which two responses of a prompt meet.
_CHOICES: dict[str, Callable[[Any, int], Choose]] = {
    "best-vs-worst": lambda settings, seed: best_vs_worst,
    "max-gap": lambda settings, seed: best_vs_worst,
    "best-vs-second": lambda settings, seed: best_vs_second,
    "best-vs-random": lambda settings, seed: partial(best_vs_random, seed=seed),
    "all-pairs": lambda settings, seed: partial(all_pairs, k=getattr(settings, "k", None)),
    "rejection-sampling": lambda settings, seed: partial(
        rejection_pairs, **settings.model_dump(), seed=seed
    ),
}


def _kept(m: Materials) -> Iterator[Group]:
    for pair in whole_pairs(m.pairs, m.account):
        m.account.prompts, m.account.pairs = m.account.prompts + 1, m.account.pairs + 1
        yield [Built(pair, "keep", "keep", gap=score_gap(pair))]


def _mixed(m: Materials) -> Iterator[Group]:
    # On disk, since the pairs are read three times: for their prompts, the drawn ones, and to mix.
    pairs, account = PairSet.of(whole_pairs(m.pairs, m.account)), m.account
    how = {"share": m.plan.settings.share, "seed": m.plan.recipe.seed}
    is_drawn = draw_prompts(pairs.dataset["prompt_id"], **how, account=account)
    prompts = {pair.prompt_id: pair.prompt for pair in pairs if is_drawn(pair.prompt_id)}
    answers = CandidateSet.of(m.answers(_without_responses(prompts), m.plan.settings.answers))
    return mixed_pairs(pairs, answers, m.judge, is_drawn=is_drawn, account=account)


def _without_responses(ids: Mapping[str, Prompt]) -> list[Candidates]:
    return [Candidates(prompt_id, prompt, (), (), ()) for prompt_id, prompt in ids.items()]


def _per_prompt(m: Materials) -> Iterator[Group]:
    recipe, settings, account = m.plan.recipe, m.plan.settings, m.account
    measured = read_measurement(Path(settings.measurement))
    on_policy = recipe.on_policy or str(Path(settings.measurement) / "candidates.parquet")
    InputError.unless(
        recipe.on_policy is not None or Path(on_policy).exists(),
        saw=f"{settings.measurement} without candidates.parquet",
        expected="the policy's own answers",
        cure="name them as on_policy: (those that the measurement took as --on-policy)",
    )
    answers = {row.prompt_id: row for row in load_candidates(on_policy)}
    sides = Account()  # what both sides left out is told apart from the prompts' own counts
    # First, since too many reversed labels stop the build, before anything is sampled.
    off_groups = relabelled(m.pairs, m.judge, account=sides, accept_reversal=recipe.accept_reversal)
    account.reversal = sides.reversal
    if settings.budget is not None:
        pairs = PairSet.of(whole_pairs(m.pairs, Account()))  # counted below
        measured, more = sharpen(
            measured,
            {row.prompt_id: row for row in pairs_to_candidates(pairs)},
            sampler=m.sampler,
            judge=m.judge,
            budget=settings.budget,
            seed=recipe.seed,
            ledger=m.ledger,
            account=account,
        )
        answers |= {key: joined(answers.get(key), row) for key, row in more.items()}
    on_groups = pairs_by_choice(
        rescored(answers.values(), m.judge),
        best_vs_worst,
        method="on-policy",
        account=sides,
        judge_name=m.judge.name,
    )
    yield from per_prompt_pairs(on_groups, off_groups, measured, account=account)
    account.skipped.update(sides.skipped)
    account.examples |= sides.examples
    account.figures |= {f"off_policy_{name}": count for name, count in sides.figures.items()}
    account.figures |= {"overall_stage": measured.stage, "overall_side": measured.overall}
