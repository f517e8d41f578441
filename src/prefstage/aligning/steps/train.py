"""Steps that train: supervised, and on preferences, here or by a launcher."""

import shlex
import shutil
import sys
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from typing_extensions import override

from prefstage.aligning.recipe import pilot_settings, train_settings, whole_path
from prefstage.aligning.steps.answers import PAIRS, Build
from prefstage.aligning.steps.base import Estimate, Sizes, Step
from prefstage.aligning.steps.workspace import Policy, Workspace
from prefstage.core import (
    MANIFEST as TRAINING_MANIFEST,
    check_code_may_run,
    read_json,
    trust_remote_code,
    write_config,
)
from prefstage.losses import parse_loss
from prefstage.serving import run_program
from prefstage.training.datasets import load_data
from prefstage.training.export import describe_exported
from prefstage.training.recipe import Recipe as TrainRecipe
from prefstage.training.recipe_run import (
    MERGED,
    MODEL,
    RESULT as TRAINED,
    train_recipe,
)

_FLOP, _FLOP_FORWARD = 6, 2  # a parameter and token; forward and backward, and forward alone


class _Training(Step):
    def __init__(
        self,
        space: Workspace,
        recipe: TrainRecipe,
        settings: Mapping[str, Any],
        *,
        reads: Mapping[str, str | None],
        inputs: Mapping[str, str],
    ) -> None:
        # The optimiser's step grows with the number of processes, which the command decides.
        launch = {} if space.recipe.launch is None else {"launch": space.recipe.launch}
        sets = {f"eval {name}": space.fingerprint(data.path) for name, data in recipe.eval.items()}
        super().__init__(space, {**settings, **launch}, reads=reads, inputs={**inputs, **sets})
        self.recipe = recipe

    def run(self, folder: Path) -> None:
        """Train.

        Raises:
            ServiceError: If the launched training fails; the message ends with its log.
        """
        manifest, recipe = folder / TRAINING_MANIFEST, self.recipe
        paths = recipe.model_dump(mode="json", include={"policy", "data", "reference"})
        former = read_json(manifest)["inputs"] if manifest.exists() else paths
        if any(former[name] != path for name, path in paths.items()):
            # Begun where the run folder, or the policy, stood before.
            for child in folder.iterdir():
                if not child.name.startswith("."):
                    shutil.rmtree(child) if child.is_dir() else child.unlink()
        if self.space.recipe.launch is None:
            train_recipe(recipe, folder)
        else:
            _launched(self.space.recipe.launch, recipe, folder)

    @property
    def _batch(self) -> int:
        counts = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
        return prod(int(self.recipe.training.get(name, n)) for name, n in counts.items())

    def _memory(self, sizes: Sizes) -> int:
        budget = self.recipe.tokens.token_budget
        return sizes.memory(
            "train",
            (self._batch, 2, sizes.response_tokens),
            has_adapter=self.recipe.lora is not None,
            token_budget=None if budget == "auto" else int(budget),
        )

    def policy(self, name: str) -> Policy:
        """Who comes out: whole, with its adapter merged.

        Args:
            name: What it is called in results.

        Returns:
            The policy; of a step that is not done, one that is planned.
        """
        merged, model = self.path / MERGED, self.path / MODEL
        return Policy(name, str(merged if merged.is_dir() else model), self.key)


class Sft(_Training):
    """The training before the loop, on data of its recipe.

    Args:
        space: The workspace.
        policy: Who is trained.
    """

    kind = "sft"

    def __init__(self, space: Workspace, policy: Policy) -> None:
        recipe = train_settings(space.recipe, policy=whole_path(policy.spec))
        super().__init__(
            space,
            recipe,
            recipe.model_dump(mode="json", exclude={"policy"}),
            reads={"policy": policy.key},
            inputs={"data": space.fingerprint(recipe.data.path)},
        )

    def prompt_ids(self) -> set[str]:
        """The prompts of its data."""
        data = self.recipe.data
        how = data.model_dump(exclude={"path"})
        loaded = load_data(data.path, parse_loss(self.recipe.loss), **how)
        return {*loaded.dataset["prompt_id"]}

    # Of memory alone: the data are not read for a plan.
    @override
    def estimate(self, sizes: Sizes) -> Estimate:
        return Estimate(memory_bytes=self._memory(sizes))


