import pytest

from prefstage.data import Candidates, prompt_id_of
from tests.tiny_models import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer("chatml")


@pytest.fixture(scope="session")
def policy(tokenizer):
    """A tiny model whose answers are random but not uniform, and end now and then."""
    model = tiny_llama(
        tokenizer,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    ).eval()
    # A dozen tokens end a response, so that a random model ends some before they are cut.
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(200, 212)]
    return model


def candidates(text: str) -> Candidates:
    prompt = ({"role": "user", "content": text},)
    return Candidates(prompt_id_of(prompt), prompt, (), (), ())


@pytest.fixture(scope="session")
def prompts():
    texts = ["Hi", "What is the capital of France?", "Write a short story about a fox. " * 3]
    return [candidates(f"{text} {number}") for number in range(4) for text in texts]
