"""Each method of a recipe, from the data that were loaded to groups of built pairs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from prefstage.building.account import Account
from prefstage.building.answers import mixed_pairs, plan_mixing, policy_answers, principled_pairs
from prefstage.building.built import Built, Group, score_gap
from prefstage.building.choosing import (
    Choose,
    all_pairs,
    best_vs_random,
    best_vs_second,
    best_vs_worst,
    pairs_by_choice,
    rejection_pairs,
    rescored,
)
from prefstage.building.per_prompt import per_prompt_pairs, read_measurement, sharpen
from prefstage.building.quality import gap_quality_pairs, tier_pairs
from prefstage.building.recipe import Plan
from prefstage.building.relabelling import (
    aspect_margins,
    least_divergent,
    relabelled,
    whole_pairs,
)
from prefstage.core.errors import InputError
from prefstage.core.ledger import Ledger
from prefstage.data.loading import load_candidates, pairs_to_candidates
from prefstage.data.records import Candidates, generations_of
from prefstage.data.sets import CandidateSet, PairSet
from prefstage.judging.base import Judge


@dataclass(frozen=True)
class Materials:
    """What a method works with; what its recipe does not need is None.

    Attributes:
        plan: The recipe, checked.
        account: What to count in.
        ledger: Where answers are kept as they arrive.
        candidates: `CandidateSet`: prompts with responses, with the judge's scores if there is
            a judge.
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
    def judge_name(self) -> str | None:
        """The judge's name; None where the dataset's scores are used."""
        return None if self.judge is None else str(self.judge.name)

    @property
    def prompts(self) -> list[Candidates]:
        """Each prompt once, without responses."""
        rows = self.candidates if self.candidates is not None else self.pairs
        prompts = {row.prompt_id: row.prompt for row in rows}
        return [_bare(prompt_id, prompt) for prompt_id, prompt in prompts.items()]

    def answers(self, prompts: list[Candidates], count: int) -> list[Candidates]:
        """The policy's answers to prompts, `count` each."""
        return policy_answers(
            prompts, self.sampler, answers=count, ledger=self.ledger, account=self.account
        )


def groups_of(materials: Materials) -> Iterator[Group]:
    """Build by the recipe's method.

    Args:
        materials: Data, judge, policy, and where to count.

    Returns:
        The groups of pairs, as they are built.
    """
    name = materials.plan.name
    return _by_choice(materials) if name in _CHOICES else _BUILDERS[name](materials)


def _bare(prompt_id: str, prompt: Any) -> Candidates:
    return Candidates(prompt_id, prompt, (), (), ())


_CHOICES: dict[str, Callable[[Any, int], Choose]] = {
    "best-vs-worst": lambda settings, seed: best_vs_worst,
    "max-gap": lambda settings, seed: best_vs_worst,
    "best-vs-second": lambda settings, seed: best_vs_second,
    "best-vs-random": lambda settings, seed: best_vs_random(seed),
    "all-pairs": lambda settings, seed: all_pairs(getattr(settings, "k", None)),
    "rejection-sampling": lambda settings, seed: rejection_pairs(
        accepted=settings.accepted, beta=settings.beta, seed=seed
    ),
}
"""Of a method's settings and the seed: which two responses of a prompt meet."""


def _by_choice(m: Materials, *, answers: bool = False) -> Iterator[Group]:
    settings, seed = m.plan.settings, m.plan.recipe.seed
    rows = m.candidates
    if answers:
        rows = rescored(m.answers(m.prompts, settings.answers), m.judge)
    return pairs_by_choice(
        rows,
        _CHOICES[settings.choose if answers else m.plan.name](settings, seed),
        method=m.plan.name,
        account=m.account,
        judge_name=m.judge_name,
        minimum_gap=getattr(settings, "min_gap", 0.0),
    )


def _tiers(m: Materials) -> Iterator[Group]:
    return tier_pairs(
        m.candidates, m.plan.settings.combinations, account=m.account, judge_name=m.judge_name
    )


def _gaps(m: Materials) -> Iterator[Group]:
    return gap_quality_pairs(
        lambda: m.candidates,
        account=m.account,
        judge_name=m.judge_name,
        **m.plan.settings.model_dump(),
    )


def _relabel(m: Materials) -> Iterator[Group]:
    accepted = m.plan.recipe.accept_reversal
    return relabelled(m.pairs, m.judge, account=m.account, accept_reversal=accepted)


def _keep(m: Materials) -> Iterator[Group]:
    for pair in whole_pairs(m.pairs, m.account):
        m.account.prompts += 1
        m.account.pairs += 1
        yield [Built(pair, "keep", "keep", gap=score_gap(pair))]


def _mixing(m: Materials) -> Iterator[Group]:
    settings = m.plan.settings
    # On disk, since the pairs are read three times: for their prompts, the drawn ones, and to mix.
    pairs = PairSet.of(whole_pairs(m.pairs, m.account))
    plan = plan_mixing(pairs.dataset["prompt_id"], share=settings.share, seed=m.plan.recipe.seed)
    prompts = {pair.prompt_id: pair.prompt for pair in pairs if plan.is_drawn(pair.prompt_id)}
    answers = m.answers([_bare(*prompt) for prompt in prompts.items()], settings.answers)
    return mixed_pairs(pairs, CandidateSet.of(answers), m.judge, plan=plan, account=m.account)


def _divergence(m: Materials) -> Iterator[Group]:
    pairs = PairSet.of(whole_pairs(m.pairs, m.account))
    return least_divergent(
        pairs,
        aspect_margins(pairs, m.aspects),
        share=m.plan.settings.share,
        judge_name=", ".join(f"{name}: {judge.name}" for name, judge in m.aspects.items()),
        account=m.account,
        accept_reversal=m.plan.recipe.accept_reversal,
    )


def _principled(m: Materials) -> Iterator[Group]:
    return principled_pairs(
        m.prompts,
        m.sampler,
        principles=m.plan.settings.principles,
        seed=m.plan.recipe.seed,
        ledger=m.ledger,
        account=m.account,
    )


def _per_prompt(m: Materials) -> Iterator[Group]:
    recipe, settings, account = m.plan.recipe, m.plan.settings, m.account
    measured = read_measurement(Path(settings.measurement))
    on_policy = recipe.on_policy or str(Path(settings.measurement) / "candidates.parquet")
    if recipe.on_policy is None and not Path(on_policy).exists():
        raise InputError.of(
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
        answers |= {key: _joined(answers.get(key), row) for key, row in more.items()}
    on_groups = pairs_by_choice(
        rescored(answers.values(), m.judge),
        best_vs_worst,
        method="on-policy",
        account=sides,
        judge_name=m.judge_name,
    )
    yield from per_prompt_pairs(on_groups, off_groups, measured, account=account)
    account.skipped.update(sides.skipped)
    account.examples |= sides.examples
    account.figures |= {f"off_policy_{name}": count for name, count in sides.figures.items()}
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


_BUILDERS: dict[str, Callable[[Materials], Iterator[Group]]] = {
    "tiers": _tiers,
    "gap-quality": _gaps,
    "relabel": _relabel,
    "keep": _keep,
    "mixing": _mixing,
    "on-policy": partial(_by_choice, answers=True),
    "other-policy": partial(_by_choice, answers=True),
    "preference-divergence": _divergence,
    "principled": _principled,
    "per-prompt": _per_prompt,
}
