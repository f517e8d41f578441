"""What would hurt training, in plain words, each with the figure and the remedy."""

from typing import Any

LENGTH_EXPLAINS = 0.65
MOST_HARD = 0.5
EVEN = 0.5
FAR_BELOW = 0.75
LITTLE_AGREEMENT = 0.55
MANY_TIES = 0.3
PLACE_DECIDES = 0.2


def warnings_of(report: dict[str, Any]) -> list[dict[str, str]]:
    """Look through a diagnosis for what would hurt training.

    Args:
        report: The figures, as `Diagnosis.as_dict` gives them.

    Returns:
        For each: `what` in plain words, `figure`, and `remedy` in prefstage's commands.
    """
    found = [
        *_data(report["data"]),
        *_learnability(report.get("learnability")),
        *_judge(report.get("judge"), report["data"]),
        *_quality(report.get("own_answers")),
    ]
    return [{"what": what, "figure": figure, "remedy": remedy} for what, figure, remedy in found]


_Warning = tuple[str, str, str]


def _data(data: dict[str, Any]) -> list[_Warning]:
    found: list[_Warning] = []
    wins = data["longer_wins"]
    if wins is not None and max(wins, 1 - wins) >= LENGTH_EXPLAINS:
        which = "longer" if wins > 0.5 else "shorter"  # noqa: PLR2004 - a half
        found.append(
            (
                f"The labels are largely explained by length: the {which} response mostly wins, "
                "so training would teach length",
                f'"{which} wins" gives {max(wins, 1 - wins):.1%} of the labels',
                "prefstage build with method: keep and filters: {length: {max_ratio: 1.5}}, or "
                "prefstage train with a length-aware loss (r_dpo, ld_dpo, simpo)",
            )
        )
    if data["identical"]:
        found.append(
            (
                "Some pairs have the same text on both sides and teach nothing",
                f"{data['identical']} of {data['pairs']} pairs",
                "prefstage build with method: keep, which leaves them out and counts them",
            )
        )
    if data["pairs"] and data["ties"] / data["pairs"] >= MANY_TIES:
        found.append(
            (
                "Many pairs are ties of their raters, which losses read as preferences",
                f"{data['ties']} of {data['pairs']} pairs",
                "prefstage build with method: keep and filters: {agreement: 0.6}, or with "
                "method: relabel to let a judge decide",
            )
        )
    return found


def _learnability(learnability: dict[str, Any] | None) -> list[_Warning]:
    if learnability is None:
        return []
    total = sum(learnability["groups"].values())
    hard = learnability["groups"]["hard"]
    mends = learnability["flippable_at_loss"]
    found: list[_Warning] = []
    if total and hard / total >= MOST_HARD:
        found.append(
            (
                "Most pairs are hard: the reference finds the rejected response far likelier, "
                "and DPO will hardly turn that round",
                f"{hard} of {total} pairs are beyond the limit of hard pairs",
                "prefstage train with loss: sft on the chosen responses first, or prefstage build "
                "with method: on-policy for pairs of the policy's own answers",
            )
        )
    share = mends["share_of_wrong"]
    if share is not None and share < MOST_HARD:
        found.append(
            (
                f"A DPO loss of {mends['loss']:g} at beta {mends['beta']:g} leaves most of the "
                "wrongly ranked pairs wrong",
                f"it mends {share:.1%} of {learnability['wrong']}",
                "prefstage train with a smaller beta or to a lower loss, or with loss: "
                "{name: gamma, gamma: 0.5}",
            )
        )
    return found


def _judge(judge: dict[str, Any] | None, data: dict[str, Any]) -> list[_Warning]:
    if judge is None:
        return []
    found: list[_Warning] = []
    agreement = judge["agreement"]["agreement"]
    if agreement is not None and agreement < LITTLE_AGREEMENT:
        found.append(
            (
                "The judge hardly agrees with the labels: they measure different things",
                f"agreement {agreement:.1%}",
                "prefstage build with method: relabel to train on the judge's labels, or use "
                "another judge",
            )
        )
    longer = judge["agreement"]["prefers_longer"]
    if longer is not None and longer >= LENGTH_EXPLAINS + 0.1:
        found.append(
            (
                "The judge prefers the longer response",
                f"in {longer:.1%} of pairs of unequal length ({data['pairs']} pairs)",
                "prefstage evaluate, whose win rates are length-controlled, and prefstage build "
                "with method: keep and filters: {length: {max_ratio: 1.5}}",
            )
        )
    bias = judge["position_bias"]
    if bias is not None and bias >= PLACE_DECIDES:
        found.append(
            (
                "The judge often prefers the place of a response to the response: such verdicts "
                "count as even",
                f"{bias:.1%} of comparisons change with the order",
                "prefstage judge with another judge (prefstage diagnose --second-judge compares "
                "them)",
            )
        )
    return found


def _quality(own: dict[str, Any] | None) -> list[_Warning]:
    if own is None or not own["prompts"]:
        return []
    found: list[_Warning] = []
    prompts = f"of {own['prompts']} prompts"
    if own["interval"][0] > EVEN:
        low, high = own["interval"]
        found.append(
            (
                "The chosen responses are worse than the policy's own answers: training on them "
                "would pull it down",
                f"own answers beat the chosen response on {own['win_rate']:.1%} {prompts} "
                f"[{low:.1%}, {high:.1%}]",
                "prefstage build with method: on-policy, or mixing to put own answers into the "
                "pairs",
            )
        )
    if own["boundary_score"] >= FAR_BELOW:
        found.append(
            (
                "The pairs' responses are judged far below the policy's own answers: it is past "
                "what this dataset can teach",
                f"own answers win {own['boundary_score']:.1%} of comparisons with both responses "
                f"of a pair, {prompts}",
                "prefstage measure to decide the stage, then prefstage build with method: "
                "on-policy",
            )
        )
    return found
