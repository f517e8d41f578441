"""Which steps there are: each named by its settings and by the steps that it reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefstage.aligning.recipe import EvaluateSettings, Recipe, sft_settings, train_settings
from prefstage.aligning.schedule import Data, Rule
from prefstage.aligning.steps import Step
from prefstage.building.recipe import METHODS
from prefstage.core.errors import ConfigError
from prefstage.core.hashing import digest, digest_file
from prefstage.data.settings import ChatSettings
from prefstage.measuring.settings import MeasureConfig
from prefstage.sampling.base import SamplingConfig

RELABEL, CHOOSE, PER_PROMPT = "relabel", "best-vs-worst", "per-prompt"


@dataclass(frozen=True)
class Policy:
    """A policy of the run.

    Attributes:
        name: What it is called in results: "start", "iteration 1", ...
        spec: Folder or Hub id.
        key: Of the step that trained it, or the fingerprint of its files.
    """

    name: str
    spec: str
    key: str


class Chain:
    """Makes the steps of a recipe; reads nothing but hashes of inputs.

    Args:
        recipe: The recipe.
        judge: The judge's fingerprint.
    """

    def __init__(self, recipe: Recipe, *, judge: str) -> None:
        self.recipe = recipe
        self._judge = judge
        self._prints: dict[str, str] = {}

    def start(self) -> Policy:
        """The policy before everything."""
        spec = self.recipe.policy
        return Policy("start", spec, self.fingerprint(spec))

    def sft(self, policy: Policy) -> Step:
        """The training before the loop."""
        settings = sft_settings(self.recipe, policy="policy")
        found = settings.model_dump(mode="json", exclude={"policy"})
        data = {"data": self.fingerprint(settings.data.path)}
        data |= {f"eval {k}": self.fingerprint(each.path) for k, each in settings.eval.items()}
        found |= self._launch()
        return Step("sft", found, {"policy": policy.key}, data)

    def measure(self, policy: Policy) -> Step:
        """The measurement of a policy's stage."""
        settings = {
            "measure": self.measure_config.model_dump(mode="json"),
            **self._sampling(self.own_sampling, policy),
            **self._bad_rows,
        }
        inputs = {"off_policy": self.fingerprint(self.off_policy), "judge": self._judge}
        return Step("measure", settings, {"policy": policy.key}, inputs)

    def sample(self, policy: Policy) -> Step:
        """A policy's answers to the prompts of training."""
        settings = {"for": "training", **self._sampling(self.own_sampling, policy)}
        settings |= self._bad_rows
        inputs = {"prompts": self.fingerprint(self.prompts)}
        return Step("sample", settings, {"policy": policy.key}, inputs)

    def answer(self, policy: Policy, evaluate: EvaluateSettings) -> Step:
        """A policy's answers to the held-out prompts."""
        settings = {"for": "evaluation", **self._sampling(self.held_out_sampling(evaluate), policy)}
        settings |= self._bad_rows
        inputs = {"prompts": self.fingerprint(evaluate.prompts)}
        return Step("sample", settings, {"policy": policy.key}, inputs)

    def build(
        self,
        data: Data,
        rule: Rule,
        policy: Policy,
        *,
        answers: Step | None = None,
        measured: Step | None = None,
        pairs: Step | None = None,
    ) -> Step:
        """Pairs for training.

        Args:
            data: What they are made of.
            rule: The iteration's rule, for the share of a mixture.
            policy: Whose iteration it is; read by a mixture.
            answers: Answers that become pairs.
            measured: The measurement that a choice by prompt goes by.
            pairs: Pairs that a mixture, or a choice by prompt, starts from.

        Returns:
            The step.
        """
        settings: dict[str, Any] = {
            "data": data,
            "filters": self.recipe.build.filters.model_dump(mode="json"),
            "seed": self.recipe.seed,
        }
        inputs = {"judge": self._judge}
        given = {"answers": answers, "measure": measured, "pairs": pairs}
        reads = {role: step.key for role, step in given.items() if step is not None}
        if data == "off":
            settings["method"] = self.method_off
            settings |= self._bad_rows
            inputs["off_policy"] = self.fingerprint(self.off_policy)
        elif data == "mix":
            settings["method"] = {"name": "mixing", **self.mixing(rule)}
            settings |= self._sampling(self.own_sampling, policy)
            reads["policy"] = policy.key
        else:
            settings["method"] = PER_PROMPT if data == PER_PROMPT else self.recipe.build.on
        return Step("build", settings, reads, inputs)

    def train(self, policy: Policy, built: Step, reference: Policy) -> Step:
        """One iteration's training."""
        settings = train_settings(self.recipe, policy="policy", data="data")
        found = settings.model_dump(mode="json", exclude={"policy", "data", "reference"})
        found["reference"] = "start" if reference.key == policy.key else "fixed"
        found |= self._launch()
        reads = {"policy": policy.key, "pairs": built.key}
        if reference.key != policy.key:
            reads["reference"] = reference.key
        inputs = {k: self.fingerprint(each.path) for k, each in settings.eval.items()}
        return Step("train", found, reads, inputs)

    def evaluate(self, ours: Step, theirs: Step, evaluate: EvaluateSettings) -> Step:
        """The win rate of one policy's answers over the start's."""
        settings = self.recipe.seeded(evaluate.win_rate).model_dump(mode="json")
        reads = {"model": ours.key, "baseline": theirs.key}
        return Step("evaluate", settings, reads, {"judge": self._judge})

    @property
    def off_policy(self) -> str:
        """Where the off-policy data are."""
        return str(self.recipe.off_policy)

    @property
    def prompts(self) -> str:
        """Where the prompts of training are."""
        return self.recipe.prompts or self.off_policy

    @property
    def measure_config(self) -> MeasureConfig:
        """How a stage is measured, with the recipe's seed and number of answers."""
        config = self.recipe.measure or MeasureConfig()
        found: MeasureConfig = self.recipe.seeded(config)
        return found

    @property
    def own_sampling(self) -> SamplingConfig:
        """How policies answer the prompts of training."""
        found: SamplingConfig = self.recipe.seeded(self.recipe.sampling)
        return found

    def held_out_sampling(self, evaluate: EvaluateSettings) -> SamplingConfig:
        """How policies answer the held-out prompts: once each."""
        config = self.recipe.seeded(evaluate.sampling or self.recipe.sampling)
        found: SamplingConfig = config.model_copy(update={"responses": 1})
        return found

    @property
    def _bad_rows(self) -> dict[str, str]:
        """Of steps that read data: what is made without bad rows is not what all rows make."""
        asked = self.recipe.on_bad_row
        return {} if asked == "error" else {"on_bad_row": asked}

    @property
    def method_off(self) -> str | dict[str, Any]:
        """How off-policy data become pairs."""
        asked = self.recipe.build.off
        name = asked.get("name") if isinstance(asked, Mapping) else asked
        kind = "pairs" if _are_pairs(self.off_policy) else "candidates"
        if asked is None:
            return RELABEL if kind == "pairs" else CHOOSE
        if kind not in METHODS[str(name)].inputs:
            expects = " or ".join(sorted(METHODS[str(name)].inputs))
            raise ConfigError.of(
                saw=f"build.off is {name!r}, and {self.off_policy} holds {kind}",
                expected=f"{expects} for this method",
                cure="leave build.off out, or name another method",
            )
        return asked

    @property
    def relabels(self) -> bool:
        """Whether a judge replaces the labels of off-policy pairs."""
        method = self.method_off
        return (method if isinstance(method, str) else method["name"]) == RELABEL

    def mixing(self, rule: Rule) -> dict[str, Any]:
        """Settings of a mixture."""
        return {"share": rule.share, "answers": self.own_sampling.responses}

    def fingerprint(self, source: str) -> str:
        """Hash of a file's or folder's content; of anything else, its name.

        Args:
            source: File, folder, Hub id or a server's address.

        Returns:
            Hex digits.
        """
        if source not in self._prints:
            path = Path(source)
            if path.is_file():
                found = digest_file(path)
            elif path.is_dir():
                files = sorted(each for each in path.rglob("*") if each.is_file())
                names = [each.relative_to(path).as_posix() for each in files]
                found = digest([*zip(names, map(digest_file, files), strict=True)])
            else:
                found = digest(source)
            self._prints[source] = found
        return self._prints[source]

    def _launch(self) -> dict[str, str]:
        """A step of the optimiser grows with the number of processes."""
        return {} if self.recipe.launch is None else {"launch": self.recipe.launch}

    def _sampling(self, config: SamplingConfig, policy: Policy) -> dict[str, Any]:
        recipe = self.recipe
        options = {"dtype": recipe.dtype, "name": policy.name}
        options |= ChatSettings(**recipe.encoding).model_dump(mode="json")
        if recipe.server is not None:
            options["server"] = recipe.server
        return {"sampling": config.model_dump(mode="json"), **options}


def _are_pairs(source: str) -> bool:
    from prefstage.data.reading import open_reading

    return open_reading(source, "candidates").format.kind == "pairs"
