import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from prefstage.core import Ledger
from prefstage.core.errors import ConfigError, InputError, ModelError
from prefstage.judging import load_judge, stored
from prefstage.judging.judged import stored_reward
from prefstage.judging.reward_model import RewardModelJudge, RewardModelOptions
from tests.judging.tiny_judges import TEMPLATE, comparison, word_tokenizer

LONG = " ".join(["the cat sat on the mat and it was very good"] * 8)


def test_probability_is_bradley_terry_of_the_models_own_logits(bert_reward: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    judge = load_judge(f"reward:{bert_reward}")
    (judgment,) = judge.compare([comparison("the cat", "sat on the mat", "was bad")])
    model = AutoModelForSequenceClassification.from_pretrained(bert_reward).eval()
    tokenizer = AutoTokenizer.from_pretrained(bert_reward)
    rewards = [
        model(**tokenizer("the cat", text, return_tensors="pt")).logits.item()
        for text in ("sat on the mat", "was bad")
    ]
    assert judgment.probability == pytest.approx(
        1 / (1 + math.exp(rewards[1] - rewards[0])), abs=1e-6
    )
    assert abs(judgment.probability - 0.5) > 1e-3


def test_each_response_is_scored_once(bert_reward: Path) -> None:
    judge = RewardModelJudge.load(str(bert_reward))
    assert judge.pointwise
    on, off = ["the cat", "a dog", "it ran"], ["very good", "not bad"]
    first = judge.compare([comparison("is it", a, b) for a in on for b in off])
    assert judge.counts["calls"] == len(on) + len(off)
    assert judge.compare([comparison("is it", a, b) for a in on for b in off]) == first
    assert judge.counts["calls"] == len(on) + len(off)


def test_a_reward_does_not_depend_on_its_batch(bert_reward: Path) -> None:
    texts = ["the cat", "a dog ran", "it was very good and not bad", "mat", LONG]
    alone = [
        RewardModelJudge.load(str(bert_reward)).score([(({"role": "user", "content": "is"},), t)])
        for t in texts
    ]
    together = RewardModelJudge.load(
        str(bert_reward), options=RewardModelOptions(batch_size=5)
    ).score([(({"role": "user", "content": "is"},), t) for t in texts])
    assert together == pytest.approx([reward for (reward,) in alone], abs=1e-5)


def test_swapping_gives_the_complement_and_equal_texts_tie_without_a_call(
    bert_reward: Path,
) -> None:
    judge = RewardModelJudge.load(str(bert_reward))
    (tie,) = judge.compare([comparison("the cat", "sat", "sat")])
    assert tie.probability == 0.5
    assert judge.counts["calls"] == 0
    forward, backward = judge.compare(
        [comparison("the cat", "sat", "ran on"), comparison("the cat", "ran on", "sat")]
    )
    assert forward.probability + backward.probability == pytest.approx(1, abs=1e-12)


def test_the_prompt_is_cut_first_and_the_cut_is_counted(bert_reward: Path) -> None:
    from prefstage.judging.reward_model import PairEncoder

    tokenizer = word_tokenizer()
    encode = PairEncoder(tokenizer, max_length=32)
    prompt = ({"role": "user", "content": LONG},)
    ids, prompt_cut, response_cut = encode(prompt, "a dog ran")
    assert len(ids["input_ids"]) == 32
    assert (prompt_cut, response_cut) == (True, False)
    assert tokenizer.decode(ids["input_ids"]).endswith("a dog ran [SEP]")
    ids, prompt_cut, response_cut = encode(prompt, LONG)
    assert len(ids["input_ids"]) == 32
    assert (prompt_cut, response_cut) == (True, True)
    assert sum(ids["token_type_ids"]) == 29 - 29 // 2 + 1  # half the window, and a [SEP]
    judge = RewardModelJudge.load(str(bert_reward))
    judge.score(
        [
            (prompt, "a dog ran"),
            (prompt, LONG),
            (({"role": "user", "content": "a"},), "b"),
        ]
    )
    assert judge.counts["truncated"] == 2
    assert judge.counts["responses_truncated"] == 1


def test_options_cut_the_prompt_at_a_fixed_length(bert_reward: Path) -> None:
    from prefstage.judging.reward_model import PairEncoder

    encode = PairEncoder(word_tokenizer(), max_length=20, max_prompt_tokens=4)
    ids, prompt_cut, _ = encode(({"role": "user", "content": "the cat sat on the mat"},), "good")
    assert list(ids["input_ids"]) == [2, 9, 11, 13, 15, 3, 19, 3]
    assert prompt_cut
    judge = load_judge(f"reward:{bert_reward}?max_prompt_tokens=4&max_length=20")
    plain = load_judge(f"reward:{bert_reward}")
    assert judge.fingerprint != plain.fingerprint


def test_chat_template_gives_the_whole_conversation_and_one_bos(
    llama_reward: Callable[..., Path],
) -> None:
    from prefstage.judging.reward_model import ChatEncoder

    tokenizer = word_tokenizer(template=TEMPLATE)
    encode = ChatEncoder(tokenizer, max_length=64)
    prompt = (
        {"role": "system", "content": "very good"},
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "sat"},
        {"role": "user", "content": "a dog"},
    )
    ids, *_ = encode(prompt, "ran on")
    assert tokenizer.decode(ids["input_ids"]) == (
        "<s> <|system|> very good </s> <|user|> the cat </s> <|assistant|> sat </s> "
        "<|user|> a dog </s> <|assistant|> ran on </s>"
    )
    ids, *cut = ChatEncoder(tokenizer, max_length=12)(prompt, "ran on")
    assert tokenizer.decode(ids["input_ids"]) == (
        "<s> <|assistant|> sat </s> <|user|> a dog </s> <|assistant|> ran on </s>"
    )
    assert cut == [True, False]


