"""`advise`: which of several data sets to train on next, by stage, forecast and pilots."""

import math
from collections.abc import Mapping
from copy import copy
from typing import Any

import torch

from prefstage.advising import Heat, standing, survivors
from prefstage.aligning.recipe import Depth, Recipe, Rule
from prefstage.aligning.steps import (
    FORECAST,
    Build,
    Forecast,
    Gain,
    Measure,
    Policy,
    Score,
    Target,
    Train,
    Workspace,
)
from prefstage.core import ConfigError
from prefstage.losses import parse_loss
from prefstage.measuring.track_record import ANY_LOSS, track_record

DEPTHS: tuple[Depth, ...] = ("stage", "forecast", "pilot")
_Z_95 = 1.96
_LARGEST_TARGET_SHARE = 1 / 3  # of the prompts, where candidates need the rest


def depths_of(recipe: Recipe) -> list[Depth]:
    """How deep advice can go for a recipe, in order.

    Gradients of the pairs at hand say nothing of online training, which samples its rejected
    responses afresh.
    """
    online = recipe.train.get("online") not in (None, False)
    return [depth for depth in DEPTHS if depth != "forecast" or not online]


class Advice:
    """The steps of advice, and what follows from them.

    Args:
        walk: Does the steps, or plans them.
        policy: Who would be trained.
        depth: Where to stop; None: as the recipe says.
    """

    def __init__(self, walk: Any, policy: Policy, *, depth: Depth | None = None) -> None:
        self.walk, self.policy = copy(walk), policy
        self.space: Workspace = walk.space
        self.settings = self.space.recipe.advise
        self.depth: Depth = depth or self.settings.depth
        self.walk.row = {"iteration": walk.row["iteration"], "rule": "advise", "steps": {}}
        self._rules = {str(rule): rule for rule in self.settings.rules}
        # As in advise.json.
        self._candidates: dict[str, dict[str, Any]] = {
            name: {"name": name, "forecast": None, "pilots": [], "dropped": None}
            for name in self._rules
        }
        self._total = len({*self.space.prompts.dataset["prompt_id"]})
        # Prompts before it, in the drawn order, are the target's, unless that has its own.
        share = int(self._total * _LARGEST_TARGET_SHARE) if self.settings.prompts is None else 0
        self._first = min(self.settings.target_prompts, share)
        self._target_prompts = self._first or self.settings.target_prompts
        # Of probabilities, points; rewards as they are.
        self._scale, self._unit = (
            (1.0, "of the judge's reward")
            if self.space.judge.pointwise
            else (100.0, "points of win rate")
        )
        self._stage: dict[str, Any] | None = None
        self._decided = False
        self._distance = math.nan  # between the first two, in standard errors
        self._order: list[str] = []

    def run(self) -> dict[str, Any]:
        """Go as deep as asked.

        Returns:
            What advise.json holds: "choice" (None in a plan whose steps are not done), "reason",
            "decided" (whether it is clear of the next best by the depth's own 95 % interval; of
            pilots with one seed: of these very trainings), "right" (in which share of the decision
            bench's cases as clear as this such advice was right: `TrackRecord`), "right_deeper"
            (the same of the next depth), "ranking", and the figures of every
            depth.

        Raises:
            ConfigError: If the stage alone shall decide between other data than off and on, or
                gradients between data of an online training.
        """
        reach = DEPTHS.index(self.depth)
        recipe = self.space.recipe
        measures = recipe.measure is not False
        ConfigError.unless(
            self.depth in depths_of(recipe),
            saw="train.online with depth forecast",
            expected="depth stage or pilot, as online training samples its rejected responses",
            cure="set depth: pilot, or leave train.online out",
        )
        ConfigError.unless(
            reach > 0 or (measures and {"off", "on"} <= {*self._candidates}),
            saw=f"depth stage with the candidates {', '.join(self._candidates)}",
            expected="off and on, between which the boundary score chooses, and off_policy",
            cure="set depth: forecast, or advise.candidates: [off, on]",
        )
        if measures:
            measured = self.walk.do(Measure(self.space, self.policy))
            self._stage = measured.stage().as_dict() if measured.state[0] == "done" else None
        if reach == 0:
            return self._result("stage", self._by_stage(), None)
        space = self.space.part(range(self._first))
        if self.settings.prompts is not None:
            space = self.space.with_data(prompts=self.settings.prompts).part(
                range(self.settings.target_prompts)
            )
        self._target_prompts = len(space.prompts)
        target = self.walk.do(Target(space, self.policy))
        agreement = self._forecast(target) if "forecast" in depths_of(recipe) else None
        if reach == 1 or not self._race(target):
            return self._result("forecast", self._by_forecast(), agreement)
        return self._result("pilot", self._by_pilots(), agreement)

    # --- What is measured ---------------------------------------------------------------------

    # A candidate's pairs of the first prompts after the target's; a larger number has them too.
    def _built(self, rule: Rule, count: int) -> Build:
        inside = copy(self.walk)
        inside.space = self.space.part(range(self._first, self._first + count))
        inside.row = dict(self.walk.row)
        built: Build = inside.pairs(rule, self.policy, None)
        return built

    def _forecast(self, target: Target) -> float | None:
        builds = {
            name: self._built(rule, self.settings.pairs) for name, rule in self._rules.items()
        }
        forecast = self.walk.do(Forecast(self.space, self.policy, target, builds))
        if forecast.state[0] != "done":
            return None
        figures = forecast.read(FORECAST)
        for name, candidate in self._candidates.items():
            candidate["forecast"] = figures["candidates"][name]
        return float(figures["agreement"])

    # Whether the pilots ran.
    def _race(self, target: Target) -> bool:
        running, heats = list(self._candidates), list[Heat]()
        forecasts = {name: c["forecast"] for name, c in self._candidates.items()}
        rated = {n: (f["rating"], f["behind_error"]) for n, f in forecasts.items() if f} or None
        for share in self.settings.shares:
            values = {name: self._pilots(name, share, target) for name in running}
            if not all(values.values()):
                continue
            for method in self.settings.methods:
                stacks = {
                    name: torch.stack([value.by_prompt for value in pilots[method]])
                    for name, pilots in values.items()
                }
                heats.append(Heat(share, stacks))
                for name, pilots in values.items():
                    sizes = [value.sample_size for value in pilots[method]]
                    self._candidates[name]["pilots"].append(
                        {
                            "share": share,
                            "valued_by": method,
                            "seeds": len(sizes),
                            "gain": heats[-1].gain(name),
                            "error": float(stacks[name].mean(0).std())
                            / math.sqrt(stacks[name].shape[1]),
                            "sample_size": None if None in sizes else min(sizes),
                        }
                    )
            distances, left = standing(heats, rated), survivors(heats, rated)
            order = list(distances)
            self._distance = distances[order[1]]
            self._decided = self._distance > _Z_95
            for name in set(running) - set(left) if share < self.settings.shares[-1] else ():
                self._candidates[name]["dropped"] = share
            self._order = [*order, *(name for name in self._order if name not in order)]
            running = left
            if len(running) == 1:
                break
        return bool(heats)

    # Values of a candidate's pilots by method, one a seed; empty where they are not all done.
    def _pilots(self, name: str, share: float, target: Target) -> dict[str, list[Any]]:
        built = self._built(self._rules[name], math.ceil(share * self._total))
        values: dict[str, list[Any]] = {method: [] for method in self.settings.methods}
        done = True
        for seed in range(self.settings.seeds):
            train = Train(
                built.space,
                self.policy,
                built,
                reference=self.policy,
                share=share,
                seed=self.space.recipe.seed + seed,
            )
            pilot = self.walk.do(train).policy(f"pilot of {name}")
            for method, made in values.items():
                if method == "sampling":
                    gain: Gain | Score = Gain(self.space, target, pilot)
                else:
                    start = self.walk.do(Score(self.space, target, self.policy))
                    gain = Score(self.space, target, pilot, start)
                done = self.walk.do(gain).state[0] == "done" and done
                if done:
                    made.append(gain.value())
        return values if done else {}

    # --- What follows -------------------------------------------------------------------------

    def _by_stage(self) -> str:
        if self._stage is None:
            return "not measured yet"
        stage = self._stage["stage"]
        choice = stage if stage != "undecided" else self._stage["algorithm_1"]
        self._order = ["off", "on"] if choice == "injection" else ["on", "off"]
        low, high = self._stage["interval"]
        self._decided = stage != "undecided"
        score = f"boundary score {self._stage['boundary_score']:.2f} [{low:.2f}, {high:.2f}]"
        return f"{stage} stage ({score}); the score does not see the loss"

    def _by_forecast(self) -> str:
        figures = {name: c["forecast"] for name, c in self._candidates.items() if c["forecast"]}
        self._order = sorted(figures, key=lambda name: -figures[name]["rating"])
        if len(self._order) < len(self._candidates):
            return "not forecast yet"
        first, second = (_interval(figures[name], self._scale) for name in self._order[:2])
        following = figures[self._order[1]]
        behind, error = following["behind"], following["behind_error"]
        self._distance = behind / error if error else math.inf if behind else 0.0
        self._decided = self._distance > _Z_95
        return f"forecast {first} {self._unit} a step; next {self._order[1]}, {second}"

    def _by_pilots(self) -> str:
        # Both ran, since the first heat has all candidates.
        number = -len(self.settings.methods)  # by sampling, if both
        last = [self._candidates[name]["pilots"][number] for name in self._order[:2]]
        first, second = (_interval(pilot, self._scale) for pilot in last)
        return (
            f"pilots on {100 * last[0]['share']:g} % of the prompts gained {first} {self._unit}; "
            f"next {self._order[1]}, {second}"
            + "; ranked with the forecast"
            * (self._candidates[self._order[0]]["forecast"] is not None)
        )

    # How often predictions as clear as this one were right on the decision bench.
    def _right(self, kind: str, loss: Any) -> dict[str, Any] | None:
        record = track_record(kind, " + ".join(t.loss.name for t in parse_loss(loss).terms))
        if record is None:
            return None
        # The stage has no such distance, and no curve.
        share = record.right if math.isnan(self._distance) else record.at(self._distance)
        return {"share": share, "loss": record.loss, "decisions": record.decisions}

    def _result(self, basis: Depth, reason: str, agreement: float | None) -> dict[str, Any]:
        loss = self.space.recipe.train.get("loss", "sigmoid")
        pilot = f"pilot {max(self.settings.shares):g}"
        kinds = {
            "stage": ("stage", "forecast"),
            "forecast": ("forecast", f"forecast, then {pilot}"),
            "pilot": (pilot, None),
        }
        right, right_deeper = (
            self._right(kind, loss) if kind and self._order else None for kind in kinds[basis]
        )
        return {
            "policy": self.policy.spec,
            "judge": self.space.judge.name,
            "loss": loss,
            "depth": basis,
            "choice": self._order[0] if self._order else None,
            "reason": reason,
            "decided": self._decided,
            "right": right,
            "right_deeper": right_deeper,
            "ranking": self._order,
            "unit": self._unit,
            "scale": self._scale,
            "stage": self._stage,
            "prompts": self._total,
            "target_prompts": self._target_prompts,
            "target_agreement": agreement,
            "candidates": [
                *(self._candidates[name] for name in self._order if name in self._candidates),
                *(c for name, c in self._candidates.items() if name not in self._order),
            ],
        }


