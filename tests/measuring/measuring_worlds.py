"""Small made worlds: responses are numbers, a judge that prefers the larger one."""

import random
from collections.abc import Iterator, Sequence

from prefstage.data import Candidates, Prompt, prompt_id_of
from prefstage.judging import Judge
from prefstage.judging.base import Comparison, Judgment, judgment_of_rewards
from prefstage.sampling import Sampler
from prefstage.sampling.base import Sample, SampleRequest


def candidates(number: int, responses: Sequence[str]) -> Candidates:
    """Candidates for one numbered question."""
    prompt = ({"role": "user", "content": f"question {number}"},)
    blank = (None,) * len(responses)
    return Candidates(prompt_id_of(prompt), prompt, tuple(responses), blank, blank)


def answers(count: int, *, skill: float, responses: int = 2, seed: int = 0) -> list[Candidates]:
    """Numbered questions with answers of a writer: numbers around `skill`."""
    draw = random.Random(seed)
    return [
        candidates(i, [f"{draw.gauss(skill, 1.0):.6f}" for _ in range(responses)])
        for i in range(count)
    ]


class LargerIsBetter(Judge):
    """Prefers the larger number; a response that is none leaves it undecided."""

    name = "larger"
    fingerprint = "larger"

    def __init__(self) -> None:
        self.asked: list[Comparison] = []

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        self.asked += comparisons
        return [self._judge(each) for each in comparisons]

    def _judge(self, each: Comparison) -> Judgment:
        try:
            return judgment_of_rewards(float(each.a), float(each.b))
        except ValueError:
            return Judgment(0.5, "undecided")


class LargerIsBetterPointwise(LargerIsBetter):
    """The same preferences by a reward for each response, with its calls counted."""

    def __init__(self) -> None:
        super().__init__()
        self.scored: list[str] = []

    @property
    def counts(self) -> dict[str, int]:
        return {"calls": len(self.scored)}

    def score(self, items: Sequence[tuple[Prompt, str]]) -> list[float]:
        self.scored += [text for _, text in items]
        return [float(text) for _, text in items]


class NumberSampler(Sampler):
    """Writes numbers around `skill`; each depends on its prompt and index alone."""

    def __init__(self, skill: float, *, dies_after: int | None = None) -> None:
        self.name = f"writer of {skill}"
        self.fingerprint = f"writer-{skill}"
        self.skill = skill
        self.written = 0
        self._dies_after = dies_after

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sample]:
        for each in reversed(requests):  # any order is allowed
            if self.written == self._dies_after:
                raise KeyboardInterrupt
            self.written += 1
            text = f"{random.Random(f'{each.prompt_id} {each.index}').gauss(self.skill, 1.0):.6f}"
            reason = "length" if each.index else "stop"
            yield Sample(each.prompt_id, each.index, text, reason, 10, 5)
