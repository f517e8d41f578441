"""What a judge's reply says: one function for verdicts and one for ratings.

Both read as a careful person would, and rather say nothing than guess: what a wrong verdict costs
is a wrong result, what an unread one costs is another question. A thought is no evidence; nor is
what the reply quotes, denies, supposes, or says about one aspect.
"""

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping

from prefstage.judging.claims import (
    ANSWERS,
    LABELS,
    SCORES,
    Claim,
    Reading,
    Said,
    answer_of,
    claims_in,
    settled,
)

LOWEST, HIGHEST = 1.0, 10.0
_HALF = 0.5


def read_verdict(
    text: str,
    *,
    reasoning: str = "",
    first_token: Mapping[str, float] | None = None,
    cut: bool = False,
) -> Reading:
    r"""Read P(A ≻ B) from a judge's reply: 1, 0, ½ for a tie, between by the first token.

    Marked verdicts (``[[A]]``, ``\boxed{A}``, JSON, ``Verdict: A``) count before a letter at the
    start or on a line of its own, and before sentences ("Response A is better"). Contradicting
    ones are unreadable unless the reply says that it changes its mind. In a reply that was cut,
    only what it begins with counts: the rest may be a thought whose beginning the server left out.

    Args:
        text: The reply; a thought in it is no evidence.
        reasoning: The thought, where the server sends it apart.
        first_token: Log-probs of the likeliest first tokens [nats], where the server gives them.
            They decide where the reply begins with the letter that it means.
        cut: Whether the limit of tokens ended the reply.

    Returns:
        The probability, or the cause.
    """
    answer, cause = answer_of(text, reasoning, cut=cut)
    if cause:
        return Reading(None, cause)
    cut |= answer.rfind("[[") > answer.rfind("]]")
    alone = None if cut and "[" in answer else _phrase(answer)
    reading = settled(_verdicts, answer, "verdict", cut=cut) if alone is None else Reading(alone)
    begins = re.match(r"[\s*_`\"'(]*\[?([ABC])(?![\w'’])", text)
    if begins and not reasoning.strip() and reading.value == _VALUES[begins[1]]:
        return Reading(_expected(first_token or {}, begins[1], alone is not None, reading.value))
    return reading


# P(A ≻ B) from the first token's probabilities: (p_A + ½·p_C) / (p_A + p_B + p_C); the text's
# verdict if the letters have less than half of the mass, or the likeliest is not the text's and
# the text is more than a letter: then they are of another token.
# Source: expected verdict instead of the sampled one, as in AlpacaEval 2 (Dubois et al. 2024,
# arXiv:2404.04475, §2); a tie counts half for either side.
def _expected(logprobs: Mapping[str, float], letter: str, alone: bool, verdict: float) -> float:
    mass = dict.fromkeys("ABC", 0.0)
    for token, logprob in logprobs.items():
        spelled = re.sub(r"[\s*_`\"'\[(▁Ġ]+", "", token)
        if spelled in mass and logprob <= 0:  # a server may write NaN, which is neither
            mass[spelled] += math.exp(logprob)
    total = sum(mass.values())
    if (
        total < _HALF
        or not mass[letter]
        or (not alone and max(mass, key=mass.__getitem__) != letter)
    ):
        return verdict
    return (mass["A"] + 0.5 * mass["C"]) / total


def read_rating(text: str, *, reasoning: str = "", cut: bool = False) -> Reading:
    """Read a rating from 1 to 10 from a judge's reply.

    ``[[7]]``, JSON and ``Rating: 7`` count before ``7/10`` and a number on a line of its own.
    Contradicting ones, ranges and other scales are unreadable, and so are numbers that the reply
    quotes or denies.

    Args:
        text: The reply; a thought in it is no evidence.
        reasoning: The thought, where the server sends it apart.
        cut: Whether the limit of tokens ended the reply.

    Returns:
        1 to 10, or the cause.
    """
    answer, cause = answer_of(text, reasoning, cut=cut)
    if cause:
        return Reading(None, cause)
    cut |= answer.rfind("[[") > answer.rfind("]]")
    answer = _without_scale(answer)
    alone = None if cut else _number(answer)
    reading = settled(_ratings, answer, "rating", cut=cut) if alone is None else Reading(alone)
    if reading.value is None or LOWEST <= reading.value <= HIGHEST:
        return reading
    return Reading(None, "rating out of range")


