"""What a judge is: P(a ≻ b | x), the probability that response a is better than b."""

import logging
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, TypeVar

from prefstage.core import InputError, Ledger, ServiceError
from prefstage.data.records import Message, Prompt


def content_of(message: Message) -> str:
    """The text of one message.

    Args:
        message: A chat message whose `content` is a string, empty, or a list of text parts
            (``[{"type": "text", "text": ...}]``).

    Returns:
        Its text; parts are joined by newlines, and no content is the empty string.

    Raises:
        InputError: If the content holds something else than text, such as an image.
    """
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    texts = list[str]()
    for part in content if isinstance(content, list) else [content]:
        # Only a list has parts: a part in place of the content is as unknown as anything else.
        text = part.get("text") if isinstance(part, Mapping) and part is not content else part
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        InputError.unless(
            isinstance(text, str),
            saw=f"a message content of kind {kind!r}",
            expected="text (a string, or a list of text parts)",
            cure="leave out prompts with images or audio, which this judge cannot read",
        )
        texts.append(str(text))
    return "\n".join(texts)


def plain_prompt(prompt: Prompt) -> str:
    """A prompt as plain text: a lone user message as it is, a conversation with speakers.

    Args:
        prompt: Messages up to and with the last user turn.

    Returns:
        The user's text if there is no other message; otherwise one paragraph a message,
        ``User: ...``, blank lines between them.
    """
    if len(prompt) == 1 and prompt[0].get("role") == "user":
        return content_of(prompt[0])
    return "\n\n".join(
        f"{str(message.get('role', 'user')).capitalize()}: {content_of(message)}"
        for message in prompt
    )


_log = logging.getLogger(__name__)
# (prompt, response).
Item = tuple[Prompt, str]
T = TypeVar("T")

