"""`diagnose`: what is in a dataset of pairs, and what training on it could do."""

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from prefstage.core.errors import InputError
from prefstage.data.records import Candidates, Pair
from prefstage.data.sets import PairSet
from prefstage.diagnosing.config import DiagnosisConfig
from prefstage.diagnosing.data import data_figures, diversity_of
from prefstage.diagnosing.judges import (
    JudgeFigures,
    answer_quality,
    judge_figures,
    policy_preference,
    preference_consistency,
)
from prefstage.diagnosing.learning import learnability_of, rankings_of
from prefstage.diagnosing.scoring import PairLogProbs, ScoredBy, own_distinctness, score_pairs
from prefstage.diagnosing.tables import tables_of, warnings_of
from prefstage.judging.base import Judge


@dataclass(frozen=True)
class Diagnosis:
    """A dataset's diagnosis: one report object.

    Attributes:
        report: Every figure, and the data of figures (histograms), JSON-serialisable: keys
            `dataset`, `policy`, `reference`, `data`, `rankings`, `learnability`, `judge`,
            `second_judge`, `consistency`, `own_answers`, `distinctness`, `diversity`,
            `warnings`, `left_out`, `seconds`; what could not be computed without a model or
            judge is null.
        policy_log_probs: Log-probs of the pairs under the policy, pair by pair.
        reference_log_probs: Under the reference.
    """

    report: Mapping[str, Any]
    policy_log_probs: PairLogProbs | None = None
    reference_log_probs: PairLogProbs | None = None

    @property
    def warnings(self) -> list[dict[str, str]]:
        """What would hurt training: `what`, `figure`, `remedy`."""
        return list(self.report["warnings"])

    @property
    def tables(self) -> dict[str, str]:
        """Markdown tables by title."""
        return tables_of(self.report)

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return dict(self.report)

    def as_markdown(self) -> str:
        """The whole report as text."""
        name = self.report["policy"]
        title = f"# {self.report['dataset']}" + (f", {name}" if name else "")
        parts = [title, *(f"## {head}\n\n{table}" for head, table in self.tables.items())]
        told = [
            f"- {each['what']} ({each['figure']}). Remedy: {each['remedy']}."
            for each in self.warnings
        ]
        parts.append("## Warnings\n\n" + ("\n".join(told) or "None."))
        left = self.report["left_out"]
        parts += ["## Left out\n\n" + "\n".join(f"- {why}: {n}" for why, n in left.items())]
        return "\n\n".join(parts if left else parts[:-1]) + "\n"


def diagnose(
    pairs: Iterable[Pair],
    *,
    name: str = "pairs",
    policy: ScoredBy | None = None,
    reference: ScoredBy | None = None,
    judge: Judge | None = None,
    second_judge: Judge | None = None,
    on_policy: Sequence[Candidates] | None = None,
    config: DiagnosisConfig | None = None,
) -> Diagnosis:
    """Say what is in a dataset of pairs, and what training a policy on it could do.

    Every different response is scored once by each model, every pair judged once by each
    judge; all tables come from that.

    Args:
        pairs: The pairs.
        name: The dataset's, for tables.
        policy: The model that is (or will be) trained.
        reference: What training started from; None before training, when that is the
            policy itself.
        judge: Who says which response is better.
        second_judge: Another one, for their consistency.
        on_policy: The policy's own answers, to compare among themselves, with the pairs'
            responses by the judge, and by the policy's own log-probs.
        config: β, target loss, limits, intervals.

    Returns:
        The report.

    Raises:
        InputError: If there is no pair, or something is given that nothing can use.

    Source:
        arXiv:2405.19534 (rankings, learnability), arXiv:2508.18312, Table 5 (scores),
        arXiv:2508.10530, Definition 5.5, Eq. 14 and App. B.5.
    """
    config, started = config or DiagnosisConfig(), time.perf_counter()
    _check(policy, reference, judge, second_judge)
    usable, left_out = _usable(pairs, name, config)
    seen = _observe(usable, policy, reference, judge, second_judge)
    report: dict[str, Any] = {
        "dataset": name,
        "policy": policy.name if policy else None,
        "reference": reference.name if reference else None,
        "config": config.model_dump(mode="json"),
        "data": asdict(data_figures(usable)),
        **_scored_figures(seen, config),
        **_judged_figures(seen),
        **_own_figures(on_policy, seen, policy, judge, seed=config.seed),
        "left_out": left_out,
    }
    if report["rankings"] is not None:
        left_out |= report["rankings"]["left_out"]
    report["warnings"] = warnings_of(report)
    report["seconds"] = {**seen.seconds, "total": time.perf_counter() - started}
    return Diagnosis(report, seen.scored, seen.before)


