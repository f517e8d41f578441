"""The bad-input table of training: what is wrong, a run that meets it, what the line says."""

import errno
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, TrainerCallback

from prefstage.data import PairSet
from tests.tiny_models import tiny_tokenizer
from tests.training.bad_recipes import CASES as RECIPES
from tests.training.checkpoint_runs import preference_trainer, some_pairs, tiny_chat_model

RUN = Path("run")
STEPS = {"max_steps": 2}


def begin(**given: Any) -> Any:
    """A trainer in the present folder."""
    return preference_trainer(RUN, **{**STEPS, **given})


def trained(**given: Any) -> None:
    """A finished run with checkpoint-1 and checkpoint-2."""
    for name, content in _files_of_a_run(tuple(sorted(given.items()))).items():
        file = RUN / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


@cache
def _files_of_a_run(given: tuple[tuple[str, Any], ...]) -> dict[str, bytes]:
    """Trained once a process: most cases begin with the same run."""
    with tempfile.TemporaryDirectory() as folder:
        preference_trainer(Path(folder), **STEPS, **dict(given)).train()
        files = [each for each in Path(folder).rglob("*") if each.is_file()]
        return {each.relative_to(folder).as_posix(): each.read_bytes() for each in files}


def going_on(**given: Any) -> Callable[[], None]:
    """Go on from a finished run with something changed."""

    def case() -> None:
        trained()
        begin(**given).train(resume_from_checkpoint=True)

    return case


def constructing(**given: Any) -> Callable[[], None]:
    """Build a trainer."""
    return lambda: begin(**given)


def training(**given: Any) -> Callable[[], None]:
    """Build a trainer and train."""
    return lambda: begin(**given).train()


def damaged(how: Callable[[Path], None]) -> Callable[[], None]:
    """Go on from a finished run whose newest checkpoint was damaged."""

    def case() -> None:
        trained()
        how(RUN / "checkpoint-2")
        begin().train(resume_from_checkpoint=True)

    return case


def flip_a_bit(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 16
    file.write_bytes(bytes(data))


def cut(checkpoint: Path) -> None:
    file = checkpoint / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:1000])


def remove_a_file(checkpoint: Path) -> None:
    (checkpoint / "scheduler.pt").unlink()


def remove_the_manifest(checkpoint: Path) -> None:
    for each in (checkpoint, checkpoint.with_name("checkpoint-1")):
        (each / "prefstage_checkpoint.json").unlink()


def nothing_whole() -> None:
    half = RUN / "_saving" / "checkpoint-1"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    begin().train(resume_from_checkpoint=True)


def no_such_checkpoint() -> None:
    trained()
    begin().train(resume_from_checkpoint=str(RUN / "checkpoint-7"))