_WHAT = {
    "stage": "such a stage",
    "forecast": "forecasts as clear as this",
    "pilot": "pilots as clear as this",
}


def how_often_right(result: Mapping[str, Any]) -> list[str]:
    """How often advice like this named the better data, where the truth is known.

    Args:
        result: As in advise.json.

    Returns:
        A line; none where nothing is known.
    """
    right = result["right"]
    if right is None:
        return []
    loss = "all losses tried" if right["loss"] == ANY_LOSS else right["loss"]
    return [
        f"{_WHAT[result['depth']]} named the better of two data sets in {right['share']:.0%} of "
        f"cases with {loss} (from {right['decisions']} of them, docs/decisions.md)"
    ]


def advice_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The candidates as a table, the advised one first.

    Args:
        result: As in advise.json.

    Returns:
        Its head and rows; a dash where something was not measured.
    """
    scale = result["scale"]
    pilots = [pilot for candidate in result["candidates"] for pilot in candidate["pilots"]]
    heats = sorted({(pilot["share"], pilot["valued_by"]) for pilot in pilots})
    several = len({method for _, method in heats}) > 1
    head = [
        "data",
        f"forecast, {result['unit']} a step",
        "cosine",
        "agreement",
        *(f"pilots on {100 * share:g} %" + f", {method}" * several for share, method in heats),
    ]
    rows = []
    for candidate in result["candidates"]:
        forecast = candidate["forecast"]
        valued = {(pilot["share"], pilot["valued_by"]): pilot for pilot in candidate["pilots"]}
        cells = ["-", "-", "-"]
        if forecast is not None:
            cosine = f"{forecast['cosine']:+.3f} ± {_Z_95 * forecast['cosine_error']:.3f}"
            cells = [_interval(forecast, scale), cosine, f"{forecast['agreement']:+.2f}"]
        cells += [_interval(valued[heat], scale) if heat in valued else "-" for heat in heats]
        rows.append([candidate["name"], *cells])
    return head, rows


# A gain with its 95 % interval.
def _interval(figures: Mapping[str, Any], scale: float) -> str:
    gain, half = scale * figures["gain"], scale * _Z_95 * figures["error"]
    return f"{gain:+.3g} [{gain - half:+.3g}, {gain + half:+.3g}]"
