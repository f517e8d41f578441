from statistics import mean

import pytest
import torch

from prefstage.data import ResponseEncoder
from prefstage.sandbox import (
    World,
    build_policy,
    build_tokenizer,
    prompt_of,
    train_sft,
    true_reward,
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def demonstrations(tokenizer, n, seed=0):
    encoder = ResponseEncoder(tokenizer)
    return [encoder.encode(prompt, [text]) for prompt, text in World(seed).demonstrations(n)]


def test_the_language_survives_the_tokenizer_without_unknown_tokens(tokenizer):
    encoder = ResponseEncoder(tokenizer)
    for row in World(0).candidates(150, responses=4):
        tree = encoder.encode(row.prompt, row.responses)
        assert tokenizer.unk_token_id not in tree.prompt_ids
        assert tokenizer.decode(tree.prompt_ids[1:-2]) == row.prompt[0]["content"]
        for ids, text in zip(tree.response_ids, row.responses, strict=True):
            assert tokenizer.unk_token_id not in ids
            assert ids[-1] == tokenizer.eos_token_id
            assert encoder.read(ids).answer == text
    assert encoder.counts.borders_moved == 0


def test_system_turns_are_rendered(tokenizer):
    messages = [{"role": "system", "content": "Be polite."}, {"role": "user", "content": "Sort"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>Be polite.<|end|><|user|>Sort<|end|><|assistant|>"


def test_the_policy_is_a_small_llama_and_depends_on_its_seed_alone(tokenizer):
    before = torch.random.get_rng_state()
    first, same, other = (build_policy(tokenizer, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.config.model_type == "llama"
    assert sum(weight.numel() for weight in first.parameters()) <= 2_000_000
    weights = [model.model.layers[0].mlp.up_proj.weight for model in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_policy_survives_saving_with_its_tokenizer(tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = build_policy(tokenizer, seed=0)
    policy.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, tokens = (
        AutoModelForCausalLM.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    prompt = World(0).demonstrations(1)[0][0]
    ids = ResponseEncoder(tokens).prompt_ids(prompt)
    assert ids == ResponseEncoder(tokenizer).prompt_ids(prompt)
    row = torch.tensor([ids])
    assert torch.equal(again(row).logits, policy(row).logits)


def test_sft_is_deterministic_and_leaves_the_random_state_alone(tokenizer):
    trees = demonstrations(tokenizer, 50)
    before = torch.random.get_rng_state()
    runs = []
    for _ in range(2):
        seen: list[int] = []
        policy = build_policy(tokenizer, seed=0, hidden_size=32, layers=1)
        losses = train_sft(
            policy,
            trees,
            steps=4,
            seed=3,
            batch_size=8,
            on_step=lambda step, loss, seen=seen: seen.append(step),
        )
        assert seen == [1, 2, 3, 4]
        runs.append(losses)
    assert runs[0] == runs[1]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_loss_counts_response_tokens_alone(tokenizer):
    trees = demonstrations(tokenizer, 6)
    policy = build_policy(tokenizer, seed=0, hidden_size=32, layers=1)
    sums = []
    for tree in trees:
        (response,) = tree.response_ids
        row = torch.tensor([[*tree.prompt_ids, *response]])
        with torch.no_grad():
            log_probs = policy(row).logits[0, len(tree.prompt_ids) - 1 : -1].log_softmax(-1)
        sums.append(log_probs.gather(-1, torch.tensor(response)[:, None]).sum().item())
    tokens = [len(tree.response_ids[0]) for tree in trees]
    for tree, total, count in zip(trees, sums, tokens, strict=True):
        model = build_policy(tokenizer, seed=0, hidden_size=32, layers=1)
        (loss,) = train_sft(model, [tree], steps=1, seed=0, batch_size=3)
        assert loss == pytest.approx(-total / count, rel=1e-4)


def test_sft_improves_the_true_reward(tokenizer):
    encoder = ResponseEncoder(tokenizer)
    policy = build_policy(tokenizer, seed=0)
    test = World(0).instructions(60, split="test")
    before = greedy_reward(policy, tokenizer, encoder, test)
    losses = train_sft(policy, demonstrations(tokenizer, 2_000), steps=60, seed=0, batch_size=48)
    assert mean(losses[-5:]) < 0.5 * losses[0]
    assert greedy_reward(policy, tokenizer, encoder, test) > before + 0.3


def greedy_reward(policy, tokenizer, encoder, instructions):
    prompts = [prompt_of(one) for one in instructions]
    texts = [encoder.tokenizer.decode(encoder.prompt_ids(prompt)) for prompt in prompts]
    batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    rows = policy.generate(**batch, do_sample=False, max_new_tokens=24)
    responses = rows[:, batch["input_ids"].shape[1] :]
    return mean(
        true_reward(prompt, encoder.read(row.tolist()).answer)
        for prompt, row in zip(prompts, responses, strict=True)
    )