class Spoil(TrainerCallback):
    """Makes a weight NaN after the second step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            with torch.no_grad():
                kwargs["model"].lm_head.weight[5, 1] = float("nan")


class Overflow(TrainerCallback):
    """Makes the gradient infinite in the second step."""

    def __init__(self) -> None:
        self.handle: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            weight = kwargs["model"].lm_head.weight
            self.handle = weight.register_hook(lambda slope: slope * float("inf"))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.handle is not None:
            self.handle.remove()


def reference_spoilt() -> None:
    trainer = begin()
    trainer.compute_references()
    known = trainer.references._known
    for each in next(iter(known.values()))[:2]:
        each[0] = float("nan")
    trainer.train()


def out_of_memory() -> None:
    model = tiny_chat_model()

    def ask_for_too_much(module: Any, given: Any, named: Any) -> None:
        tokens = max([each.numel() for each in (*given, *named.values()) if torch.is_tensor(each)])
        if model.training and tokens > 64:
            torch.empty(1 << 60, dtype=torch.uint8)

    model.model.embed_tokens.register_forward_pre_hook(ask_for_too_much, with_kwargs=True)
    begin(model=model).train()


@contextmanager
def a_disk_that_is_full() -> Iterator[None]:
    real = torch.save

    def save(what: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
        if "checkpoint-2" in str(file) and "optimizer" in str(file):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(what, file, *args, **kwargs)

    torch.save = save
    try:
        yield
    finally:
        torch.save = real


def disk_full() -> None:
    with a_disk_that_is_full():
        begin().train()


def adapter_elsewhere() -> None:
    """An adapter of one model on top of a smaller one."""
    from peft import LoraConfig, get_peft_model

    base = tiny_chat_model()
    base.save_pretrained("base")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained("adapter")
    settings = json.loads(Path("base/config.json").read_text())
    shutil.rmtree("base")
    smaller = type(base)(type(base.config)(**{**settings, "hidden_size": 8, "head_dim": 4}))
    smaller.save_pretrained("base")
    config_file = Path("adapter/adapter_config.json")
    told = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**told, "base_model_name_or_path": "base"}))
    begin(model="adapter")


def policy_with(change: Callable[[dict[str, Any]], object]) -> Callable[[], None]:
    """Begin with a policy whose weights were changed on the disk."""

    def case() -> None:
        from safetensors.torch import load_file, save_file

        tiny_chat_model().save_pretrained("policy")
        weights = load_file("policy/model.safetensors")
        change(weights)
        save_file(weights, "policy/model.safetensors", metadata={"format": "pt"})
        begin(model="policy")

    return case


def swapped_tokenizer() -> None:
    own = tiny_tokenizer()
    own.save_pretrained("own")
    tiny_chat_model().save_pretrained("own")
    content = json.loads(own.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    from tokenizers import Tokenizer

    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), chat_template=own.chat_template
    )
    begin(model="own", tokenizer=other)


def unknown_token() -> None:
    """Pairs with a token that the tokenizer has and the model has not."""
    from datasets import Dataset

    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    rows = [{"prompt": f"Hi {n}", "chosen": "a <new> one", "rejected": "none"} for n in range(4)]
    begin(tokenizer=tokenizer, data=Dataset.from_list(rows))


def other_start() -> None:
    trained(lora=True)
    begin(lora=True, model=tiny_chat_model(seed=2)).train(resume_from_checkpoint=True)


def other_adapter() -> None:
    trained(lora=True)
    begin().train(resume_from_checkpoint=True)


def model_alone() -> None:
    trained(save_only_model=True)
    begin().train(resume_from_checkpoint=True)


EVALUATED = {"eval_strategy": "steps", "eval_steps": 1}

CASES: list[tuple[str, Callable[[], Any], list[str]]] = [
    # what is wrong, the run, what the line must say
    ("an optimiser that is none", constructing(optim="rmspropp"), ["'rmspropp'", "'rmsprop'?"]),
    ("a schedule that is none", constructing(lr_scheduler_type="cosinus"), ["'cosine'?"]),
    ("a strategy that is none", constructing(save_strategy="step"), ["'steps'?"]),
    ("a negative learning rate", constructing(learning_rate=-1e-5), ["learning_rate=-1e-05"]),
    (
        "a batch of nothing",
        constructing(per_device_train_batch_size=0),
        ["per_device_train_batch_size=0", "1 or more"],
    ),
    ("a budget of nothing", constructing(token_budget=0), ["token_budget=0", "'auto'"]),
    (
        "arguments that contradict",
        constructing(load_best_model_at_end=True, save_strategy="epoch", eval_strategy="no"),
        ["do not go together", "load_best_model_at_end"],
    ),
    ("a loss that is none", constructing(loss="sigmoyd"), ["sigmoyd", "sigmoid"]),
    (
        "a best metric that is none",
        training(evaluated=some_pairs(3), metric_for_best_model="acuracy", **EVALUATED),
        ["metric_for_best_model='acuracy'", "eval_loss"],
    ),
    ("evaluation without data", constructing(**EVALUATED), ["eval_dataset", "'no'"]),
    (
        "an empty evaluation set",
        constructing(evaluated={"held-out": PairSet.of([])}),
        ["'held-out' is empty"],
    ),
    ("an empty training set", constructing(data=PairSet.of([])), ["training set is empty"]),
    (
        "every response cut to the same",
        constructing(max_prompt_tokens=8, max_response_tokens=1, data=some_pairs(1, alike=True)),
        ["same tokens on both sides after truncation", "raise max_response_tokens"],
    ),
    ("a token that the model does not know", unknown_token, ["'<new>'", "resize"]),
    ("a tokenizer of another model", swapped_tokenizer, ["other ids", "own tokenizer"]),
    (
        "a tokenizer without a template",
        constructing(tokenizer=tiny_tokenizer("base")),
        ["chat template", "chat_format"],
    ),
    ("a model that is not there", constructing(model="./none"), ["./none", "check the name"]),
    (
        "a reference that is not there",
        training(reference="./none"),
        ["./none", "check the name"],
    ),
    (
        "a policy that lacks weights",
        policy_with(lambda w: [w.pop(name) for name in list(w) if "q_proj" in name]),
        ["missing (", "q_proj.weight"],
    ),
    (
        "a policy with NaN in its weights",
        policy_with(lambda w: w["model.norm.weight"].fill_(float("nan"))),
        ["1 with NaN or inf (model.norm.weight)"],
    ),
    (
        "a value model as policy",
        policy_with(lambda w: w.update({"v_head.weight": w["model.norm.weight"].clone()})),
        ["1 unexpected (v_head.weight)", "reward or value model"],
    ),
    (
        "an adapter of another model",
        adapter_elsewhere,
        ["adapter", "of another shape (", "lora_A", "trained on this model"],
    ),
    (
        "a loss that is NaN",
        training(callbacks=[Spoil()], max_steps=3, save_strategy="no"),
        ["step 3", "rows", "policy's log-probs", "lower learning_rate"],
    ),
    ("a reference that is NaN", reference_spoilt, ["step 1", "reference's log-probs"]),
    ("a gradient that is infinite", training(callbacks=[Overflow()]), ["step 2", "norm is"]),
    (
        "weights that are NaN",
        training(callbacks=[Spoil()]),
        ["step 2", "lm_head.weight", "checkpoint-1 is untouched"],
    ),
    ("out of memory", out_of_memory, ["out of memory", "token_budget="]),
    ("a disk that is full", disk_full, ["No space left", "checkpoint-1 is untouched"]),
    ("nothing to go on from", nothing_whole, ["no whole checkpoint in run"]),
    ("a checkpoint that is not there", no_such_checkpoint, ["no checkpoint run/checkpoint-7"]),
    ("a flipped bit", damaged(flip_a_bit), ["content of model.safetensors", "checkpoint-1"]),
    ("a file cut short", damaged(cut), ["optimizer.pt has 1,000 bytes", "checkpoint-1"]),
    ("a missing file", damaged(remove_a_file), ["scheduler.pt is missing", "checkpoint-1"]),
    ("checkpoints of another trainer", damaged(remove_the_manifest), ["none of the 2 checkpoints"]),
    ("a checkpoint of the model alone", model_alone, ["save_only_model"]),
    ("another learning rate", going_on(learning_rate=1e-3), ["learning_rate was 0.01", "0.001"]),
    ("another seed", going_on(seed=7), ["seed was 42 and is now 7"]),
    (
        "another batch size",
        going_on(per_device_train_batch_size=2),
        ["items_per_step was 4", "per_device_train_batch_size"],
    ),
    ("another loss", going_on(loss="ipo"), ["another configuration", "'sigmoid'", "'ipo'"]),
    ("another data set", going_on(data=some_pairs(9)), ["another data set", "data.items was 10"]),
    (
        "another truncation",
        going_on(max_response_tokens=9),
        ["another encoding", "encoding.max_response_tokens was none and is now 9"],
    ),
    ("another model", going_on(model=tiny_chat_model(hidden_size=8)), ["hidden_size was 16"]),
    ("other weights under an adapter", other_start, ["another model", "weights was"]),
    (
        "no adapter any more",
        other_adapter,
        ["another adapter", "adapter was 'default' and is now none"],
    ),
    *RECIPES,
]
