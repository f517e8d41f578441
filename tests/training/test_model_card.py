import pytest
import yaml

from prefstage import LOSSES
from prefstage.losses import parse_loss
from prefstage.training.export import arxiv_numbers, model_card

FACTS = {
    "name": "me/tuned",
    "base": "someone/base-1B",
    "base_on_hub": True,
    "license": "apache-2.0",
    "losses": parse_loss("sigmoid + 0.2*sft").resolved(),
    "reference": "the model as training began",
    "data": [
        {
            "name": "org/pairs",
            "use": "training",
            "kind": "pairs",
            "items": 1234,
            "fingerprint": "ab12",
            "on_hub": True,
            "counts": {"prompts_truncated": 3},
        },
        {
            "name": "held out.jsonl",
            "use": "evaluation",
            "kind": "pairs",
            "items": 10,
            "fingerprint": "cd34",
            "on_hub": False,
            "counts": {},
        },
    ],
    "provenance": {"judge": "PairRM", "stage": "injection"},
    "arguments": {"learning_rate": 5e-7, "optim": "rmsprop"},
    "steps": 2000,
    "epochs": 1.5,
    "before": (0, {"eval_loss": 0.693147, "eval_rewards/accuracies": 0.0}),
    "after": (2000, {"eval_loss": 0.5, "eval_rewards/accuracies": 0.75}),
    "versions": {"torch": "2.13", "peft": None},
}


def front_matter(text: str) -> dict:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_the_front_matter_is_what_the_hub_reads() -> None:
    found = front_matter(model_card(**FACTS))
    assert found["base_model"] == "someone/base-1B"
    assert found["datasets"] == ["org/pairs"]
    assert found["license"] == "apache-2.0"
    assert found["library_name"] == "transformers"
    assert found["pipeline_tag"] == "text-generation"
    assert found["tags"] == ["prefstage", "preference-optimization", "sigmoid", "sft"]


def test_the_text_tells_data_loss_results_and_settings() -> None:
    text = model_card(**FACTS)
    for part in (
        "2,000 optimiser steps (1.5 epochs) by sigmoid + 0.2·sft",
        "| training | [org/pairs](https://huggingface.co/datasets/org/pairs) | 1,234 pairs |",
        "prompts truncated: 3",
        "- judge: PairRM",
        "- stage: injection",
        "**sigmoid** (weight 1, ",
        "beta = 0.1",
        LOSSES["sigmoid"].summary.rstrip("."),
        "[arXiv:2305.18290](https://arxiv.org/abs/2305.18290)",
        "| metric | step 0 | step 2000 |",
        "| `eval_loss` | 0.6931 | 0.5 |",
        "| `learning_rate` | `5e-07` |",
        "| torch | 2.13 |",
        "eprint = {2305.18290}",
        "@software{prefstage",
    ):
        assert part in text
    assert "peft" not in text


def test_an_adapter_is_told_as_one() -> None:
    text = model_card(
        name="a", base="b", losses=FACTS["losses"], data=[], adapter="LORA", train_loss=0.25
    )
    found = front_matter(text)
    assert found["library_name"] == "peft"
    assert "base_model" not in found
    assert "AutoPeftModelForCausalLM" in text
    assert "Mean training loss: 0.25" in text


@pytest.mark.parametrize(
    ("source", "numbers"),
    [
        ("Ethayarajh et al. 2024, arXiv:2402.01306, Eq. 8; TRL", ["2402.01306"]),
        ("2305.18290; again arXiv:2305.18290", ["2305.18290"]),
        ("Hinton 2012", []),
    ],
)
def test_papers_are_found_in_sources(source: str, numbers: list[str]) -> None:
    assert arxiv_numbers(source) == numbers
