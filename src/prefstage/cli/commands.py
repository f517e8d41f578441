"""The commands that take settings: each calls the function of its name, which does the work."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prefstage.cli.options import Command
from prefstage.core.outcome import Outcome

if TYPE_CHECKING:
    from prefstage.cli.settings import ReportSettings, TheorySettings
    from prefstage.diagnosing.config import DiagnoseSettings
    from prefstage.evaluating.settings import EvaluateSettings
    from prefstage.judging.verdicts import JudgeSettings
    from prefstage.measuring.settings import MeasureSettings
    from prefstage.reporting.checkup import DoctorSettings
    from prefstage.sampling.answering import SampleSettings
    from prefstage.sandbox.theory import Checked

# `former` are names that options had once: scripts may still hold them.
RUN_FOLDER = "Run folder. The same command goes on in it after a stop."


@partial(
    Command,
    settings="measuring.settings:MeasureSettings",
    out=RUN_FOLDER,
    former={"off": "off_policy", "on": "on_policy", "responses": "on_responses"},
)
def measure(settings: "MeasureSettings", *, out: Path | None) -> Outcome:
    """Tell which preference data a policy needs next: the pairs at hand, or its own.

    The policy answers the prompts of the off-policy data, the judge compares its answers with
    the answers there, and both stop as soon as the 95 % interval of the boundary score leaves
    1/2: below, the policy is in the injection stage (train on the off-policy pairs); above, in
    the fine-tuning stage (train on pairs of its own answers).
    """
    from prefstage.measuring.settings import run_measurement

    return run_measurement(settings, out=out)


@partial(
    Command,
    settings="sampling.answering:SampleSettings",
    out="Where the candidates go: .jsonl or .parquet.",
    out_required=True,
    former={"limit": "max_prompts"},
)
def sample(settings: "SampleSettings", *, out: Path) -> Outcome:
    """Sample a policy's answers to the prompts of a dataset.

    Each answer is on disk, in OUT.samples.sqlite, as soon as it arrives; the same command goes
    on from there after a stop. At the end OUT holds each prompt with its answers.
    """
    from prefstage.sampling.answering import sample

    return sample(settings.policy, settings.prompts, out=out, config=settings)


@partial(
    Command,
    settings="judging.verdicts:JudgeSettings",
    out="Judged rows (.parquet, .jsonl) or the summary (.json).",
)
def judge(settings: "JudgeSettings", *, out: Path | None) -> Outcome:
    """Judge pairs (does the judge agree with the labels?), or score candidates.

    With --pairs: P(chosen better than rejected) of each pair, and how often the judge agrees
    with the dataset. With --candidates: a score for each response, the reward of a reward
    model, or the mean probability of beating the prompt's other responses.
    """
    from prefstage.judging.verdicts import judge

    return judge(
        settings.judge,
        pairs=settings.pairs,
        candidates=settings.candidates,
        out=out,
        config=settings,
    )


@partial(
    Command,
    settings="diagnosing.config:DiagnoseSettings",
    out="Folder for report.md and report.json (figures' data in it).",
    former={"on": "on_policy"},
)
def diagnose(settings: "DiagnoseSettings", *, out: Path | None) -> Outcome:
    """Say what is in a dataset of pairs, and what training a policy on it could do.

    Rankings, learnability and distinctness need --policy; agreement, position bias and answer
    quality need --judge. Several datasets and policies are compared in one table.
    """
    from prefstage.diagnosing.report import run_diagnosis

    return run_diagnosis(settings, out=out)


@partial(
    Command,
    settings="evaluating.settings:EvaluateSettings",
    out="Folder of results. The same command goes on in it after a stop.",
)
def evaluate(settings: "EvaluateSettings", *, out: Path | None) -> Outcome:
    """Win rate of answers, or of a policy, over a baseline by any judge.

    Raw and length-controlled, with intervals; several models are also compared with each
    other. With --annotations the win rates of verdicts that exist already; with --mt-bench
    ratings of two-turn answers; with --task benchmarks. Answers and verdicts are on disk as
    soon as they arrive: the same command goes on after a stop.
    """
    from prefstage.evaluating.evaluation import evaluate

    return evaluate(out=out, config=settings)


@partial(
    Command,
    settings="cli.settings:ReportSettings",
    argument="runs",
    out="The page.",
    out_default=Path("report.html"),
)
def report(settings: "ReportSettings", *, out: Path) -> Outcome:
    """Show what runs found on one page that needs no network; several runs are compared.

    What a run does not hold is left out, and said.
    """
    from prefstage.reporting.report import make_report

    made = make_report(settings.runs, out=out, title=settings.title, figures=settings.figures)
    lines = [f"{len(made.charts)} charts, {made.pairs:,} pairs to read"]
    lines += [f"not shown of {run}: {what} ({why})" for run, what, why in made.lacks]
    result = {
        "page": str(made.path),
        "bytes": made.path.stat().st_size,
        "charts": [chart.name for chart in made.charts],
        "pairs": made.pairs,
        "not_shown": [{"run": run, "what": what, "why": why} for run, what, why in made.lacks],
    }
    return Outcome("\n".join(lines), result, [made.path, *made.figures])


@partial(
    Command,
    settings="cli.settings:TheorySettings",
    argument="checks",
    out="Folder for theory.json and the figures.",
)
def theory(settings: "TheorySettings", *, out: Path | None) -> Outcome:
    """Check the papers' theorems, exactly, on random worlds.

    Prompts and responses are few, policies and preferences explicit, and every expectation is
    a sum. An equality must hold to 1e-10, an inequality without exception, an approximation
    with its order; where a statement is false as printed, its counterexamples are counted.
    """
    from prefstage.sandbox.theory import Setting, choose_checks, result_of, run_checks

    setting = Setting(settings.worlds, settings.seed)
    checked = run_checks(choose_checks(settings.checks), setting, out=out, figures=settings.figures)
    result = result_of(checked, setting)
    failed = [check.check.name for check in checked if not check.holds]
    verdict = f"not as expected: {', '.join(failed)}" if failed else "all as expected"
    end = f"{len(checked)} checks on {setting.worlds:,} worlds: {verdict}."
    text = "\n".join([*map(_statement, checked), "", f"{end} {result['seconds']:.0f} seconds."])
    written = [check.picture for check in checked if check.picture]
    written += [out / "theory.json"] if out else []
    return Outcome(text, result, written, failed=bool(failed))


def _statement(checked: "Checked") -> str:
    words = {
        "equality": "equal to {:.1e}",
        "rule": "{:.0f} exceptions",
        "order": "order {:.2f}",
        "calibration": "within {:.1%}",
        "counterexample": "FALSE in {:.0%} of the worlds",
    }
    lines = [f"{checked.check.name}  {checked.check.statement}"]
    for finding in checked.evidence.findings:
        value = words[finding.kind].format(finding.value)
        mark = "" if finding.holds else f"  NOT as expected ({finding.wanted})"
        lines.append(f"  {value:<32} {finding.claim}{mark}")
    return "\n".join(lines)


@partial(
    Command,
    settings="reporting.checkup:DoctorSettings",
    out="Write the findings as JSON.",
)
def doctor(settings: "DoctorSettings", *, out: Path | None) -> Outcome:
    """Say what is here: versions, devices, memory; and whether a model and a job fit.

    With --model: its size, how its responses will be scored and why, and whether its chat
    template is known. With --job: what the job needs in memory, estimated from the model's
    configuration. With --judge and --server: whether they can be used.
    """
    from prefstage.reporting.checkup import doctor

    return doctor(
        settings.model, judge=settings.judge, server=settings.server, out=out, config=settings
    )
