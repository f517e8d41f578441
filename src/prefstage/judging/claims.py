"""Evidence in a judge's reply: what may count, what claims a value, and what only seems to."""

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prefstage.data.thoughts import read_parts, without_thoughts


@dataclass(frozen=True)
class Reading:
    """What a reply says.

    Attributes:
        value: The number; None where the reply is unreadable.
        cause: Why it is unreadable, in a few words; empty where it is readable.
    """

    value: float | None
    cause: str = ""


# --- The answer ----------------------------------------------------------------------------------

_LONGEST = 50_000  # characters: what is longer is no judgment, and would take seconds to read
_CONTROL = re.compile(r"(?:(?<!\s)\s*(?:<\|[^|<>\s]{1,40}\|>|</?s>|<eos>|<end_of_turn>))+\s*\Z")
_QUOTED = re.compile(
    r"\"(?:[^\"\\\n]|\\.){1,4000}\"|“[^“”\n]{1,4000}”|«[^«»\n]{1,4000}»|„[^„“”\n]{1,4000}[“”]"
    r"|(?<!\w)'[^'\n]{1,4000}'(?!\w)|(?<!\w)‘[^‘’\n]{1,4000}’(?!\w)"
)
LABELS = (
    r"verdict|decision|judge?ment|winner|choice|preference|vote|pick|conclusion|result"
    r"|final answer"
    r"|(?:better|best|preferred|stronger) (?:response|answer|assistant|one|option|model)"
    r"|urteil|veredicto|вердикт|结论|判断"
)
ANSWERS = (
    r"answer|better|best|preferred|choose|overall|final|antwort|respuesta|réponse|risposta|resposta"
    r"|ответ|答案|回答"
)
SCORES = (
    r"rating|score|grade|overall|bewertung|wertung|puntuación|calificación|punteggio|оценка"
    r"|评分|得分|分数|評価"
)
# Fields of JSON: a verdict is no number ("winner": "A"), and a rating is one ("rating": 7).
_FIELD = re.compile(
    rf"[\"'](?:(?:final|overall|my|the)[_ ]?)?(?:(?:{LABELS.replace(' ', '[_ ]?')}|answer|better"
    rf"|best|preferred|chosen|selected|label)[\"']\s*:(?!\s*[\"']?[-\d])"
    rf"|(?:{SCORES})[\"']\s*:(?=\s*[\"']?[-\d]))"
    r"\s*(?P<quote>[\"']?)(?P<value>[^\"'\n,{}\[\]]{1,40}?)(?P=quote)\s*(?=,(?!\d)|[}\n]|\Z)",
    re.IGNORECASE,
)
_LABELLED = re.compile(rf"(?:{LABELS}|{SCORES}|answer)\W{{0,4}}(?:is\W{{1,3}})?\Z", re.IGNORECASE)


def answer_of(text: str, reasoning: str, *, cut: bool) -> tuple[str, str]:
    """The text that may be evidence, as written; or why there is none.

    Args:
        text: Of a reply.
        reasoning: The thought, where the server sends it apart.
        cut: Whether the limit of tokens ended the reply.

    Returns:
        (answer, ""), or ("", cause).
    """
    content = read_parts(text, reasoning).answer if reasoning.strip() else text
    reply = without_thoughts(content)
    if reply.cut:
        return "", "thought cut by the limit"
    answer = reply.answer.strip()
    if len(answer) > _LONGEST:
        return "", "too long an answer"
    if answer:
        return _CONTROL.sub("", answer), ""
    if reply.thought is None and not reasoning.strip():
        return "", "empty reply"
    return "", "thought cut by the limit" if cut else "no answer after the thought"


# The text without emphasis, quotations, and typographic forms of its characters.
def _plain(answer: str) -> str:
    if whole := re.fullmatch(r"[\"“'](?P<inside>[^\"“”]+)[\"”'][.!]?", answer):
        answer = whole["inside"]
    answer = re.sub(r"^[ \t]*>.*", "", answer, flags=re.MULTILINE)  # what it quotes
    answer = _FIELD.sub(r"[[\g<value>]]", answer)
    answer = re.sub(r"(\d)(?:\s*½|\s+1/2| and (?:a|one) half)", r"\1.5", answer)
    answer = unicodedata.normalize("NFKC", answer).replace("\u2212", "-")  # NFKC keeps the minus

    def unquoted(match: re.Match[str]) -> str:
        inside = match[0][1:-1]
        before = answer[max(0, match.start() - 40) : match.start()]
        short = re.fullmatch(r"\W?(?:[A-C]|tie|\d+(?:\.\d+)?)[.)]?", inside, re.IGNORECASE)
        return inside if short or _LABELLED.search(before) else " … "

    answer = _QUOTED.sub(unquoted, re.sub(r"```\w*|[*`#]+|(?<!\w)_{1,3}|_{1,3}(?!\w)", "", answer))
    return re.sub(r":\s*\n\s*", ": ", answer)  # what a line announces stands on the next