# --- Verdicts ------------------------------------------------------------------------------------

_VALUES = {"A": 1.0, "B": 0.0, "C": 0.5}
_LOOK_ALIKES = str.maketrans("АВСΑΒ", "ABCAB")  # Cyrillic and Greek
_NOUN = r"(?:response|answer|assistant|option|model|output|candidate|completion|reply|system)"
_SIDE = (
    rf"(?<![\w'’&/-])(?:(?i:{_NOUN})\s+[(\[]?(?P<{{0}}n>[ABab])[)\]]?|[(\[]?(?P<{{0}}l>[AB])[)\]]?)"
    rf"(?:['’]s\s+(?i:{_NOUN}))?(?![\w'’&/])"
)
_X, _Y = _SIDE.format("x"), _SIDE.format("y")
_TIE = (
    r"(?:it is |it's |it’s |this is |call it )?(?:a )?(?:tie|tied|draw|equal|equally good|neither"
    r"(?: is better)?|both(?: are)?(?: equally good)?|the same|no (?:clear )?(?:preference"
    r"|difference|winner))"
)
_ADVERBS = (
    r"(?:(?i:the|a|an|clearly|much|slightly|far|definitely|significantly|overall|somewhat"
    r"|marginally|by far|still|also|thus|therefore|a bit|a little|substantially|considerably"
    r"|strictly|easily)\s+)*"
)
_AFTER = (
    r"(?=\s*(?:[^\w\s]|\Z|(?i:than|because|since|as|due|and|overall|here|by|but|with|response"
    r"|answer|one|option|choice|in|at|on|for|of the two|if|when|unless)\b))"
)
_COMPARED = re.compile(r"([AB])\s*(>+|≫|≻|<+|≪|≺|=+|≈|~)\s*([AB])", re.IGNORECASE)
_MARKED = re.compile(
    r"\[\[\s*([^\[\]\n]{1,40}?)\s*\]\]"
    r"|\\boxed\{(?:\\\w+\{)?\s*([^{}\n]{1,40}?)\s*\}|\[result\]:?\s*([^\n]{1,40})"
    rf"|<(?:answer|{LABELS})>\s*([^<\n]{{1,40}}?)\s*</",
    re.IGNORECASE,
)
_VALUE = (
    rf"[(\[]?(?:(?i:{_NOUN})\s+)?[(\[]?(?:(?P<l>[ABC])|(?P<t>(?i:tie|draw|neither|tied)))[)\]]?"
)
_LABEL = re.compile(
    rf"(?:(?i:\b(?:{LABELS}))|\A\W*(?i:(?:(?:my|the|final|so|overall|therefore)[\s,]+)*"
    rf"(?:{ANSWERS})))"
    rf"(?:\s*(?::|=|→|[-=]+>|\s[-–—]\s)|\s+(?i:is|goes to|would be|was))+[\s:]*(?:(?i:the)\s+)?"
    rf"{_VALUE}(?=\s*(?:\Z|[.;!](?:\s|\Z)|\(|[-–—]\s|,\s*(?i:because|since|as|for|which|due|but|while|and(?!\s+[ABC]\b))\b"
    rf"|(?i:because|since|as|due|is better|wins)\b))"
)
# What follows is A's merit (+), B's merit of the same sign, or a tie.
_PROSE = tuple(
    (re.compile(pattern), sign)
    for pattern, sign in (
        (
            rf"{_X}\s+(?i:is|was|seems|appears)\s+(?i:to be\s+)?{_ADVERBS}(?i:better|best|superior"
            rf"|preferable|preferred|stronger|winner){_AFTER}",
            1,
        ),
        (rf"{_X}\s+{_ADVERBS}(?i:wins){_AFTER}", 1),
        (rf"{_X}\s+{_ADVERBS}(?i:beats|outperforms|surpasses|edges out|outshines)\s+{_Y}", 1),
        (rf"{_X}\s+(?i:is|was)\s+{_ADVERBS}(?i:worse|worst|inferior|weaker|loser){_AFTER}", -1),
        (rf"{_X}\s+{_ADVERBS}(?i:loses){_AFTER}", -1),
        (
            rf"\bI(?:['’]d|['’]ll| would| will| have to| must| do)?\s+(?i:{_ADVERBS}|strongly\s+)"
            r"(?i:choose|chose|pick|picked|select|prefer|favou?r|go with|vote for|recommend)\s+"
            rf"(?:the\s+)?{_X}(?!\s*(?i:or|and)\b)",
            1,
        ),
        (
            rf"{_X}\s+(?i:provides|gives|offers|has)\s+{_ADVERBS}(?i:slight\s+|clear\s+)?"
            rf"(?i:(?:better|best|stronger|superior)\s+{_NOUN}|edge){_AFTER}",
            1,
        ),
        (rf"\b(?i:edge to)\s+{_X}", 1),
        (
            rf"\bI\s+(?i:find|found|consider|judge|deem)\s+{_X}\s+(?i:to be\s+|is\s+)?{_ADVERBS}"
            rf"(?i:better|best|superior|preferable|stronger){_AFTER}",
            1,
        ),
        (rf"{_X}\s*(?:>+|≫|≻|\b(?i:over)\b)\s*{_Y}(?!\s*[<>=])", 1),
    )
)
_WORD_BEFORE = re.compile(r"(\w+)\s+\W?\Z")
_LEADS = re.compile(  # words before a letter that do not make it a name
    r"and|but|so|that|think|believe|say|find|feel|therefore|thus|hence|overall|because|since|while"
    r"|though|although|conclude|then|clearly|finally|balance|conclusion|summary|opinion|whole|me",
    re.IGNORECASE,
)
_TIES = re.compile(
    r"\b(?:it(?: is|['’]s)|this is|call it|declare|choose|pick|results? in)\s+(?:a\s+)?"
    r"(?:tie|draw)\b"
    r"|\bequally (?:good|bad|well|helpful|strong|valid|correct)\b"
    rf"|\bneither (?:one |of them |(?:{_NOUN} )?(?:A )?(?:nor (?:{_NOUN} )?B )?)?is (?:clearly )?"
    r"better\b|\bno clear winner\b",
    re.IGNORECASE,
)
_LEADING = re.compile(
    r"\W*\b([ABC])(?P<mark>[.):\]]|\s+[-–—](?=\s)|,?(?=\s+(?:because|since|as)\b))+(?=\s|\Z)"
    r"(?!\s*[ABC]\b)"
)