_CHUNK = 32  # comparisons asked together of a judge that cannot stream


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt that are to be compared.

    Attributes:
        prompt_id: Names the prompt's content.
        prompt: Messages up to and with the last user turn.
        a: Text of the first response.
        b: Text of the second response.
    """

    prompt_id: str
    prompt: Prompt
    a: str
    b: str


@dataclass(frozen=True)
class Judgment:
    """A judge's answer to one comparison.

    Attributes:
        probability: P(a ≻ b | x) in [0, 1]; ½ is a tie.
        status: "decided"; or "undecided" where the judge gave no readable answer (then
            `probability` is ½).
    """

    probability: float
    status: Literal["decided", "undecided"] = "decided"


class Judge(AbstractContextManager["Judge"]):
    """Says which of two responses is better. The base class of every judge.

    A subclass sets `name` and `fingerprint` and defines one of four methods; the others follow:

    - `compare`, or `stream` if judgments become known one by one;
    - `score`, or `stream_scores`, for a judge that rewards one response at a time (it is
      `pointwise`): m + n rewards serve the m·n comparisons of a prompt.

    `compare` of (a, b) and of (b, a) sum to one, and depend on that comparison alone.

    Attributes:
        name: Short name for people.
        fingerprint: Hash of everything that a judgment depends on besides the texts.
    """

    name: str
    fingerprint: str

    @property
    def pointwise(self) -> bool:
        """Whether `score` gives rewards, with P(a ≻ b) = σ(reward_a - reward_b)."""
        kind = type(self)
        return not (kind.score is Judge.score and kind.stream_scores is Judge.stream_scores)

    @property
    def counts(self) -> Mapping[str, int]:
        """What happened so far: "calls", and where they apply "truncated", "undecided"."""
        return dict(getattr(self, "_counts", {}))

    @property
    def complaints(self) -> list[str]:
        """Why some comparisons were not decided and what to do, a line each; none if all were."""
        return []

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        """Judge each comparison.

        Args:
            comparisons: What to judge.

        Returns:
            One judgment per comparison, in order.

        Raises:
            InputError: If the class defines no method that judges.
        """
        if self.pointwise:
            return compare_by_rewards(self.score, comparisons)
        if type(self).stream is Judge.stream:
            raise _lacks(self, "neither compares nor scores", "compare, stream, score")
        return in_order(self.stream(comparisons), len(comparisons))

    def stream(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Judgment]]:
        """Judge each comparison, and give each judgment as soon as it is known.

        Args:
            comparisons: What to judge.

        Yields:
            (position in `comparisons`, judgment): each position once, in any order.
        """
        for start in range(0, len(comparisons), _CHUNK):
            yield from enumerate(self.compare(comparisons[start : start + _CHUNK]), start)

    def score(self, items: Sequence[Item]) -> list[float]:
        """Reward each response, if the judge is `pointwise`.

        Args:
            items: (prompt, response) of each.

        Returns:
            Rewards, higher is better. [items], nats of preference odds.
        """
        return in_order(self.stream_scores(items), len(items))

    def stream_scores(self, items: Sequence[Item]) -> Iterator[tuple[int, float]]:
        """Reward each response, and give each reward as soon as it is known.

        Args:
            items: (prompt, response) of each.

        Yields:
            (position in `items`, reward): each position once, in any order.

        Raises:
            InputError: If the judge is not pointwise.
        """
        if type(self).score is Judge.score:
            raise _lacks(self, "compares and does not score", "score")
        for start in range(0, len(items), _CHUNK):
            yield from enumerate(self.score(items[start : start + _CHUNK]), start)

    def with_replies_in(self, ledger: Ledger) -> "Judge | None":
        """The same judge, with every single reply that is paid for kept.

        Args:
            ledger: Known replies are read from it, and new ones written to it.

        Returns:
            The judge; None for one whose judgments are kept as a whole.
        """
        return None

    def close(self) -> None:
        """Give up what the judge holds: nothing, unless a subclass says so."""

    def __exit__(self, *_: object) -> None:
        """Close the judge at the end of a block."""
        self.close()


TIE = Judgment(probability=0.5)
UNDECIDED = Judgment(probability=0.5, status="undecided")


def check_decided(judge: Judge, *, decided: int, asked: int) -> None:
    """Warn of what a judge could not decide; refuse to make a result of nothing.

    Args:
        judge: Who was asked.
        decided: How many comparisons of different texts it decided.
        asked: Of how many.

    Raises:
        ServiceError: If it decided none.
    """
    complaints = judge.complaints
    ServiceError.unless(
        decided or not asked,
        saw=f"judge {judge.name} decided none of {asked} comparisons"
        + "".join(f"; {line}" for line in complaints),
        expected="verdicts",
        cure="mend that, and name another store or other options of the judge: replies are kept "
        "and not asked for again",
    )
    for line in complaints:
        _log.warning("judge %s: %s", judge.name, line)


def _lacks(judge: Judge, does: str, methods: str) -> InputError:
    return InputError.of(
        saw=f"judge {type(judge).__name__}, which {does}",
        expected=f"a class derived from prefstage.judging.Judge that defines {methods}",
        cure="define one of its methods" if "," in methods else "use a judge that scores responses",
    )


def turned(comparison: Comparison) -> Comparison:
    """The same comparison with the two responses exchanged."""
    return replace(comparison, a=comparison.b, b=comparison.a)


def flipped(judgment: Judgment) -> Judgment:
    """The same judgment with the two responses exchanged: P(b ≻ a) = 1 - P(a ≻ b)."""
    return replace(judgment, probability=1.0 - judgment.probability)


def judgment_of_rewards(reward_a: float, reward_b: float) -> Judgment:
    """P(a ≻ b) = σ(r_a - r_b) of two rewards; undecided where one is no finite number.

    Args:
        reward_a: Reward of the first response, in nats of preference odds.
        reward_b: Reward of the second.

    Returns:
        The judgment.

    Source:
        Bradley & Terry 1952, Biometrika 39; as the reward model's likelihood, Ouyang et al.
        2022, arXiv:2203.02155, Eq. 1.
    """
    if math.isfinite(reward_a) and math.isfinite(reward_b):
        return Judgment(sigmoid(reward_a - reward_b))
    return UNDECIDED


def sigmoid(logit: float) -> float:
    """σ(z) = 1 / (1 + e^-z) without overflow; σ(z) + σ(-z) = 1 to rounding."""
    # e^z overflows where e^-z does not, and the other way round.
    power = math.exp(-abs(logit))
    return (1.0 if logit >= 0 else power) / (1.0 + power)


_Z_95 = 1.959963984540054


def wilson_interval(share: float, count: int, *, z: float = _Z_95) -> tuple[float, float]:
    """Wilson's score interval of a share.

    ``(p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n)``

    Args:
        share: Observed share p, in [0, 1].
        count: Number of observations n.
        z: Standard normal quantile; the default gives 95 %.

    Returns:
        (low, high) in [0, 1]; (0, 1) without observations.

    Source:
        Wilson 1927, Journal of the American Statistical Association 22(158):209-212.
    """
    if count == 0:
        return 0.0, 1.0
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    middle, scale = share + z * z / (2 * count), 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def compare_by_rewards(
    score: Callable[[Sequence[Item]], list[float]],
    comparisons: Sequence[Comparison],
) -> list[Judgment]:
    """Judge comparisons from the rewards of their responses, each asked for once, in one call.

    Args:
        score: Gives the reward of each (prompt, response).
        comparisons: What to judge; equal texts are a tie and are not scored.

    Returns:
        P(a ≻ b) = σ(r_a - r_b) of each comparison, in order.
    """
    # Keyed by prompt and text: where a response meets every one of the other side, a reward model
    # must not be run on it each time.
    wanted = {
        (c.prompt_id, text): (c.prompt, text)
        for c in comparisons
        if c.a != c.b
        for text in (c.a, c.b)
    }
    known = dict(zip(wanted, score(list(wanted.values())), strict=True))
    return [
        TIE if c.a == c.b else judgment_of_rewards(known[c.prompt_id, c.a], known[c.prompt_id, c.b])
        for c in comparisons
    ]


def in_order(results: Iterable[tuple[int, T]], count: int) -> list[T]:
    """Put streamed results back into the order of what was asked.

    Args:
        results: (position, result), each position from 0 to `count` - 1 once.
        count: Number of positions.

    Returns:
        One result per position, in order.
    """
    by_position = dict(results)
    return [by_position[position] for position in range(count)]


def mean_wins(count: int, judgments: Iterator[Judgment]) -> list[float]:
    """Each response's mean P(wins) over the prompt's others.

    Args:
        count: Number of the prompt's responses.
        judgments: Of their combinations; no more are taken.

    Returns:
        A response's mean; ½ if it is alone, NaN if not one of its comparisons was decided.
    """
    wins: list[list[float]] = [[] for _ in range(count)]
    decided = [count == 1] * count
    # The combinations end first, so that no judgment of the next prompt is taken.
    for (a, b), judgment in zip(combinations(range(count), 2), judgments, strict=False):
        wins[a].append(judgment.probability)
        wins[b].append(1.0 - judgment.probability)
        for number in (a, b):
            decided[number] |= judgment.status == "decided"
    means = (math.fsum(shares) / len(shares) if shares else 0.5 for shares in wins)
    return [mean if known else math.nan for mean, known in zip(means, decided, strict=True)]


def answered_once(
    keys: Sequence[Hashable],
    known: Iterable[T | None],
    ask: Callable[[Sequence[int]], Iterable[tuple[int, T]]],
) -> Iterator[tuple[int, T]]:
    """Answer questions of which some are known already; equal ones are asked once.

    Args:
        keys: One a question: equal for equal questions.
        known: The answer to each, or None.
        ask: Takes positions of questions, and gives (index among these, answer) in any order.

    Yields:
        (position, answer): each position once, what is known first.
    """
    missing: dict[Hashable, list[int]] = {}
    for position, (key, answer) in enumerate(zip(keys, known, strict=True)):
        if answer is None:
            missing.setdefault(key, []).append(position)
        else:
            yield position, answer
    waiting = list(missing.values())
    for index, answer in ask([positions[0] for positions in waiting]):
        yield from ((position, answer) for position in waiting[index])