class Train(_Training):
    """One iteration's training, from the last checkpoint on if it was stopped.

    Leaves what `prefstage train` writes.

    Args:
        space: The workspace.
        policy: Who is trained.
        built: Its pairs.
        reference: Whose log-probs the loss refers to.
        share: Of the data that a pilot is trained on; None: it is no pilot.
        seed: Of a pilot's training.
    """

    kind = "train"

    def __init__(
        self,
        space: Workspace,
        policy: Policy,
        built: Build,
        *,
        reference: Policy,
        share: float | None = None,
        seed: int | None = None,
    ) -> None:
        start = reference.key == policy.key
        recipe = train_settings(
            space.recipe,
            policy=whole_path(policy.spec),
            data=str(built.path / PAIRS),
            reference="start" if start else whole_path(reference.spec),
        )
        if share is not None:
            recipe = pilot_settings(recipe, share=share, seed=seed)
        super().__init__(
            space,
            recipe,
            # Where policy and data lie says nothing of what they are: their keys do.
            recipe.model_dump(mode="json", exclude={"policy", "data", "reference"}),
            reads={
                "policy": policy.key,
                "pairs": built.key,
                **({} if start else {"reference": reference.key}),
            },
            inputs={},
        )

    # Of `max_steps`, or else of all epochs.
    @override
    def estimate(self, sizes: Sizes) -> Estimate:
        arguments = self.recipe.training
        pairs = float(arguments.get("num_train_epochs", 3)) * len(self.space.prompts)
        if int(arguments.get("max_steps", -1)) > 0:
            pairs = int(arguments["max_steps"]) * self._batch
        tokens = round(pairs * (sizes.prompt_tokens + 2 * sizes.response_tokens))
        return Estimate(0, 0, tokens, self._memory(sizes), sizes.seconds(tokens, _FLOP))

    # Steps, tokens, loss and metrics.
    @override
    def report(self) -> dict[str, Any]:
        return {"training": training_figures(self.read(TRAINED))}


def training_figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """What align.json says of a training.

    Args:
        result: As in train.json.

    Returns:
        JSON-serialisable figures.
    """
    exported = describe_exported(result)
    names = ("steps", "epochs", "tokens", "first_loss", "last_loss", "metrics")
    return {
        **{name: result[name] for name in names},
        "notes": [*result["notes"], *([] if exported is None else [f"exported: {exported}"])],
        "exported_step": result.get("exported_step", result["steps"]),
    }


# `prefstage train` by a launcher; its recipe and its log stand next to the folder.
def _launched(launch: str, recipe: TrainRecipe, folder: Path) -> None:
    check_code_may_run(f"launch: {launch}")
    file, log = (folder.with_name(f"{folder.name}{end}") for end in ("-recipe.yaml", ".log"))
    # A token stands in no file, which a kill would leave behind: the Hub's own variable has it.
    token = recipe.training.get("hub_token")
    training = {**recipe.training, "hub_token": None} if token else recipe.training
    write_config(recipe.model_copy(update={"training": training}), file)
    program = str(Path(sys.executable).with_name("prefstage"))
    words = [*shlex.split(launch), program, "train", str(file), "--out", str(folder)]
    words += ["--trust-remote-code"] if trust_remote_code() else []
    try:
        run_program(words, log_file=log, environment={"HF_TOKEN": str(token)} if token else {})
    finally:
        file.unlink(missing_ok=True)
    log.rename(folder / "train.log")