_LISTED = re.compile(r"^\W*[ABC]\s*[.):\]]|\b[ABC][):]", re.MULTILINE)  # what such a letter heads
_HEADED = re.compile(rf"\s*(?:the |this )?(?:first |second )?(?:{_NOUN}\b|\Z)", re.IGNORECASE)
_LONE = re.compile(r"^[^\w\n:?]*([ABC]|[Tt](?=ie\b))(?:ie)?[^\w\n:?+]*$", re.MULTILINE)


# The verdict that a short text is, without anything else; None if it is none.
def _phrase(text: str) -> float | None:
    bare = unicodedata.normalize("NFKC", text).translate(_LOOK_ALIKES)
    bare = re.sub(r"\\(?:boxed|text\w*)|[*_`\"'“”‘’«»()\[\]{}$【】]+", " ", bare)
    bare = bare.strip(" \t\n.,!-•")
    bare = re.sub(r"\s+", " ", bare)
    if compared := _COMPARED.fullmatch(bare):
        first, sign, second = compared[1].upper(), compared[2][0], compared[3].upper()
        if first == second:
            return None
        return 0.5 if sign in "=≈~" else _VALUES[first if sign in ">≫≻" else second]
    letter = re.fullmatch(
        rf"(?:(?:(?:my |the |final )*(?:{LABELS}|{ANSWERS})\s*(?:is|:|=)?\s*)?(?:the )?"
        rf"(?:{_NOUN} ?)?"
        r"([ABC])(?: is (?:the )?(?:clearly |much |slightly )?(?:better|best|winner)| wins)?)",
        bare,
        re.IGNORECASE,
    )
    if letter:
        return _VALUES[letter[1].upper()]
    return 0.5 if re.fullmatch(_TIE, bare, re.IGNORECASE) else None


