"""`diagnose`: what is in a dataset of pairs, and what training on it could do."""

import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from scipy.special import expit

from prefstage.core import (
    LEDGER,
    InputError,
    Outcome,
    as_config,
    run_folder,
    write_json,
    write_result,
    write_text,
)
from prefstage.data import Candidates, Pair, PairSet, load_candidates, load_pairs
from prefstage.data.sets import DataSource
from prefstage.diagnosing.config import DiagnoseSettings, DiagnosisConfig
from prefstage.diagnosing.figures import (
    data_figures,
    diversity_of,
    judge_figures,
    learnability_of,
    preference_consistency,
    rankings_of,
)
from prefstage.diagnosing.quality import answer_quality
from prefstage.diagnosing.scoring import (
    PairLogProbs,
    ScoredBy,
    as_scored_by,
    diagnose_orders,
    distinct_answers,
    score_pairs,
)
from prefstage.diagnosing.tables import as_text, order_table, ranking_table, tables_of, warnings_of
from prefstage.judging import Judge, as_judge, load_judge
from prefstage.judging.judged import stored_for

# What each setting is for: without that one nothing would read it.
_READ_WITH = {
    "store": "judge",
    "second_judge": "judge",
    "judge": "pairs",
    "on_policy": "pairs",
    **dict.fromkeys(
        ("reference", "cache", "ranked", "max_prompt_tokens", "max_response_tokens"), "policy"
    ),
}


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
        return {title: as_text(table) for title, table in tables_of(self.report).items()}

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return dict(self.report)

    def as_markdown(self) -> str:
        """The whole report as text."""
        names = ", ".join(filter(None, (self.report["dataset"], self.report["policy"])))
        sections = {
            **self.tables,
            "Warnings": "\n".join(
                [f"- {w['what']} ({w['figure']}). Remedy: {w['remedy']}." for w in self.warnings]
            )
            or "None.",
            "Left out": "\n".join(
                [f"- {why}: {count}" for why, count in self.report["left_out"].items()]
            ),
        }
        parts = [f"## {head}\n\n{text}" for head, text in sections.items() if text]
        return "\n\n".join([f"# {names}", *parts]) + "\n"


def diagnose(
    pairs: DataSource | Iterable[Pair],
    *,
    name: str = "pairs",
    policy: ScoredBy | str | Path | None = None,
    reference: ScoredBy | str | Path | None = None,
    judge: Any = None,
    second_judge: Any = None,
    on_policy: DataSource | None = None,
    config: DiagnosisConfig | Mapping[str, Any] | None = None,
    out: str | Path | None = None,
) -> Diagnosis:
    """Say what is in a dataset of pairs, and what training a policy on it could do.

    Every different response is scored once by each model, every pair judged once by each
    judge; all tables come from that.

    Args:
        pairs: The pairs: a record set, records, rows, a file, folder or Hub id.
        name: The dataset's, for tables.
        policy: The model that is (or will be) trained; also its folder or Hub id.
        reference: What training started from; None before training, when that is the
            policy itself.
        judge: Who says which response is better: a judge, a function of (a, b, prompt), or a
            specification as of `load_judge`, such as ``"reward:PATH"``.
        second_judge: Another one, for their consistency.
        on_policy: The policy's own answers, to compare among themselves, with the pairs'
            responses by the judge, and by the policy's own log-probs; candidates, as `pairs`.
        config: β, target loss, limits, intervals.
        out: Folder for report.md and report.json; None writes nothing.

    Returns:
        The report.

    Raises:
        ConfigError: If `config` has an unknown or wrong setting.
        InputError: If there is no pair, or something is passed that nothing can use.

    Source:
        arXiv:2405.19534 (rankings, learnability), arXiv:2508.18312, Table 5 (scores),
        arXiv:2508.10530, Definition 5.5, Eq. 14 and App. B.5.
    """
    started = time.perf_counter()
    config = as_config(DiagnosisConfig, config)
    _check_first(policy, reference, "a reference without a policy")
    _check_first(judge, second_judge, "a second judge without a first")
    rows, left_out = _usable(pairs, name, config)
    policy = None if policy is None else as_scored_by(policy)
    reference = None if reference is None else as_scored_by(reference)
    scored = score_pairs(rows, policy) if policy else None
    before = score_pairs(rows, reference) if reference else None
    judges = [as_judge(who) for who in (judge, second_judge) if who is not None]
    asked = time.perf_counter()
    judged = [judge_figures(rows, who) for who in judges]
    judging = time.perf_counter() - asked
    models = (policy, scored, judges[0] if judges else None)
    sides = dict(zip(("judge", "second judge"), (p for _, p in judged), strict=False))
    if scored is not None:
        # P_θ(y_w ≻ y_l | x) = σ(log π(y_w|x) - log π(y_l|x)): arXiv:2508.10530, Eq. 10
        sides["policy"] = expit(scored.chosen - scored.rejected)
    rankings = rankings_of(rows, scored, before, config) if scored else None
    start = before or scored
    report: dict[str, Any] = {
        "dataset": name,
        "policy": policy.name if policy else None,
        "reference": reference.name if reference else None,
        "config": config.model_dump(mode="json"),
        "data": data_figures(rows),
        "rankings": rankings,
        "learnability": learnability_of(rows, start, config) if start else None,
        "judge": judged[0][0] if judged else None,
        "second_judge": judged[1][0] if len(judged) > 1 else None,
        "consistency": {
            f"{a} and {b}": preference_consistency(sides[a], sides[b])
            for a, b in combinations(sides, 2)
        }
        or None,
        **_answers(on_policy, rows, models, config),
        "left_out": left_out | (rankings["left_out"] if rankings else {}),
    }
    report["warnings"] = warnings_of(report)
    report["seconds"] = {
        "scoring": sum(model.seconds for model in (scored, before) if model is not None),
        "judging": judging,
        "total": time.perf_counter() - started,
    }
    diagnosis = Diagnosis(report, scored, before)
    if out is not None:
        reported([diagnosis], out=Path(out))
    return diagnosis


