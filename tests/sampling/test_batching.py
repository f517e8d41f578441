from hypothesis import given, strategies as st

from prefstage.sampling.transformers_sampler import plan_batches


@given(
    lengths=st.lists(st.integers(1, 300), max_size=60),
    new_tokens=st.integers(1, 100),
    budget=st.integers(1, 2000),
)
def test_every_row_is_planned_once_within_the_budget(lengths, new_tokens, budget):
    batches = plan_batches(lengths, new_tokens=new_tokens, token_budget=budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    longest = [max(lengths[row] for row in batch) for batch in batches]
    for batch, length in zip(batches, longest, strict=True):
        assert len(batch) * (length + new_tokens) <= budget or len(batch) == 1
    assert longest == sorted(longest, reverse=True)


def test_rows_of_one_prompt_stay_together():
    batches = plan_batches([5, 5, 9, 9, 5, 5], new_tokens=1, token_budget=20)
    assert batches == [(2, 3), (0, 1, 4), (5,)]