def _verdicts(text: str, cut: bool) -> Iterator[Claim]:
    leading = _LEADING.match(text)
    if (
        leading
        and not (cut and _HEADED.match(text, leading.end()))
        and not _LISTED.search(text, leading.end())
    ):
        yield Claim(_VALUES[leading[1]], False, 0)
    for line in _LONE.finditer(text):
        yield Claim(0.5 if line[1] in "Tt" else _VALUES[line[1]], False, line.start())
    yield from claims_in(text, _said)


def _said(sentence: str) -> Iterator[Said]:
    for match in _MARKED.finditer(sentence):
        yield *match.span(), True, _phrase(next(filter(None, match.groups())))
    for match in _LABEL.finditer(sentence):
        yield *match.span(), True, _VALUES[match["l"]] if match["l"] else 0.5
    for pattern, sign in _PROSE:
        for match in pattern.finditer(sentence):
            sides = match.groupdict("")
            letter, other = (
                (sides.get(f"{side}n", "") + sides.get(f"{side}l", "")).upper() for side in "xy"
            )
            # "Plan A is better" is about the matter.
            bare = sides["xl"] and match.start() == match.start("xl")
            word = _WORD_BEFORE.search(sentence, max(0, match.start() - 20), match.start())
            if letter != other and not (bare and word and not _LEADS.fullmatch(word[1])):
                yield *match.span(), False, 0.5 + sign * (_VALUES[letter] - 0.5)
    for match in _TIES.finditer(sentence):
        yield *match.span(), False, 0.5


# --- Ratings -------------------------------------------------------------------------------------

_NAMES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_WORDS = {name: str(number) for number, name in enumerate(_NAMES, 1)}
_WORD = re.compile(
    rf"\b({'|'.join(_WORDS)})\b(?=\s*(?:\Z|[.\]*!)]|out of (?:ten|10)\b|/\s*10))", re.IGNORECASE
)
# Notes such as "(1-10)" and "on a scale of 1 to 10".
_SCALE_NOTE = re.compile(
    r"(?:[(\[][ \t]*)?(?:\bon\s+)?(?:\b(?:an?|the)\s+)?(?:\bscale\s+)?(?:\b(?:of|from|between)\s+)?"
    r"(?<![\d.,/-])[01]\s*(?:-|–|—|to|and|\.\.+)\s*10\b(?!\s*/)(?![.,]\d)(?:\s+scale\b)?"
    r"(?:[ \t]*[)\]])?",
    re.IGNORECASE,
)
_OTHER_SCALE = re.compile(r"\bscale\b|\b[01]\s*(?:-|–|to)\s*\d", re.IGNORECASE)
_NUMBER = (
    r"(?P<n>-?(?:0|[1-9]\d*)(?:\.\d+|,[05]0?)?)(?![.,]?\d)"  # a decimal comma before halves only
)
_OF_TEN = r"\s*\(?\s*(?:/|out of|of|von|sur)\s*10(?:[.,]0)?(?![.,]?\d)\)?"
_ENDS = (
    r"(?=\s*(?:\Z|[.;!)\]}](?!\d)|,(?!\s*\d)|[-–—]\s+\D|\((?![^)\n]*(?:scale|\bof\b|/\s?\d"
    r"|\d\s*-\s*\d))|(?:because|since|as|for|due|given|which|but|overall|points?(?!\s+for))\b))"
)
_SCORED = re.compile(
    rf"(?P<of>\b[^\W\d]+[\s-]+)?\b(?:{SCORES}|(?:final|total)(?=\s*:))"
    r"(?:\s*\([^()\n]{0,80}\)|\s*(?:/|out of)\s*10)?"
    rf"(?:\s+(?:is|at)\b|\s*,?\s*[:=]|\s+[-–—](?=\s))*\s*[\[(]*(?:\$?\\boxed{{)?{_NUMBER}(?:{_OF_TEN})?{_ENDS}",
    re.IGNORECASE,
)
_OF_THE_WHOLE = frozenset(
    [
        "my",
        "the",
        "a",
        "an",
        "this",
        "its",
        "your",
        "final",
        "overall",
        "total",
        "numerical",
        "numeric",
    ]
)
_DOUBLE = re.compile(
    rf"\[\[([^\[\]\n]{{1,40}})\]\]|\[result\]:?\s*([^\n]{{1,40}})|<(?:{SCORES})>([^<\n]{{1,40}})</",
    re.IGNORECASE,
)
_GIVEN = re.compile(
    rf"(?<![\w.,/–—-])(?:(?P<low>\d+(?:\.\d+)?)\s*(?:[-–—]|or|to|and)\s*)?{_NUMBER}{_OF_TEN}"
    rf"(?:{_ENDS}|(?=\s+(?:and|or|to)\b|\s*(?:→|[-=]>)))"
    r"|\bI(?:['’]d|['’]ll| would| will)?\s+(?:rate|give|assign|award|score|grade)\b"
    r"[^.\d\n]{0,60}?\s"
    rf"{_NUMBER.replace('<n>', '<m>')}(?!\s+as\b){_ENDS}",
    re.IGNORECASE,
)