def _check_first(first: Any, second: Any, what: str) -> None:
    InputError.unless(
        second is None or first is not None,
        saw=what,
        expected="both, or the first alone",
        cure="give both",
    )


# The sample's pairs that have both sides, and what was left out; the sample is taken first. Pairs
# that a set holds on disk stay there, read when needed.
def _usable(
    pairs: Any, name: str, config: DiagnosisConfig
) -> tuple[Sequence[Pair], dict[str, int]]:
    rows, left_out = pairs, dict[str, int]()
    if isinstance(pairs, Iterable) and not isinstance(pairs, str | Sequence | PairSet):
        rows = PairSet.of(pairs)
    elif not isinstance(pairs, Sequence) or not all(isinstance(pair, Pair) for pair in pairs):
        rows = load_pairs(pairs)
    if config.max_pairs is not None and config.max_pairs < len(rows):
        left_out["pairs beyond max_pairs"] = len(rows) - config.max_pairs
        drawn = random.Random(config.seed).sample(range(len(rows)), config.max_pairs)
        rows = [rows[index] for index in sorted(drawn)]
    whole = sum(bool(pair.chosen and pair.rejected) for pair in rows)
    InputError.unless(
        whole,
        saw=f"no pair in {name}",
        expected="at least one",
        cure="name another dataset",
    )
    if whole < len(rows):
        left_out["pairs without one of their sides"] = len(rows) - whole
        rows = [pair for pair in rows if pair.chosen and pair.rejected]
    return rows, left_out


# How the policy's own answers compare with the pairs' responses; null without them.
def _answers(
    on_policy: Any,
    pairs: Sequence[Pair],
    models: tuple[ScoredBy | None, PairLogProbs | None, Judge | None],
    config: DiagnosisConfig,
) -> dict[str, Any]:
    policy, scored, judge = models
    if on_policy is None:
        return dict.fromkeys(("own_answers", "distinctness", "diversity"))
    if not isinstance(on_policy, list) or not all(isinstance(r, Candidates) for r in on_policy):
        on_policy = list(load_candidates(on_policy))
    return {
        "own_answers": judge and answer_quality(on_policy, pairs, judge, config),
        "distinctness": distinct_answers(on_policy, pairs, scored, policy)
        if policy is not None and scored is not None
        else None,
        "diversity": diversity_of(on_policy),
    }


def reported(
    diagnoses: Sequence[Diagnosis],
    orders: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
    *,
    out: Path | None,
) -> Outcome:
    """Put diagnoses into one report, and write it.

    Args:
        diagnoses: Of one dataset and policy, or of several.
        orders: Figures of whole orders of scored responses, as `diagnose_orders` finds them.
        notes: Remarks about the data.
        out: Folder for report.md and report.json; None writes nothing.

    Returns:
        The report, as Markdown and as JSON.
    """
    reports = [diagnosis.as_dict() for diagnosis in diagnoses]
    parts = [diagnosis.as_markdown() for diagnosis in diagnoses]
    if len(reports) > 1 and any(report["rankings"] for report in reports):
        parts.insert(0, f"# All\n\n{as_text(ranking_table(reports))}\n")
    if orders:
        parts.append(f"# Whole orders of scored responses\n\n{as_text(order_table(orders))}\n")
    text = "\n".join([*parts, *(f"note: {note}" for note in notes)])
    result = {"diagnoses": reports, "orders": list(orders), "notes": list(notes)}
    if out is None:
        return Outcome(text, result)
    write_text(out / "report.md", text + "\n")
    write_json(out / "report.json", result)
    names = ", ".join(report["dataset"] for report in reports)
    count = sum(len(report["warnings"]) for report in reports)
    write_result(
        out,
        "diagnose",
        headline=f"{count} warning{'' if count == 1 else 's'} about {names}",
        facts={"datasets": names},
    )
    return Outcome(text, result, [out / "report.md", out / "report.json"])