@dataclass(frozen=True)
class _Observations:
    """What models and judges say of the pairs: every table comes from this.

    Attributes:
        pairs: The pairs that were used.
        scored: Their log-probs under the policy.
        before: Under the reference.
        judged: What each judge says; none, the first's, or both.
        seconds: That scoring and judging took.
    """

    pairs: Sequence[Pair]
    scored: PairLogProbs | None
    before: PairLogProbs | None
    judged: Sequence[JudgeFigures]
    seconds: Mapping[str, float]


def _observe(
    pairs: Sequence[Pair],
    policy: ScoredBy | None,
    reference: ScoredBy | None,
    judge: Judge | None,
    second_judge: Judge | None,
) -> _Observations:
    """Score the pairs once by each model, judge them once by each judge."""
    scored = score_pairs(pairs, policy.scorer, policy.encoder) if policy else None
    before = score_pairs(pairs, reference.scorer, reference.encoder) if reference else None
    asked = time.perf_counter()
    judged = [judge_figures(pairs, each) for each in (judge, second_judge) if each is not None]
    seconds = {
        "scoring": sum(each.seconds for each in (scored, before) if each is not None),
        "judging": time.perf_counter() - asked,
    }
    return _Observations(pairs, scored, before, judged, seconds)


def _check(
    policy: ScoredBy | None,
    reference: ScoredBy | None,
    judge: Judge | None,
    second_judge: Judge | None,
) -> None:
    lacking = {
        "reference without a policy": reference is not None and policy is None,
        "second judge without a first": second_judge is not None and judge is None,
    }
    for what, wrong in lacking.items():
        if wrong:
            raise InputError.of(
                saw=f"a {what}", expected="both, or the first alone", cure="give both"
            )


def _usable(
    pairs: Iterable[Pair], name: str, config: DiagnosisConfig
) -> tuple[Sequence[Pair], dict[str, int]]:
    """The sample's pairs that have both sides, and what was left out.

    The sample is taken first. Pairs that a set holds on disk stay there, read when needed.
    """
    held = pairs if isinstance(pairs, Sequence | PairSet) else PairSet.of(pairs)
    rows = cast("Sequence[Pair]", held)  # a set has a sequence's length, places and order
    left_out = dict[str, int]()
    if config.max_pairs is not None and config.max_pairs < len(rows):
        left_out["pairs beyond max_pairs"] = len(rows) - config.max_pairs
        places = random.Random(config.seed).sample(range(len(rows)), config.max_pairs)
        rows = [rows[place] for place in sorted(places)]
    whole = sum(bool(pair.chosen and pair.rejected) for pair in rows)
    if not whole:
        raise InputError.of(
            saw=f"no pair in {name}", expected="at least one", cure="name another dataset"
        )
    if whole < len(rows):
        left_out["pairs without one of their sides"] = len(rows) - whole
        rows = [pair for pair in rows if pair.chosen and pair.rejected]
    return rows, left_out


def _scored_figures(seen: _Observations, config: DiagnosisConfig) -> dict[str, Any]:
    """What the models' log-probs say; null without them."""
    pairs, scored, start = seen.pairs, seen.scored, seen.before or seen.scored
    rankings = rankings_of(pairs, scored, seen.before, config) if scored else None
    learnability = learnability_of(pairs, start, config) if start else None
    return {
        "rankings": asdict(rankings) if rankings else None,
        "learnability": asdict(learnability) if learnability else None,
    }


def _judged_figures(seen: _Observations) -> dict[str, Any]:
    """What each judge says, and how far judges and policy agree; null without them."""
    return {
        "judge": _told(seen.judged, 0),
        "second_judge": _told(seen.judged, 1),
        "consistency": _consistency(seen.judged, seen.scored),
    }


def _own_figures(
    own: Sequence[Candidates] | None,
    seen: _Observations,
    policy: ScoredBy | None,
    judge: Judge | None,
    *,
    seed: int,
) -> dict[str, Any]:
    """How the policy's own answers compare with the pairs' responses; null without them."""
    found: dict[str, Any] = {"own_answers": None, "distinctness": None, "diversity": None}
    if own is None:
        return found
    found["diversity"] = diversity_of(own)
    if judge is not None:
        found["own_answers"] = answer_quality(own, seen.pairs, judge, seed=seed)
    if policy is not None and seen.scored is not None:
        found["distinctness"] = own_distinctness(own, seen.pairs, seen.scored, policy)
    return found


def _told(judged: Sequence[JudgeFigures], place: int) -> dict[str, Any] | None:
    if place >= len(judged):
        return None
    found = asdict(judged[place])
    del found["probabilities"]
    return found


def _consistency(
    judged: Sequence[JudgeFigures], scored: PairLogProbs | None
) -> dict[str, float] | None:
    roles = ("judge", "second judge")
    sides = {role: each.probabilities for role, each in zip(roles, judged, strict=False)}
    if scored is not None:
        sides["policy"] = policy_preference(scored.chosen, scored.rejected)
    names = list(sides)
    return {
        f"{one} and {other}": preference_consistency(sides[one], sides[other])
        for place, one in enumerate(names)
        for other in names[place + 1 :]
    } or None