_OF_A_PART = re.compile(r"\W*[^:]{1,40}:\W*")  # "Accuracy: 8/10"
_COUNTED = re.compile(  # "step 7/10", "on 7/10", "solves 7/10"
    r"\b(?:steps?|questions?|pages?|parts?|turns?|tasks?|items?|tests?|cases?|on|by|since|until|dated"
    r"|than|solves?|solved|passes|passed|answers|answered|gets|got|has|covers|of)\s+\Z",
    re.IGNORECASE,
)


def _without_scale(answer: str) -> str:
    answer = _WORD.sub(lambda match: _WORDS[match[1].lower()], answer)
    return _SCALE_NOTE.sub(" ", re.sub(r"\bout of ten\b", "out of 10", answer))


# The number that a short text is, without anything else; None if it is none.
def _number(text: str) -> float | None:
    bare = re.sub(r"\\boxed|[*_`\"'“”()\[\]{}$【】]+", " ", text).strip(" \t\n.!")
    match = re.fullmatch(
        rf"(?:(?:(?:my|the|a|final|overall)\s+)*(?:{SCORES})\s*(?:is|of|[:=])?\s*)?{_NUMBER}(?:{_OF_TEN})?"
        r"(?:\s*points?)?",
        bare,
        re.IGNORECASE,
    )
    return _float(match["n"]) if match else None


def _float(number: str) -> float:
    return float(number.replace(",", "."))


def _ratings(text: str, _cut: bool) -> Iterator[Claim]:
    for line in re.finditer(r"^[^\n]*[^\n.)]$", text, re.MULTILINE):
        value = _number(line[0])
        if value is not None:
            yield Claim(value, False, line.start())
    yield from claims_in(text, _rated)


def _rated(sentence: str) -> Iterator[Said]:
    for match in _DOUBLE.finditer(sentence):
        yield *match.span(), True, _number(next(filter(None, match.groups())))
    if _OTHER_SCALE.search(sentence):
        return
    for match in _SCORED.finditer(sentence):
        # "Clarity score: 8" is of one aspect.
        if (match["of"] or "the").strip(" \t-").lower() in _OF_THE_WHOLE:
            yield *match.span(), True, _float(match["n"])
    for match in _GIVEN.finditer(sentence):
        before = sentence[: match.start()]
        if not (_OF_A_PART.fullmatch(before) or _COUNTED.search(before)):
            for number in filter(None, match.group("low", "n", "m")):
                yield *match.span(), False, _float(number)
