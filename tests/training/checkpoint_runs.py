"""A tiny preference training, for tests of checkpoints, errors and export."""

from pathlib import Path
from typing import Any

import torch

from prefstage.data import PairSet
from prefstage.data.records import Pair, prompt_id_of
from prefstage.training import PreferenceArguments, PreferenceTrainer
from tests.tiny_models import tiny_llama, tiny_tokenizer

QUESTIONS = ("What is", "Where is", "Why is", "Who saw", "How old is")
WORDS = ("Paris", "a quick fox", "the story", "France, I think", "time", "hello there", "Once")


def some_pairs(count: int = 10, *, shift: int = 0, alike: bool = False) -> PairSet:
    """Pairs of several lengths; if `alike`, both sides begin with the same word."""
    return PairSet.of(pair(number, shift, alike) for number in range(count))


def pair(number: int, shift: int = 0, alike: bool = False) -> Pair:
    asked = f"{QUESTIONS[number % 5]} {WORDS[(number // 3) % 7]}?"
    prompt = [{"role": "user", "content": asked}]
    best, worst = (" and ".join(WORDS[: (number * step + shift) % 4 + 1]) for step in (1, 3))
    return Pair(
        prompt_id=prompt_id_of(prompt),
        prompt=prompt,
        chosen=[{"role": "assistant", "content": f"{best} {number}."}],
        rejected=[{"role": "assistant", "content": f"{best if alike else 'No,'} {worst}."}],
        agreement=0.8,
    )


def tiny_chat_model(*, dropout: float = 0.0, seed: int = 1, hidden_size: int = 16) -> Any:
    """A causal LM for the tiny tokenizer, the same at every call."""
    tokenizer = tiny_tokenizer()
    return tiny_llama(
        tokenizer,
        seed=seed,
        hidden_size=hidden_size,
        num_hidden_layers=2,
        max_position_embeddings=256,
        attention_dropout=dropout,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )


def preference_trainer(
    folder: Path,
    *,
    model: Any = None,
    data: Any = None,
    evaluated: Any = None,
    tokenizer: Any = None,
    lora: bool = False,
    dropout: float = 0.0,
    callbacks: Any = None,
    **settings: Any,
) -> PreferenceTrainer:
    """A trainer on the tiny pairs; `settings` are arguments."""
    arguments = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "logging_steps": 2,
        "save_steps": 1,
        "learning_rate": 1e-2,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "token_budget": 128,
        "disable_dropout": dropout == 0,
        **settings,
    }
    adapter = None
    if lora:
        from peft import LoraConfig

        adapter = LoraConfig(
            r=2,
            lora_alpha=4,
            lora_dropout=dropout,
            target_modules=["q_proj", "v_proj"],
            task_type="CAUSAL_LM",
        )
    torch.manual_seed(5)  # of a new adapter
    return PreferenceTrainer(
        model if model is not None else tiny_chat_model(dropout=0.0 if lora else dropout),
        PreferenceArguments(output_dir=str(folder), **arguments),
        train_dataset=data if data is not None else some_pairs(),
        eval_dataset=evaluated,
        processing_class=tokenizer or tiny_tokenizer(),
        peft_config=adapter,
        callbacks=callbacks,
    )


def run(folder: Path, settings: dict[str, Any]) -> None:
    """Train until done, from the newest checkpoint if there is one."""
    torch.set_num_threads(1)
    trainer = preference_trainer(folder, evaluated=some_pairs(4, shift=1), **settings)
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_state()
