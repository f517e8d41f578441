"""What a judge's reply says: one function for verdicts and one for ratings."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from prefstage.data.thoughts import Reply, read_parts, read_reply

LOWEST, HIGHEST = 1.0, 10.0
_HALF = 0.5


@dataclass(frozen=True)
class Reading:
    """What a reply says.

    Attributes:
        value: The number; None where the reply is unreadable.
        cause: Why it is unreadable, in a few words; empty where it is readable.
    """

    value: float | None
    cause: str = ""


def read_verdict(
    text: str,
    *,
    reasoning: str = "",
    first_token: Mapping[str, float] | None = None,
    cut: bool = False,
) -> Reading:
    """Read P(A ≻ B) from a judge's reply: 1, 0, ½ for a tie, between by the first token.

    Only unmistakable forms count: the letter alone, at the start of the answer before a
    full stop, bracket or line end, in double brackets, or after a word such as "verdict".
    Contradicting letters are unreadable.

    Args:
        text: The reply; a thought in it is no evidence.
        reasoning: The thought, where the server sends it apart.
        first_token: Log-probs of the likeliest first tokens [nats], where the server gives them.
        cut: Whether the limit of tokens ended the reply.

    Returns:
        The probability, or the cause.
    """
    verdict = _token_verdict(first_token or {})
    if verdict is not None:
        return Reading(verdict)
    reply = _parted(text, reasoning)
    if not reply.answer.strip():
        return Reading(None, _blank(reply, cut=cut))
    answer = reply.answer.strip()
    bare = re.sub(r"[*_`\"'.\s\[\]()]+", " ", answer).strip()
    letters = {letter.upper() for form in _VERDICTS for letter in re.findall(form, answer)}
    if alone := re.fullmatch(r"(?i:(?:response|option|answer|verdict)\s*:?\s*)?([ABCabc])", bare):
        letters.add(alone[1].upper())
    if re.fullmatch(r"(?i)(it is |it's )?a?\s*tie", bare):
        letters.add("C")
    if len(letters) == 1:
        return Reading(_VALUES[letters.pop()])
    return Reading(None, "contradicting verdicts" if letters else "no verdict")


_VALUES = {"A": 1.0, "B": 0.0, "C": 0.5}
_VERDICTS = (
    r"\A\W*([ABC])(?:\s*[.):\]*]|\s*\n|\Z)",
    r"\[\[([ABC])\]\]",
    r"(?i:verdict|answer|winner|choice|preference)\W+(?i:is\W+)?(?i:response\W+|option\W+)?"
    r"([ABC])\b(?!')",
    r"(?i:response|option)\s+([AB])\s+(?i:is|wins)(?i:\s+(?:the\s+)?(?:clearly\s+|much\s+)?"
    r"(?:better|best|winner|superior))",
)


# P(A ≻ B) from the first token's probabilities: (p_A + ½·p_C) / (p_A + p_B + p_C); None if the
# letters have less than half of the mass, as the model was about to write something else.
# Source: expected verdict instead of the sampled one, as in AlpacaEval 2 (Dubois et al. 2024,
# arXiv:2404.04475, §2); a tie counts half for either side.
def _token_verdict(alternatives: Mapping[str, float]) -> float | None:
    mass = dict.fromkeys("ABC", 0.0)
    for token, logprob in alternatives.items():
        letter = re.sub(r"[\s*_`\"'\[(▁Ġ]+", "", token)
        if letter in mass and logprob <= 0:  # a server may write NaN, which is neither
            mass[letter] += math.exp(logprob)
    total = sum(mass.values())
    return (mass["A"] + 0.5 * mass["C"]) / total if total >= _HALF else None


def read_rating(text: str, *, reasoning: str = "", cut: bool = False) -> Reading:
    """Read a rating from a judge's reply.

    ``[[7]]`` wins over ``Rating: 7``, that over ``7/10``; of several of a kind the last one
    counts, since the verdict follows the reasons.

    Args:
        text: The reply; a thought in it is no evidence.
        reasoning: The thought, where the server sends it apart.
        cut: Whether the limit of tokens ended the reply.

    Returns:
        1 to 10, or the cause.
    """
    reply = _parted(text, reasoning)
    if not reply.answer.strip():
        return Reading(None, _blank(reply, cut=cut))
    for form in _RATINGS:
        numbers = form.findall(reply.answer)
        if numbers:
            rating = float(numbers[-1])
            within = LOWEST <= rating <= HIGHEST
            return Reading(rating) if within else Reading(None, "rating out of range")
    return Reading(None, "no rating")


_NUMBER = r"(-?\d+(?:\.\d+)?)"
_RATINGS = (
    re.compile(rf"\[\[\s*{_NUMBER}\s*(?:/\s*10\s*)?\]\]"),
    re.compile(
        rf"(?:rating|score)\W{{0,6}}(?:is\W{{0,3}})?{_NUMBER}(?!\d)(?:\s*(?:/|out of)\s*10\b)?",
        re.IGNORECASE,
    ),
    re.compile(rf"(?<![\d.]){_NUMBER}\s*(?:/|out of)\s*10\b", re.IGNORECASE),
)


# A thought may be a field of its own, stand in the text, or both.
def _parted(text: str, reasoning: str) -> Reply:
    if not reasoning.strip():
        return read_reply(text)
    apart = read_parts(text, reasoning)
    return apart if apart.cut else read_reply(apart.answer)


def _blank(reply: Reply, *, cut: bool) -> str:
    if reply.thought is None:
        return "empty reply"
    return "thought cut by the limit" if cut or reply.cut else "no answer after the thought"
