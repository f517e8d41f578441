"""The step that makes pairs: of any data, by any method of `prefstage build`."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from prefstage.aligning.recipe import CHOOSE, PER_PROMPT, RELABEL
from prefstage.aligning.steps.answers import Measure
from prefstage.aligning.steps.base import Estimate, Sizes, Step
from prefstage.aligning.steps.workspace import Policy, Workspace, naming_the_recipe
from prefstage.building.account import check_reversal
from prefstage.building.build import CARD, RESULT as BUILT, build_pairs
from prefstage.building.recipe import METHODS
from prefstage.core import ConfigError, write_json, write_text
from prefstage.measuring.measure import CANDIDATES

PAIRS = "pairs.parquet"
REVERSAL_SETTING = "build.accept_reversal"


class Build(Step):
    """Pairs for training.

    Leaves ``pairs.parquet``, ``build.json`` and ``README.md``, the dataset card.

    Args:
        space: The workspace.
        method: The method's name, or its settings with its name.
        data: By role, as in a recipe of `prefstage build` ("pairs", "candidates", "on_policy"):
            a file, a Hub id, or the step whose result it is.
        policy: Who answers, where the method samples.
        measured: The measurement that a choice by prompt goes by.
    """

    kind = "build"

    def __init__(
        self,
        space: Workspace,
        method: str | Mapping[str, Any],
        data: Mapping[str, str | Step],
        *,
        policy: Policy | None = None,
        measured: Measure | None = None,
    ) -> None:
        self.method: dict[str, Any] = {"name": method} if isinstance(method, str) else dict(method)
        self.data, self.policy, self.measured = dict(data), policy, measured
        self._sampling = space.recipe.seeded(space.recipe.sampling)
        # What is made of data and seed alone, whoever answers.
        self._settings: dict[str, Any] = {
            "filters": space.recipe.build.filters.model_dump(mode="json"),
            "seed": space.recipe.seed,
        }
        sources = {role: s for role, s in data.items() if isinstance(s, str)}
        # How the loader treats bad rows of data that no step made.
        self._bad_rows = space.bad_row_options("off_policy") if sources else {}
        made = {**data, "policy": policy, "measure": measured}
        super().__init__(
            space,
            {
                "method": self.method,
                **self._settings,
                **(space.bad_row_settings if sources else {}),
                **(space.sampling_settings(self._sampling, policy) if policy else {}),
            },
            reads={role: m.key for role, m in made.items() if m and not isinstance(m, str)},
            inputs={
                **{role: space.data_fingerprint(source) for role, source in sources.items()},
                "judge": space.judge.fingerprint,
            },
        )

    @classmethod
    def off_policy(cls, space: Workspace) -> "Build":
        """Pairs of the off-policy data, by the recipe's method.

        Args:
            space: The workspace.

        Returns:
            The step.

        Raises:
            ConfigError: If the recipe's method does not take what the data hold.
        """
        kind, source = space.off_policy_kind, str(space.recipe.off_policy)
        method = space.recipe.build.off or (RELABEL if kind == "pairs" else CHOOSE)
        step = cls(space, method, {kind: source})
        inputs = METHODS[step.method["name"]].inputs
        ConfigError.unless(
            kind in inputs,
            saw=f"build.off is {step.method['name']!r}, and {source} holds {kind}",
            expected=f"{' or '.join(sorted(inputs))} for this method",
            cure="leave build.off out, or name another method",
        )
        return step

    @property
    def relabels(self) -> bool:
        """Whether the judge replaces the labels of the data."""
        return bool(self.method["name"] == RELABEL)

    @override
    def run(self, folder: Path) -> None:
        space, policy, measured = self.space, self.policy, self.measured
        measurement = {} if measured is None else {"measurement": str(measured.path)}
        recipe = {
            **{role: self._rows_of(role, source) for role, source in self.data.items()},
            **({} if space.rows else self._bad_rows),
            **self._settings,
            "judge": space.recipe.judge,
            "method": self.method | measurement,
            **({} if policy is None else {"policy": policy.spec}),
        }
        if self.method["name"] in (RELABEL, PER_PROMPT):
            # What is made does not depend on the consent: `check` asks for it before training,
            # so that a run which is refused and then allowed need not build twice.
            recipe["accept_reversal"] = True
        sampling = nullcontext() if policy is None else space.sampler(policy, self._sampling)
        with naming_the_recipe(), sampling as sampler:
            built = build_pairs(recipe, judge=space.judge, sampler=sampler)
        built.train.save(folder / PAIRS)
        write_text(folder / CARD, built.card)
        write_json(folder / BUILT, dict(built.result))

    # The file of the data; of a part, its rows.
    def _rows_of(self, role: str, source: str | Step) -> Any:
        if isinstance(source, Step):
            return str(source.path / (PAIRS if isinstance(source, Build) else CANDIDATES))
        if self.space.rows is None:
            return source
        return self.space.off_pairs if role == "pairs" else self.space.off_policy

    # Of judging the data's responses, and of what the method samples.
    @override
    def estimate(self, sizes: Sizes) -> Estimate:
        answers = self._sampling.responses
        if self.method["name"] == "mixing":
            drawn = round((self.method["share"] or 0.0) * len(self.space.prompts))
            sampled = sizes.sampling(drawn, answers, longest=self._sampling.max_new_tokens)
            return replace(sampled, judgments=drawn * (answers + 1))
        is_sampled = all(isinstance(source, Step) for source in self.data.values())
        count = answers if is_sampled else sizes.responses
        # Each response is rewarded, or every two of a prompt are compared.
        asked = count if self.space.judge.pointwise else count * (count - 1) / 2
        return Estimate(judgments=round(len(self.space.prompts) * asked))

    # How many pairs, what was left out, and how often labels were reversed.
    @override
    def report(self) -> dict[str, Any]:
        built = self.read(BUILT)
        return {
            "pairs": built["pairs_built"],
            "left_out": built["left_out"],
            "build_figures": built["figures"],
            **({"reversal": built["reversal"]} if self.relabels else {}),
        }

    def check(self) -> None:
        """Ask for consent where the judge reverses most labels that it replaces.

        Raises:
            InputError: If more than 40 % are reversed, and the recipe does not accept that.
        """
        if self.relabels:
            built = self.read(BUILT)
            check_reversal(
                built["reversal"],
                accepted=self.space.recipe.build.accept_reversal,
                judge=str(built["judge"]),
                setting=REVERSAL_SETTING,
            )