# --- What claims a value, and what does not ------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A value that a text claims.

    Attributes:
        value: The value.
        strong: Whether in a marked or labelled form.
        start: Where.
    """

    value: float
    strong: bool
    start: int


Said = tuple[int, int, bool, float | None]  # start, end, strong, value

_SENTENCE = re.compile(
    r"[^\n]+?(?:(?<!e\.g)(?<!i\.e)(?<!vs)(?<![.!?;])[.!?;]++(?=[\s)\]\"']|\Z)|(?=\n)|\Z)"
)
_CLAUSE = re.compile(
    r".*(?:[,;:—]|\s[-–]\s|\b(?:but|so|and|because|since|therefore|hence|thus|though)\b)", re.DOTALL
)
_DENIED = re.compile(
    r"\b(?:not|never|cannot|\w+n['’]t|nor|neither|hardly|no|could|might|perhaps|maybe|possibly"
    r"|hard|difficult|(?<!\bI )would|unclear|instead|rather|either|without|lest)\b",
    re.IGNORECASE,
)
# Of a sentence's whole beginning: conditions, reports, and talk about the form of an answer.
_SUPPOSED = re.compile(
    r"\b(?:if|unless|whether|suppose|supposing|assuming|imagine|pretend\w*|should|format|form"
    r"|example|template|such as|like this|e\.g|instruct\w*|not that"
    r"|not (?:say|think|believe|claim|agree)"
    r"|n['’]t (?:say|think|believe|claim|agree))\b"
    r"|\b(?:says|said|saying|claim(?:s|ed|ing)?|states|stated|argues|argued|insists|insisted|asks?"
    r"|asked|asking|demands|demanded|tells|told|writes|wrote|declares|declared|requests|requested"
    r"|wants|wanted|tries|tried|attempts)\b(?!.*\b(?:so|therefore|thus|hence|but|making)\b)"
    r"|\b(?:contains|includes|concludes|gives|gave|ends|answers|chooses|chose|picks|picked|selects"
    r"|selected|outputs|with)\W+(?:\w+\W+){0,2}\Z",
    re.IGNORECASE | re.DOTALL,
)
_ASPECT = re.compile(
    r"(?:\A|[,;:]\s*|\b(?:but|and|while)\s+)\W*(?:for|in|on|at|as for|as to|regarding|concerning"
    r"|stylistically|\w+-wise)\b(?!\s+(?:conclusion|summary|short|sum|brief|my|the end|general"
    r"|the whole|balance|both|all|these|this|that|the above|me|every|any)\b)",
    re.IGNORECASE,
)
# Right after the claim.
_RESTRICTED = re.compile(
    r"\s+than\s+(?:the )?(?:nothing|average|expected|usual|most|many|none|some|before)\b"
    r"|[^,;.]*(?:\b(?:if|unless|when|provided|only)\b|.*\?\W*\Z)"
    r"|(?:\s+than\s+(?:\w+\s+)?\w+)?\s+(?:in|at|on|for|regarding|with)\b"
    r"(?!\s+(?:every|all|most|my|general|the end|the whole|balance|this|these|that)\b)",
    re.IGNORECASE,
)
_REVISED = re.compile(
    r"\b(?:wait|on second thought|on reflection|at first|initially|scratch that|correction"
    r"|i (?:change|changed) my mind|let me re\w+|i misread|reconsidering|(?<=[.!?] )actually,"
    r"|\Aactually,|no, )",
    re.IGNORECASE,
)


_NEAR = 1000  # characters of a sentence on either side that a claim may depend on
_OPENING = re.compile(r"(?:\W|\b(?:my|the|final|overall|i think|i believe)\b)*", re.IGNORECASE)


# Whether a sentence means what it says from `start` to `end`.
def _meant(sentence: str, start: int, end: int, *, strong: bool) -> bool:
    before, after = sentence[max(0, start - _NEAR) : start], sentence[end : end + _NEAR]
    clause = before[m.end() :] if (m := _CLAUSE.match(before)) else before
    return not (
        _DENIED.search(clause)
        or _SUPPOSED.search(before)
        or _RESTRICTED.match(after)
        or (not strong and _ASPECT.search(before))
    )


def claims_in(text: str, said: Callable[[str], Iterator[Said]]) -> Iterator[Claim]:
    """What the sentences of a text claim and mean.

    Args:
        text: Without quotes.
        said: Finds what a sentence says: where it starts and ends, whether in a strong form, and
            the value, or None.

    Yields:
        Claims, sentence by sentence.
    """
    for sentence in _SENTENCE.finditer(text):
        for start, end, strong, value in said(sentence[0]):
            if value is not None and _meant(sentence[0], start, end, strong=strong):
                yield Claim(value, strong, sentence.start() + start)


def settled(
    claims_of: Callable[[str, bool], Iterator[Claim]], answer: str, what: str, *, cut: bool
) -> Reading:
    """What the claims of an answer come to.

    Args:
        claims_of: Finds them in the plain text, given whether it was cut.
        answer: As `answer_of` gives it.
        what: "verdict" or "rating".
        cut: Whether the limit of tokens ended it.

    Returns:
        The one value that is claimed, or the cause.
    """
    text = _plain(answer)
    if cut:  # the last word may be a part of one
        text = re.sub(r"(?:\A|(?<=[\s\]})]))[^\s\]})]*\Z", "", text.rstrip())
    claims = [c for c in claims_of(text, cut) if not cut or _OPENING.fullmatch(text, 0, c.start)]
    if cut and not claims:
        return Reading(None, "cut by the limit")
    strong = {claim.value for claim in claims if claim.strong}
    weak = {claim.value for claim in claims if not claim.strong}
    values = strong | weak if not strong or len(weak) == 1 else strong
    revised = [match.start() for match in _REVISED.finditer(text)]
    if claims and revised and revised[-1] > min(claim.start for claim in claims):
        values = {claim.value for claim in claims if claim.start > revised[-1]} or {0.0, 1.0}
    if len(values) == 1:
        return Reading(values.pop())
    return Reading(None, f"contradicting {what}s" if values else f"no {what}")