def run_diagnosis(settings: DiagnoseSettings, *, out: Path | None = None) -> Outcome:
    """Diagnose datasets as `diagnose` does, with models and judges loaded as the settings say.

    Args:
        settings: What is diagnosed, by whom, and how.
        out: Folder for report.md and report.json; None writes nothing.

    Returns:
        The report, as Markdown and as JSON.

    Raises:
        InputError: If there is no dataset, two have the same name, or nothing reads a setting.
        DataError: If data cannot be read.
        ModelError: If a policy cannot be loaded.
    """
    pairs, ranked = list(_named(settings.pairs)), list(_named(settings.ranked))
    _check(settings, [*pairs, *ranked])
    loaded: dict[str, Any] = {}
    for load, named in ((load_pairs, pairs), (load_candidates, ranked)):
        for name, source in named:
            file = Path(settings.quarantine_file) if settings.quarantine_file else None
            # Each of several datasets has a file of its own for its bad rows.
            if file and len([*pairs, *ranked]) > 1:
                file = file.with_stem(f"{file.stem}-{name}")
            loaded[name] = load(source, on_bad_row=settings.on_bad_row, quarantine_file=file)
    answers = None if settings.on_policy is None else list(load_candidates(settings.on_policy))
    how = {
        **settings.encoding,
        **settings.model_dump(
            include={"dtype", "cache", "max_prompt_tokens", "max_response_tokens"}
        ),
    }
    diagnoses, orders = list[Diagnosis](), list[dict[str, Any]]()
    with ExitStack() as stack:
        if out is not None:
            inputs = settings.model_dump(mode="json", exclude={"store", "cache", "quarantine_file"})
            stack.enter_context(run_folder(out, command="diagnose", inputs=inputs))
        judges = [
            stored_for(stack, load_judge(spec), settings.store, out and out / LEDGER)
            if spec
            else None
            for spec in (settings.judge, settings.second_judge)
        ]
        reference = settings.reference and as_scored_by(settings.reference, **how)
        for spec in settings.policy or (None,):
            policy = spec and as_scored_by(spec, **how)
            diagnoses += [
                diagnose(
                    loaded[name],
                    name=name,
                    policy=policy,
                    reference=reference,
                    judge=judges[0],
                    second_judge=judges[1],
                    on_policy=answers,
                    config=settings,
                )
                for name, _ in pairs
            ]
            if policy:
                orders += [
                    asdict(diagnose_orders(loaded[name], name=name, policy=policy, config=settings))
                    for name, _ in ranked
                ]
        notes = []
        for name, report in ((name, rows.report) for name, rows in loaded.items()):
            bad = [f"{report.quarantined} bad rows put aside"] if report.quarantined else []
            notes += [f"{name}: {note}" for note in (*report.notes, *bad)]
        return reported(diagnoses, orders, notes, out=out)


def _check(settings: DiagnoseSettings, names: list[tuple[str, Any]]) -> None:
    InputError.unless(
        names,
        saw="no dataset",
        expected="pairs, or candidates with scores",
        cure="give --pairs FILE or --ranked FILE",
    )
    InputError.unless(
        len({name for name, _ in names}) == len(names),
        saw=f"datasets {', '.join(name for name, _ in names)}",
        expected="different names",
        cure="name them: --pairs NAME=FILE",
    )
    for name, needs in _READ_WITH.items():
        InputError.unless(
            not getattr(settings, name) or getattr(settings, needs),
            saw=f"--{name.replace('_', '-')} without --{needs}",
            expected=f"--{needs} too, which it is for",
            cure=f"give --{needs}, or leave it out",
        )


# Name and source of each: NAME=SOURCE, or a source, named as its last part.
def _named(texts: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for text in texts:
        name, equals, source = text.partition("=")
        # A folder or an option of a source may hold an equals sign too.
        is_named = equals and "/" not in name and "?" not in name
        yield (name, source) if is_named else (Path(text).name or text, text)
