"""Candidates, pairs, judges and policies for the tests of building."""

from collections.abc import Iterator, Sequence

from prefstage.data.records import Candidates, Pair, Prompt, prompt_id_of
from prefstage.judging import Judge
from prefstage.judging.base import Comparison, Judgment, judgment_of_rewards
from prefstage.sampling import Sampler
from prefstage.sampling.base import Sample, SampleRequest


def prompt_of(text: str) -> Prompt:
    return ({"role": "user", "content": text},)


def candidates(
    name: str, scores: Sequence[float | None], texts: Sequence[str] | None = None
) -> Candidates:
    prompt = prompt_of(name)
    given = texts or [f"{name}, answer {place}" for place in range(len(scores))]
    return Candidates(
        prompt_id_of(prompt),
        prompt,
        tuple(given),
        tuple(f"writer {place}" for place in range(len(scores))),
        tuple(scores),
    )


def pair(name: str, chosen: str = "good", rejected: str = "bad", **known: float | str) -> Pair:
    prompt = prompt_of(name)
    return Pair(
        prompt_id_of(prompt),
        prompt,
        ({"role": "assistant", "content": chosen},),
        ({"role": "assistant", "content": rejected},),
        **known,  # type: ignore[arg-type]  # scores and sources by name
    )


class CountingRewards(Judge):
    """A pointwise judge that looks scores up by text and counts how often it is asked."""

    name = fingerprint = "rewards by text"

    def __init__(self, rewards: dict[str, float]) -> None:
        self.rewards = rewards
        self.asked: list[str] = []

    def score(self, items: Sequence[tuple[Prompt, str]]) -> list[float]:
        self.asked += [text for _, text in items]
        return [self.rewards[text] for _, text in items]

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        scores = [self.score([(c.prompt, c.a), (c.prompt, c.b)]) for c in comparisons]
        return [judgment_of_rewards(a, b) for a, b in scores]


class PairwiseJudge(Judge):
    """A judge that only compares; what it says of (a, b) comes from a table."""

    name = fingerprint = "by table"

    def __init__(self, says: dict[str, Judgment]) -> None:
        self.says = says

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        return [self.says[each.a] for each in comparisons]


class ScriptedPolicy(Sampler):
    """Answers by a rule; may be killed after some answers."""

    name = fingerprint = "scripted"

    def __init__(self, *, dies_after: int | None = None, empty: bool = False) -> None:
        self.left = dies_after
        self.empty = empty
        self.asked: list[tuple[str, int]] = []

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sample]:
        for request in requests:
            if self.left is not None:
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
            self.asked.append((request.prompt_id, request.index))
            first = str(request.prompt[0]["content"])
            text = "" if self.empty else f"{first}: own {request.index}"
            yield Sample(request.prompt_id, request.index, text, "stop", 5, 3)


def text_of(side: tuple[dict[str, str], ...]) -> str:
    return side[0]["content"]
