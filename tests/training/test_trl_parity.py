"""Our losses step by step against TRL's DPOTrainer: same pairs, order, seed and settings."""

import copy
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from prefstage.data import PairSet, load_pairs
from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import arguments, logged, tiny_pairs, tiny_policy

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:trl.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:trl.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:trl.*"),
]

LOSSES = {  # ours -> TRL's, β at TRL's default
    "sigmoid": "sigmoid",
    "ipo": "ipo",
    "hinge": "hinge",
    "nca": "nca_pair",
}
SETTINGS = {
    "optim": "adamw_torch",
    "learning_rate": 3e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 4,
    "train_sampling_strategy": "sequential",
}
BETA = 0.1
PAIRS_A_STEP, MOST_LETTERS = 2, 700  # TRL holds [tokens, vocabulary] for a whole batch
HALF_A_PAIR = 0.5 / PAIRS_A_STEP
METRICS = ("rewards/chosen", "rewards/margins", "logps/chosen", "logps/rejected")


def plain_template(start: str, end: str) -> str:
    """A template whose turns end with the end-of-turn and whose prompts end with a mark.

    TRL trains on whatever the template writes after the end-of-turn, and tokenises prompt
    and response together; here neither makes a difference, so both see the same tokens.
    """
    turns = "{% for m in messages %}{{ START + m['role'] + START + m['content'] + END }}"
    prompt = "{% if add_generation_prompt %}{{ START + 'assistant' + START }}{% endif %}"
    whole = turns + "{% endfor %}" + prompt
    return whole.replace("START", repr(start)).replace("END", repr(end))


def trl_losses(folder: Path, model: Any, tokenizer: Any, pairs: PairSet, **settings: Any) -> Any:
    """TRL's loss at each step; nothing is padded away or cut off."""
    from trl import DPOConfig, DPOTrainer

    ours = arguments(folder, **SETTINGS)
    kept = {
        name: getattr(ours, name)
        for name in ("max_steps", "per_device_train_batch_size", "report_to", "seed", *SETTINGS)
    }
    args = DPOConfig(
        output_dir=str(folder / "trl"),
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        beta=BETA,
        dataloader_pin_memory=False,
        **{**kept, **settings},
    )
    rows = [
        {"prompt": list(p.prompt), "chosen": list(p.chosen), "rejected": list(p.rejected)}
        for p in pairs
    ]
    trainer = DPOTrainer(
        model,
        ref_model=copy.deepcopy(model),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def our_losses(folder: Path, model: Any, tokenizer: Any, pairs: PairSet, **settings: Any) -> Any:
    from prefstage.training import PreferenceTrainer

    trainer = PreferenceTrainer(
        model,
        arguments(folder, **{**SETTINGS, **settings}),
        train_dataset=pairs,
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def compare(folder: Path, name: str, tokenizer: Any, pairs: PairSet, **settings: Any) -> float:
    """Largest relative difference of a step's loss."""
    spec = {"name": name, "tau" if name == "ipo" else "beta": BETA}
    ours = our_losses(folder, tiny_policy(tokenizer), tokenizer, pairs, loss=spec, **settings)
    theirs = trl_losses(
        folder, tiny_policy(tokenizer), tokenizer, pairs, loss_type=LOSSES[name], **settings
    )
    left, right = logged(ours), logged(theirs)
    assert len(left) == len(right) == ours.state.max_steps
    assert max(right) - min(right) > 1e-3 * abs(right[0])  # something was learned
    # Rewards of IPO are the loss's own here, τ times means over tokens; TRL's DPOTrainer has sums.
    for metric in METRICS[2:] if name == "ipo" else METRICS:
        assert logged(ours, metric) == pytest.approx(logged(theirs, metric), rel=1e-3, abs=1e-3)
    # The first update is of rate 0; until the second, margins are 0 but for rounding.
    # A margin of rounding size counts half here, and for TRL what rounding makes of it.
    accuracies = [logged(one, "rewards/accuracies")[2:] for one in (ours, theirs)]
    for a, b in zip(*accuracies, strict=True):
        assert a == b or (abs(a - b) == HALF_A_PAIR and a % (2 * HALF_A_PAIR) == HALF_A_PAIR)
    assert sum(a != b for a, b in zip(*accuracies, strict=True)) <= len(accuracies[0]) // 4
    return max(abs(a - b) / abs(b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("name", ["sigmoid", "ipo"])
def test_losses_follow_trls_for_a_few_steps(name: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = plain_template("<|im_start|>", "<|im_end|>")
    worst = compare(tmp_path, name, tokenizer, tiny_pairs(20), max_steps=4)
    assert worst < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_losses_follow_trls_on_real_pairs(name: str, tmp_path: Path, shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(shared / "models" / "small-judge"))
    tokenizer.chat_template, tokenizer.eos_token = plain_template("[CLS]", "[SEP]"), "[SEP]"
    pairs = load_pairs(
        str(shared / "data" / "hh_rlhf_harmless_test.jsonl.gz"),
        on_bad_row="quarantine",
        quarantine_file=tmp_path / "bad_rows.jsonl",
    )
    short = [pair for pair in pairs if len(str(pair)) < MOST_LETTERS][: 20 * PAIRS_A_STEP]
    worst = compare(
        tmp_path,
        name,
        tokenizer,
        PairSet.of(short),
        max_steps=20,
        per_device_train_batch_size=PAIRS_A_STEP,
    )
    print(f"{name}: largest relative difference of a step's loss from TRL's: {worst:.2g}")
    assert worst < 1e-3
