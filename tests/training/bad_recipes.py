"""The bad-input table of recipes: what is wrong in one, and what the line must say."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.tiny_models import tiny_tokenizer
from tests.training.checkpoint_runs import tiny_chat_model

RECIPE: dict[str, Any] = {
    "policy": "policy",
    "data": "pairs.jsonl",
    "training": {
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    },
}


def files() -> None:
    """A policy, and data of every kind, in the present folder."""
    tiny_chat_model().save_pretrained("policy")
    tiny_tokenizer().save_pretrained("policy")
    pairs = [{"prompt": f"p{n}", "chosen": "good", "rejected": "bad"} for n in range(4)]
    single = [{"prompt": f"p{n}", "completion": "good", "label": n % 2 == 0} for n in range(4)]
    for name, rows in (("pairs", pairs), ("single", single), ("empty", [])):
        Path(f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    Path("no_model").mkdir()


def running(out: str = "run", **changes: Any) -> Callable[[], None]:
    """Run a recipe with something changed."""

    def case() -> None:
        from prefstage.core.config import load_config
        from prefstage.training.recipe import Recipe
        from prefstage.training.recipe_run import train_recipe

        files()
        train_recipe(load_config(Recipe, {**RECIPE, **changes}), Path(out))

    return case


def with_arguments(**changes: Any) -> Callable[[], None]:
    """Run a recipe with other training arguments."""
    return running(training={**RECIPE["training"], **changes})


@contextmanager
def a_folder_that_may_not_be_written() -> Iterator[None]:
    real = Path.mkdir

    def mkdir(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.name == "locked":
            raise PermissionError(13, "Permission denied")
        real(self, *args, **kwargs)

    Path.mkdir = mkdir  # type: ignore[method-assign]  # root may write anywhere
    try:
        yield
    finally:
        Path.mkdir = real  # type: ignore[method-assign]  # as it was


def locked() -> None:
    with a_folder_that_may_not_be_written():
        running(out="locked")()


CASES: list[tuple[str, Callable[[], Any], list[str]]] = [
    ("a recipe's data that is not there", running(data="none.jsonl"), ["none.jsonl"]),
    ("a recipe's data without a row", running(data="empty.jsonl"), ["without any row"]),
    ("a recipe's evaluation without a row", running(eval="empty.jsonl"), ["without any row"]),
    ("a loss's setting that is none", running(loss={"name": "sigmoid", "bta": 1}), ["'beta'?"]),
    ("a loss's setting out of range", running(loss={"name": "sigmoid", "beta": -1}), ["'beta'"]),
    (
        "scores that are not there",
        running(loss="exo_rw"),
        ["4 of 4 groups without scores", "judge"],
    ),
    ("preferences that are not there", running(loss="sppo"), ["4 of 4 pairs without preference"]),
    ("a pairwise loss on single responses", running(data="single.jsonl"), ["load_unpaired"]),
    (
        "labels with single responses",
        running(loss="kto", data={"path": "single.jsonl", "labels": {0: "tie", 1: "a"}}),
        ["labels={0: 'tie', 1: 'a'} for single.jsonl", "leave labels out"],
    ),
    (
        "labels with demonstrations",
        running(loss="sft", data={"path": "pairs.jsonl", "labels": {0: "tie"}}),
        ["leave labels out"],
    ),
    (
        "a column that recipes do not know",
        running(loss="re_po", data={"path": "pairs.jsonl", "columns": {"annotators": "prompt"}}),
        ["columns={'annotators': ...}", "roles among"],
    ),
    ("a reference that is no model", running(reference="no_model"), ["no_model", "check the name"]),
    ("no reference where one is needed", running(reference="none"), ["'adapter-off'"]),
    ("a reference for a loss without", running(loss="sft", reference="policy"), ["remove"]),
    (
        "an adapter off that is not there",
        running(reference="adapter-off"),
        ["a policy without adapters", "'start'"],
    ),
    ("a policy that is no model", running(policy="no_model"), ["no_model", "check the name"]),
    ("a batch that is no number", with_arguments(per_device_train_batch_size="many"), ["whole"]),
    ("half an item", with_arguments(per_device_train_batch_size=2.5), ["a whole number"]),
    ("a rate that is no number", with_arguments(learning_rate="fast"), ["'fast'", "a number"]),
    ("a seed that is no number", with_arguments(seed="x"), ["seed='x'", "a whole number"]),
    ("fewer than no epochs", with_arguments(num_train_epochs=-1), ["num_train_epochs=-1"]),
    ("two precisions", with_arguments(bf16=True, fp16=True), ["bf16"]),
    ("evaluation asked of a recipe without", with_arguments(eval_strategy="steps"), ["eval"]),
    ("DeepSpeed where it is not", with_arguments(deepspeed="zero.json"), ["pip install deepspeed"]),
    ("a tracker that is not there", with_arguments(report_to="wandb"), ["report_to='wandb'"]),
    ("an optimiser without its package", with_arguments(optim="lomo"), ["pip install lomo-optim"]),
    (
        "a schedule without its arguments",
        with_arguments(lr_scheduler_type="cosine_with_min_lr"),
        ["min_lr", "lr_scheduler_kwargs"],
    ),
    (
        "a warm-up that no schedule reads",
        with_arguments(lr_scheduler_type="constant", warmup_steps=10),
        ["warmup_steps=10", "does not read"],
    ),
    ("a setting without effect", with_arguments(use_liger_kernel=True), ["no effect here"]),
    ("an adapter on nothing", running(lora={"target_modules": ["nope"]}), ["nope"]),
    ("online training without pairs", running(loss="sft", online=True), ["online"]),
    ("a format that is none", running(tokens={"chat_format": "nope"}), ["nope"]),
    ("a folder that may not be written", locked, ["cannot write to locked", "--out"]),
]
