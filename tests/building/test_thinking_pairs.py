"""Every builder keeps how a policy wrote a response; judges see its answer alone."""

from dataclasses import replace

import pytest

from prefstage.building.build import groups_of
from prefstage.data.records import Generation, response_message
from prefstage.data.sets import CandidateSet, PairSet
from prefstage.sampling import Sampler
from prefstage.sampling.base import Sample
from tests.building.test_from_bad_rows import BUILDERS, Judge, materials


def generation(text: str) -> Generation:
    """How the policy of these tests writes a text."""
    return Generation(f"THOUGHT of {text}", tuple(text.encode()), "bytes")


class Thinker(Sampler):
    """Thinks before it answers; to some prompts it is cut while it does."""

    name = fingerprint = "thinker"

    def sample(self, requests):
        for each in requests:
            asked = " ".join(str(m["content"]) for m in each.prompt)
            text, cut = f"{asked}: own" + " more" * each.index, each.index == 2
            how = generation(text)
            yield Sample(
                *(each.prompt_id, each.index, "" if cut else text, "length" if cut else "stop"),
                *(3, 2, how.thought, cut, how.token_ids, how.tokenizer),
            )


class Reader(Judge):
    """A judge that must not see thoughts."""

    def _reward(self, prompt: str, text: str) -> float:
        assert "THOUGHT" not in text
        return super()._reward(prompt, text)


def thinking(builder: str, folder):
    """The good rows of a builder, whose responses and own answers a thinking policy wrote."""
    given = materials(builder, "one response", folder)
    candidates = given.candidates and CandidateSet.of(
        replace(row, generations=tuple(map(generation, row.responses)))
        for row in given.candidates
        if row.responses
    )
    pairs = given.pairs and PairSet.of(
        replace(
            pair,
            chosen=(response_message(text := pair.chosen[0]["content"], generation(text)),),
            rejected=(response_message(text := pair.rejected[0]["content"], generation(text)),),
        )
        for pair in given.pairs
    )
    return replace(
        given,
        candidates=candidates,
        pairs=pairs,
        judge=given.judge and Reader("none"),
        sampler=given.sampler and Thinker(),
        aspects={name: Reader("none") for name in given.aspects},
    )


@pytest.mark.parametrize("builder", BUILDERS)
def test_pairs_hold_thoughts_and_tokens_of_what_was_sampled(builder, tmp_path):
    given = thinking(builder, tmp_path)
    built = [each.pair for group in groups_of(given) for each in group]
    from_file = builder.startswith("per-prompt")  # its measurement's answers have none
    sampled = 0
    for pair in built:
        for (message,) in (pair.chosen, pair.rejected):
            text = message["content"]
            if from_file and "sampled" not in message:
                continue
            sampled += 1
            assert message == response_message(text, generation(text))
    assert built
    assert sampled > 0 or builder == "per-prompt"


@pytest.mark.parametrize("builder", ["mixing", "on-policy", "other-policy"])
def test_answers_cut_in_their_thought_are_counted_and_make_no_pair(builder, tmp_path):
    given = thinking(builder, tmp_path)
    list(groups_of(given))
    cut = given.account.figures["answers_cut_in_thought"]
    assert cut > 0
    assert given.account.skipped["empty answer of the policy"] == cut
    assert given.account.notes == [
        f"{cut} answers cut in the thought at max_new_tokens: raise it, or switch thinking off"
    ]
