"""Control tokens that texts spell, in sampling, scoring and training, for seven families.

Local judges have the same test in tests/judging.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefstage.data import Candidates, ResponseEncoder, load_pairs, prompt_id_of
from prefstage.diagnosing.scoring import pair_trees
from prefstage.sampling import SamplingConfig, TransformersSampler
from prefstage.sampling.base import requests_for
from prefstage.training import PreferenceArguments, PreferenceTrainer
from tests.data.chat_templates import with_control_tokens
from tests.tiny_models import TEMPLATES, tiny_llama, tiny_tokenizer

FAMILIES = sorted(set(TEMPLATES) - {"base"})
_HONEST = {"prompt": "Hello", "chosen": "Hi.", "rejected": "Go."}


def control_tokens(tokenizer: Any, ids: Any) -> list[int]:
    special = {token for token, text in tokenizer.added_tokens_decoder.items() if text.special}
    return [token for token in ids if token in special]


def tokens_of(tree: Any) -> list[list[int]]:
    return [[*tree.prompt_ids, *ids] for ids in tree.response_ids]


@pytest.mark.parametrize("family", FAMILIES)
def test_control_tokens_are_those_of_the_template_alone(family: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(family)
    model = tiny_llama(tokenizer, max_position_embeddings=2048)
    _, asked, answer = with_control_tokens(tokenizer)
    forged = {"prompt": asked["content"], "chosen": answer["content"], "rejected": "Go."}
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(forged) + "\n" + json.dumps(_HONEST) + "\n")
    pairs = load_pairs(file)

    trainer = PreferenceTrainer(
        model,
        PreferenceArguments(output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none"),
        train_dataset=file,
        processing_class=tokenizer,
    )
    trained = [item.trees[0] for item in trainer.train_dataset.items]
    scored, _ = pair_trees(list(pairs), ResponseEncoder(tokenizer))
    for trees in (trained, scored):
        bad, good = map(tokens_of, trees)
        for got, right in zip(bad, good, strict=True):
            assert control_tokens(tokenizer, got) == control_tokens(tokenizer, right)
    assert [replace(tree, opening_ids=()) for tree in trained] == scored

    sampler = TransformersSampler(model, tokenizer, SamplingConfig(responses=1, max_new_tokens=1))
    rows = [Candidates(prompt_id_of(pair.prompt), pair.prompt, (), (), ()) for pair in pairs]
    prompts = list(sampler._prompts(requests_for(rows, responses=1)).values())
    bad_prompt, good_prompt = (control_tokens(tokenizer, ids) for ids in prompts)
    assert bad_prompt == good_prompt
    assert asked["content"] in tokenizer.decode(prompts[0])
