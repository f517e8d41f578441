"""Tiny preference trainings, for comparing one run with another."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from prefstage.data import Pair, PairSet, prompt_id_of
from prefstage.training import PreferenceArguments, PreferenceTrainer
from tests.tiny_models import tiny_llama, tiny_tokenizer

WORDS = ["fox", "red", "tall", "moon", "ran", "the", "quick", "story", "once", "time"]


def tiny_pairs(count: int, *, seed: int = 0, gold: bool = False) -> PairSet:
    """Pairs of words by chance: responses of unlike lengths, some prompts that begin alike.

    With `gold` each has a third response.
    """
    rng = random.Random(seed)

    def text(least: int, most: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, most)))

    openings = [text(4, 8) for _ in range(3)]

    def pair() -> Pair:
        prompt = ({"role": "user", "content": f"{rng.choice(openings)} {text(1, 6)}"},)
        chosen, rejected = (({"role": "assistant", "content": text(1, 14)},) for _ in range(2))
        scores = rng.random(), rng.random()
        pair = Pair(prompt_id_of(prompt), prompt, chosen, rejected, *scores)
        third = ({"role": "assistant", "content": text(1, 14)},) if gold else ()
        return replace(pair, gold=third)

    return PairSet.of(pair() for _ in range(count))


def tiny_policy(tokenizer: Any, *, seed: int = 0, **changes: Any) -> Any:
    """A causal LM of random weights, the same at every call."""
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    return tiny_llama(tokenizer, seed=seed, **{**shape, **changes})


def arguments(folder: Path | str, **changes: Any) -> PreferenceArguments:
    """Few steps of a rate at which weights move, and plain gradient descent.

    Without Adam, whose first steps turn rounding into whole steps, differences between
    runs stay as small as their causes.
    """
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_steps": 5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
        "dataloader_pin_memory": False,
    }
    return PreferenceArguments(**{**settings, **changes})


def preference_trainer(
    folder: Path | str,
    *,
    pairs: int = 21,
    data: Any = None,
    model: Any = None,
    eval_dataset: Any = None,
    peft_config: Any = None,
    callbacks: Any = None,
    **settings: Any,
) -> PreferenceTrainer:
    """A trainer of a tiny policy on tiny pairs."""
    tokenizer = tiny_tokenizer("chatml")
    return PreferenceTrainer(
        tiny_policy(tokenizer) if model is None else model,
        arguments(folder, **settings),
        train_dataset=tiny_pairs(pairs) if data is None else data,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=callbacks,
    )


def weights_of(model: Any) -> dict[str, Tensor]:
    """Every weight by name, as it is now."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def largest_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Largest difference between two sets of weights of the same names."""
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def logged(trainer: Any, name: str = "loss") -> list[float]:
    """What the trainer logged under a name, step by step."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]
