"""Each method of a recipe, from the data that were loaded to groups of built pairs."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from prefstage.building.account import Account
from prefstage.building.budget import sharpen
from prefstage.building.built import Built, Group
from prefstage.building.choosing import (
    Choose,
    all_pairs,
    best_vs_random,
    best_vs_second,
    best_vs_worst,
    pairs_by_choice,
    rescored,
)
from prefstage.building.divergence import aspect_margins, least_divergent
from prefstage.building.gaps import gap_quality_pairs
from prefstage.building.mixing import mixed_pairs, own_answers, plan_mixing
from prefstage.building.per_prompt import per_prompt_pairs, read_measurement
from prefstage.building.principled import principled_pairs
from prefstage.building.recipe import Plan
from prefstage.building.rejection import rejection_pairs
from prefstage.building.relabelling import relabelled
from prefstage.building.tiers import tier_pairs
from prefstage.building.whole import whole_pairs
from prefstage.core.errors import InputError
from prefstage.data.grouping import pairs_to_candidates
from prefstage.data.loading import load_candidates
from prefstage.data.records import Candidates, generations_of
from prefstage.data.sets import CandidateSet, PairSet
from prefstage.judging.base import Judge
from prefstage.sampling.base import Sampler

ANSWERS = "answers.jsonl"

T = TypeVar("T")


@dataclass(frozen=True)
class Materials:
    """What a method works with.

    Attributes:
        plan: The recipe, checked.
        account: What to count in.
        folder: Where answers are kept as they arrive.
        candidates: Prompts with responses, with the judge's scores if there is a judge.
        pairs: The pairs.
        judge: Who scores.
        sampler: Who answers.
        aspects: A judge an aspect, for preference divergence.
    """

    plan: Plan
    account: Account
    folder: Path
    candidates: CandidateSet | None
    pairs: PairSet | None
    judge: Judge | None
    sampler: Sampler | None
    aspects: dict[str, Judge]

    @property
    def rows(self) -> CandidateSet:
        """The candidates."""
        return _there(self.candidates, "candidates")

    @property
    def given_pairs(self) -> PairSet:
        """The pairs."""
        return _there(self.pairs, "pairs")

    @property
    def who_judges(self) -> Judge:
        """The judge."""
        return _there(self.judge, "judge")

    @property
    def who_answers(self) -> Sampler:
        """The policy."""
        return _there(self.sampler, "policy")

    @property
    def prompts(self) -> list[Candidates]:
        """Each prompt once."""
        rows = self.candidates if self.candidates is not None else self.given_pairs
        found = {row.prompt_id: row.prompt for row in rows}
        return [Candidates(prompt_id, prompt, (), (), ()) for prompt_id, prompt in found.items()]


def groups_of(materials: Materials) -> Iterator[Group]:
    """Build by the recipe's method.

    Args:
        materials: Data, judge, policy, and where to count.

    Returns:
        The groups of pairs, as they are built.
    """
    return _BUILDERS[materials.plan.name](materials)


def _by_choice(materials: Materials) -> Iterator[Group]:
    plan = materials.plan
    seed = plan.recipe.seed
    return pairs_by_choice(
        materials.rows,
        _choice(plan.name, plan.settings, seed),
        method=plan.name,
        account=materials.account,
        judge_name=_name(materials),
        minimum_gap=getattr(plan.settings, "min_gap", 0.0),
    )


def _choice(name: str, settings: Any, seed: int) -> Choose:
    choices: dict[str, Callable[[], Choose]] = {
        "best-vs-worst": lambda: best_vs_worst,
        "max-gap": lambda: best_vs_worst,
        "best-vs-second": lambda: best_vs_second,
        "best-vs-random": lambda: best_vs_random(seed),
        "all-pairs": lambda: all_pairs(getattr(settings, "k", None)),
        "rejection-sampling": lambda: rejection_pairs(
            accepted=settings.accepted, beta=settings.beta, seed=seed
        ),
    }
    return choices[name]()


def _tiers(materials: Materials) -> Iterator[Group]:
    return tier_pairs(
        materials.rows,
        materials.plan.settings.combinations,
        account=materials.account,
        judge_name=_name(materials),
    )


def _gaps(materials: Materials) -> Iterator[Group]:
    return gap_quality_pairs(
        lambda: materials.rows,
        account=materials.account,
        judge_name=_name(materials),
        **materials.plan.settings.model_dump(),
    )


def _relabel(materials: Materials) -> Iterator[Group]:
    return relabelled(
        materials.given_pairs,
        materials.who_judges,
        account=materials.account,
        accept_reversal=materials.plan.recipe.accept_reversal,
    )


def _keep(materials: Materials) -> Iterator[Group]:
    for pair in whole_pairs(materials.given_pairs, materials.account):
        materials.account.prompts += 1
        materials.account.pairs += 1
        known = pair.score_chosen is not None and pair.score_rejected is not None
        gap = (pair.score_chosen or 0.0) - (pair.score_rejected or 0.0) if known else None
        yield [Built(pair, "keep", "keep", gap=gap)]


def _mixing(materials: Materials) -> Iterator[Group]:
    plan, settings = materials.plan, materials.plan.settings
    pairs = PairSet.of(whole_pairs(materials.given_pairs, materials.account))
    mixing = plan_mixing(pairs.dataset["prompt_id"], share=settings.share, seed=plan.recipe.seed)
    drawn = (pair for pair in pairs if mixing.is_drawn(pair.prompt_id))
    prompts = {
        pair.prompt_id: Candidates(pair.prompt_id, pair.prompt, (), (), ()) for pair in drawn
    }
    answers = _answers(materials, list(prompts.values()), settings.answers)
    return mixed_pairs(
        pairs,
        CandidateSet.of(answers),
        materials.who_judges,
        plan=mixing,
        account=materials.account,
    )


def _own(materials: Materials) -> Iterator[Group]:
    plan, settings = materials.plan, materials.plan.settings
    answers = _answers(materials, materials.prompts, settings.answers)
    return pairs_by_choice(
        rescored(answers, materials.who_judges),
        _choice(settings.choose, settings, plan.recipe.seed),
        method=plan.name,
        account=materials.account,
        judge_name=materials.who_judges.name,
        minimum_gap=settings.min_gap,
    )


def _answers(materials: Materials, prompts: list[Candidates], count: int) -> list[Candidates]:
    return own_answers(
        prompts,
        materials.who_answers,
        answers=count,
        store=materials.folder / ANSWERS,
        account=materials.account,
    )


def _divergence(materials: Materials) -> Iterator[Group]:
    pairs = PairSet.of(whole_pairs(materials.given_pairs, materials.account))
    margins = aspect_margins(pairs, materials.aspects)
    return least_divergent(
        pairs,
        margins,
        share=materials.plan.settings.share,
        judge_name=", ".join(f"{name}: {who.name}" for name, who in materials.aspects.items()),
        account=materials.account,
        accept_reversal=materials.plan.recipe.accept_reversal,
    )


def _principled(materials: Materials) -> Iterator[Group]:
    return principled_pairs(
        materials.prompts,
        materials.who_answers,
        principles=materials.plan.settings.principles,
        seed=materials.plan.recipe.seed,
        store=materials.folder / ANSWERS,
        account=materials.account,
    )


def _per_prompt(materials: Materials) -> Iterator[Group]:
    plan, account = materials.plan, materials.account
    measured = read_measurement(Path(plan.settings.measurement))
    on_file = plan.recipe.on_policy or str(Path(plan.settings.measurement) / "candidates.parquet")
    if plan.recipe.on_policy is None and not Path(on_file).exists():
        raise InputError.of(
            saw=f"{plan.settings.measurement} without candidates.parquet",
            expected="the policy's own answers",
            cure="name them as on_policy: (those that the measurement took as --on)",
        )
    own = {row.prompt_id: row for row in load_candidates(on_file)}
    inner = Account()
    off_groups = relabelled(  # first, since it may stop the build before anything is sampled
        materials.given_pairs,
        materials.who_judges,
        account=inner,
        accept_reversal=plan.recipe.accept_reversal,
    )
    account.reversal = inner.reversal
    if plan.settings.budget is not None:
        pairs = PairSet.of(whole_pairs(materials.given_pairs, Account()))  # counted below
        off = {row.prompt_id: row for row in pairs_to_candidates(pairs)}
        measured, more = sharpen(
            measured,
            off,
            sampler=materials.who_answers,
            judge=materials.who_judges,
            budget=plan.settings.budget,
            seed=plan.recipe.seed,
            store=materials.folder / ANSWERS,
            account=account,
        )
        own |= {key: _joined(own.get(key), row) for key, row in more.items()}
    on_groups = pairs_by_choice(
        rescored(own.values(), materials.who_judges),
        best_vs_worst,
        method="on-policy",
        account=inner,
        judge_name=materials.who_judges.name,
    )
    yield from per_prompt_pairs(on_groups, off_groups, measured, account=account)
    account.skipped.update(inner.skipped)
    account.examples |= inner.examples
    account.figures |= {f"off_policy_{name}": count for name, count in inner.figures.items()}
    account.figures |= {"overall_stage": measured.stage, "overall_side": measured.overall}


def _joined(row: Candidates | None, more: Candidates) -> Candidates:
    if row is None:
        return more
    generations = [part.generation(n) for part in (row, more) for n in range(len(part.responses))]
    return replace(
        row,
        responses=row.responses + more.responses,
        sources=row.sources + more.sources,
        scores=(None,) * (len(row.responses) + len(more.responses)),
        generations=generations_of(generations),
    )


def _name(materials: Materials) -> str | None:
    return materials.judge.name if materials.judge is not None else None


def _there(value: T | None, name: str) -> T:
    if value is None:
        raise InputError.of(
            saw=f"a method that needs {name}, without", expected=name, cure=f"set {name}"
        )
    return value


_CHOICES: Iterable[str] = (
    *("best-vs-worst", "best-vs-random", "best-vs-second"),
    *("max-gap", "all-pairs", "rejection-sampling"),
)
_BUILDERS: dict[str, Callable[[Materials], Iterator[Group]]] = {
    **dict.fromkeys(_CHOICES, _by_choice),
    "tiers": _tiers,
    "gap-quality": _gaps,
    "relabel": _relabel,
    "keep": _keep,
    "mixing": _mixing,
    "on-policy": _own,
    "other-policy": _own,
    "preference-divergence": _divergence,
    "principled": _principled,
    "per-prompt": _per_prompt,
}
