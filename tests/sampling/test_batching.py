from hypothesis import given
from hypothesis import strategies as st

from prefstage.sampling.transformers_sampler import plan_batches


@given(
    lengths=st.lists(st.integers(1, 300), max_size=60),
    new_tokens=st.integers(1, 100),
    budget=st.integers(1, 2000),
)
def test_every_row_is_planned_once_within_the_budget(lengths, new_tokens, budget):
    batches = plan_batches(lengths, new_tokens=new_tokens, token_budget=budget)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(lengths)))
    for batch in batches:
        assert batch.longest == max(lengths[row] for row in batch.rows)
        size = len(batch.rows) * (batch.longest + new_tokens)
        assert size <= budget or len(batch.rows) == 1
    longest = [batch.longest for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_rows_of_one_prompt_stay_together():
    batches = plan_batches([5, 5, 9, 9, 5, 5], new_tokens=1, token_budget=20)
    assert [batch.rows for batch in batches] == [(2, 3), (0, 1, 4), (5,)]
