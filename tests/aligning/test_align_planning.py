"""`--dry-run`: the plan is what then happens."""

from pathlib import Path

from prefstage.aligning import align, plan_alignment
from prefstage.aligning.runs import plan_outcome
from prefstage.core.checkpoints import load_model_config
from prefstage.scoring.memory import JobSize, ModelShape, estimate_memory
from tests.aligning.tiny_world import settings


def test_a_fixed_schedule_is_planned_step_by_step(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = settings(world, schedule=["on", {"mix": 0.5}])
    planned = plan_alignment(given, out=out)
    assert not out.exists()
    assert {each.will for each in planned} == {"run"}
    done = align(given, out=out)
    assert [each.step for each in planned] == [each.step for each in done.steps]
    costs, bought = plan_outcome(planned).result["total"], done.result["costs"]
    assert bought["answers"] <= costs["answers"]
    assert bought["judgments"] <= costs["judgments"]
    assert costs["memory_bytes"] > 0
    assert costs["tokens"] > 0

    again = plan_alignment(given, out=out)
    assert {each.will for each in again} == {"reuse"}
    nothing = plan_outcome(again).result["total"]
    assert nothing["answers"] == nothing["tokens"] == 0

    beta = {**given, "train": {**given["train"], "loss": {"name": "sigmoid", "beta": 0.5}}}
    first = [each for each in plan_alignment(beta, out=out) if each.iteration <= 1]
    assert [each.kind for each in first if each.will == "run"] == ["train", "sample", "evaluate"]


def test_what_follows_an_unknown_stage_is_planned_for_the_dearer_data(
    world: Path, tmp_path: Path
) -> None:
    planned = plan_alignment(settings(world), out=tmp_path / "run")
    named = [each.kind for each in planned if each.step is not None]
    assert named == ["sample", "measure"]
    assert [each.kind for each in planned if each.iteration == 1] == [
        *("measure", "sample", "build", "train", "sample", "evaluate")
    ]
    assert "as the stage will ask" in plan_outcome(planned).summary


def test_sft_per_prompt_and_another_model_are_planned(world: Path, tmp_path: Path) -> None:
    other = str(world / "policy")
    given = settings(world, schedule=["per-prompt", {"other": other}], evaluate=None)
    given["sft"] = {"data": str(world / "pairs.jsonl"), "training": {"max_steps": 1}}
    planned = plan_alignment(given, out=tmp_path / "run")
    done = align(given, out=tmp_path / "run")
    assert [each.step for each in planned] == [each.step for each in done.steps]


def test_memory_is_that_of_the_memory_model(world: Path, tmp_path: Path) -> None:
    given = settings(world, schedule="off", iterations=1, evaluate=None, measure=False)
    given["train"]["tokens"] = {"token_budget": 64}
    taken = {}
    for name, lora in (("whole", None), ("adapter", {"r": 2})):
        given["train"]["lora"] = lora
        _, train = plan_alignment(given, out=tmp_path / "run")
        taken[name] = train.estimate.memory_bytes
    shape = ModelShape.of_config(load_model_config(str(world / "policy")), dtype="float32")
    # Four pairs of a few words are more than 64 tokens, and none by itself is.
    size = JobSize("train", batch=64, responses=2, prompt_tokens=4, max_tokens=4)
    least = estimate_memory(shape, size, pass_tokens=64)
    assert least.total - least.logits <= taken["whole"] <= 1.2 * least.total
    assert taken["whole"] - taken["adapter"] == least.gradients + least.optimizer