@pytest.mark.parametrize("pad_token_id", [0, None])
def test_decoder_rewards_are_batch_independent_with_and_without_padding(
    llama_reward: Callable[..., Path], pad_token_id: int | None
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = llama_reward(pad_token_id=pad_token_id)
    judge = load_judge(str(folder))
    assert isinstance(judge, RewardModelJudge)
    prompt = ({"role": "user", "content": "the cat"},)
    texts = ["sat", "sat on the mat", "it was very good and the dog ran"]
    rewards = judge.score([(prompt, text) for text in texts])
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, reward in zip(texts, rewards, strict=True):
        ids = tokenizer.apply_chat_template(
            [*prompt, {"role": "assistant", "content": text}], return_tensors="pt"
        )["input_ids"]
        with torch.no_grad():
            assert reward == pytest.approx(model(ids).logits.item(), abs=1e-5)


def test_multi_logit_models_are_refused(llama_reward: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="3 logits; expected a reward model with one logit"):
        load_judge(f"reward:{llama_reward(num_labels=3)}")


def test_a_base_model_without_its_head_is_refused(bert_reward: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig.from_pretrained(bert_reward)
    BertModel(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"2 missing \(classifier\.bias, classifier\.weight\)"):
        load_judge(f"reward:{tmp_path}")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ("max_lenght=20", ConfigError, "did you mean 'max_length'"),
        ("max_length=many", ConfigError, "max_length"),
        ("max_length=20&max_prompt_tokens=20", InputError, "so that a response has room"),
        ("chat_template=true", ModelError, "has no chat template"),
        ("device=warp", InputError, "device 'warp'"),
    ],
)
def test_wrong_options_say_what_to_do(
    bert_reward: Path, options: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_judge(f"reward:{bert_reward}?{options}")


def test_fingerprint_follows_the_weights(bert_reward: Path) -> None:
    judge = RewardModelJudge.load(str(bert_reward))
    judge.score([(({"role": "user", "content": "a"},), LONG)])  # must leave no trace in it
    other = RewardModelJudge.load(str(bert_reward))
    assert judge.fingerprint == other.fingerprint
    changed = RewardModelJudge.load(str(bert_reward))
    with torch.no_grad():
        next(changed._model.parameters()).add_(1e-3)
    assert changed.fingerprint != judge.fingerprint


def _autoj(shared: Path) -> list[dict[str, object]]:
    with gzip.open(shared / "data" / "autoj_pairwise_human.jsonl.gz", "rt") as stream:
        return [json.loads(line) for line in stream]


def test_small_judge_is_read_by_its_own_recipe(shared: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = shared / "models" / "small-judge"
    rows = _autoj(shared)[::350]
    prompts, texts = [r["prompt"] for r in rows], [r["response 1"] for r in rows]
    judge = load_judge(f"{folder}?max_prompt_tokens=96&max_length=256")
    assert isinstance(judge, RewardModelJudge)
    rewards = judge.score(
        [(({"role": "user", "content": p},), str(t)) for p, t in zip(prompts, texts, strict=True)]
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    spans = [
        tokenizer(
            p,
            add_special_tokens=False,
            return_offsets_mapping=True,
            truncation=True,
            max_length=96,
        )["offset_mapping"]
        for p in prompts
    ]
    cut = [str(p)[: s[-1][1]] for p, s in zip(prompts, spans, strict=True)]
    batch = tokenizer(
        cut, texts, truncation="only_second", max_length=256, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        assert rewards == pytest.approx(model(**batch).logits[:, 0].tolist(), abs=1e-4)


@pytest.mark.slow
def test_small_judge_agrees_with_people_as_published(shared: Path) -> None:
    rows = [row for row in _autoj(shared) if row["label"] != 2]
    judge = load_judge(f"{shared}/models/small-judge?max_prompt_tokens=96&max_length=256")
    judgments = judge.compare(
        [comparison(str(r["prompt"]), str(r["response 1"]), str(r["response 2"])) for r in rows]
    )
    pairs = zip(judgments, rows, strict=True)
    agreed = [(judgment.probability > 0.5) == (row["label"] == 0) for judgment, row in pairs]
    assert len(rows) == 1019
    assert sum(agreed) / len(agreed) == pytest.approx(0.675, abs=0.005)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rewards_that_are_no_numbers_make_an_error_with_the_judges_name(
    bert_reward: Path, tmp_path: Path, value: float
) -> None:
    judge = RewardModelJudge.load(str(bert_reward))
    with torch.no_grad():
        judge._model.classifier.bias.fill_(value)
    pair = comparison("the cat", "sat", "ran on")
    with Ledger(tmp_path / "ledger") as ledger:
        name = f"{bert_reward.name} in float32: 2 of 2 rewards are NaN or infinite"
        with pytest.raises(ModelError, match=name):
            stored(judge, ledger).compare([pair])
        assert stored_reward(judge.fingerprint, (pair.prompt, pair.a), ledger) is None


def test_heads_of_other_shapes_are_refused_by_name(bert_reward: Path) -> None:
    judge = RewardModelJudge.load(str(bert_reward))
    bert = judge._model.bert
    judge._model.forward = lambda **inputs: SimpleNamespace(
        logits=bert(**inputs).last_hidden_state[..., :1]  # of every token, as process rewards are
    )
    with pytest.raises(ModelError, match=r"bert-reward.* gives \[2, \d+, 1\] logits for 2 texts"):
        judge.compare([comparison("the cat", "sat", "ran on")])
    judge._model.forward = bert.forward
    with pytest.raises(ModelError, match="gives no logits for 2 texts; expected a judge with one"):
        judge.compare([comparison("the cat", "sat", "ran on")])
