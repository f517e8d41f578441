"""What a policy wrote, read as a reader would: a thought, and the answer after it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """A generated text, read.

    Attributes:
        answer: What the policy answers; empty where it was cut while it still thought.
        thought: What it thought before, without the marks and the whitespace around it; None
            if it did not think, or thought nothing.
        cut: Whether the thought never ended.
    """

    answer: str
    thought: str | None = None
    cut: bool = False


# What the families write before and after a thought; where a prompt opened the thought, the
# first one that closes counts.
THOUGHT_MARKS = {
    "<think>": "</think>",  # Qwen3, DeepSeek R1, GLM, Nemotron, Phi 4, Granite, …
    "[THINK]": "[/THINK]",  # Magistral, Mistral
    "<|START_THINKING|>": "<|END_THINKING|>",  # Cohere
    "<|channel>thought": "<channel|>",  # Gemma 4
    "<seed:think>": "</seed:think>",  # Seed-OSS
    "◁think▷": "◁/think▷",  # Kimi-VL
    "<mm:think>": "</mm:think>",  # MiniMax
    "<longcat_think>": "</longcat_think>",  # LongCat
    "<|inner_prefix|>": "<|inner_suffix|>",  # Apertus
    "<|begin_of_thought|>": "<|end_of_thought|>",  # OpenThinker, Sky-T1
    "<unused94>thought": "<unused95>",  # MedGemma
    "[unused16]": "[unused17]",  # Pangu
    "<thought>": "</thought>",  # EXAONE Deep
    "<thinking>": "</thinking>",
    "<reasoning>": "</reasoning>",
    "<reflection>": "</reflection>",
}

_MOST_THOUGHTS = 100  # in a row: a reply of more is noise, and would take minutes to read

# Prose, or what is left where a server drops special tokens: a thought only if both stand there.
_WORDS = (
    # Granite 3.2
    re.compile(
        r"\s*Here(?:'s| is) my thought process:(?P<thought>.*?)"
        r"^[ \t]*+Here(?:'s| is) my response:(?P<answer>.*)",
        re.DOTALL | re.MULTILINE,
    ),
    # gpt-oss without its channel marks
    re.compile(r"\s*analysis(?P<thought>.*?)assistantfinal(?P<answer>.*)", re.DOTALL),
)

# What some models write around the answer: opening, closing, whether at the start of any reply
# or after a thought only.
_ANSWER_MARKS = (
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>", True),
    ("<|begin_of_solution|>", "<|end_of_solution|>", True),
    ("<response>", "</response>", False),  # ERNIE, Granite 3.3
    ("<output>", "</output>", False),  # Reflection
    # On lines of its own (Hunyuan); what a prompt asked for stands inside the text.
    ("<answer>\n", "\n</answer>", False),
)

# gpt-oss, and Muse's turns to itself: a reply is several messages, each after a head.
_HEAD = re.compile(
    r"\s*+(?:<\|start\|>assistant)?\s*+(?:to=(?P<to>[^\s<]+))?\s*+"  # possessive: whitespace runs
    r"(?:<\|channel\|>\s*+(?P<channel>\w+)\s*+(?:to=(?P<late_to>[^\s<]+))?\s*+"
    r"(?:<\|constrain\|>)?[^<\n]{0,80})?<\|message\|>"
)
_PART_OF_HEAD = re.compile(r"\s*<\|(?:start|channel)\|>[^\n]{0,120}\Z")
_MESSAGE_ENDS = re.compile(r"<\|(?:end|eom|call|return|eot)\|>|(?=<\|start\|>assistant)")
_OPENED_CHANNELS = re.compile(r"(?:<\|channel\|>analysis|\sto=self)<\|message\|>\s*\Z")

_FENCED = re.compile(r"^[ \t]*(```|~~~).*?^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE)
_QUOTES = {"'": "'", '"': '"', "“": "”", "‘": "’", "«": "»"}


def read_reply(text: str, *, opened: bool | None = None) -> Reply:
    """Split a generated text into thought and answer, by the convention of the model's family.

    A thought stands at the beginning of the text (after whitespace), or the prompt has opened
    it; marks that an answer speaks about later are its text. A closing mark that the thought
    quotes (in quotes, in inline code, in a fenced block) closes nothing if another one follows.
    Several thoughts in a row are one, with an empty line between them.

    Args:
        text: As generated, special tokens included, without the end-of-turn.
        opened: Whether the generation prompt has opened the thought already; None if nobody
            knows (a server's reply): then a closing mark alone says that it has.

    Returns:
        The reply. Blank lines between thought and answer belong to neither.
    """
    return (
        _in_channels(text, opened=bool(opened))
        or _in_marks(text, opened=opened)
        or _in_words(text)
        or Reply(_unwrapped(text, thought=False))
    )


def read_parts(content: str, reasoning: str) -> Reply:
    """The reply of a server that sends thought and answer apart.

    Args:
        content: What it sends as the answer; empty where the thought never ended.
        reasoning: What it sends as the thought, not empty.

    Returns:
        The reply, as `read_reply` splits it.
    """
    return Reply(_without_lead(content), reasoning.strip() or None, cut=not content.strip())


# A further thought, on a later line of an answer.
_LATER = re.compile(
    "|".join(
        rf"^[ \t]*{re.escape(opening)}.*?(?:{re.escape(closing)}|(?P<cut_{number}>\Z))"
        for number, (opening, closing) in enumerate(THOUGHT_MARKS.items())
    ),
    re.DOTALL | re.MULTILINE,
)


def without_thoughts(text: str) -> Reply:
    """The reply of which no thought is evidence: thoughts on later lines are none of its answer.

    Args:
        text: As for `read_reply`, of a server: nobody knows whether the prompt opened a thought.

    Returns:
        The reply. Cut where any of its thoughts never ended.
    """
    reply = read_reply(text)
    later = list(_LATER.finditer(reply.answer))
    if reply.cut or any(match.lastgroup for match in later):
        return Reply("", reply.thought, cut=True)
    thoughts = [reply.thought or "", *(match[0] for match in later)]
    return Reply(_LATER.sub("", reply.answer), _joined(thoughts))


def opens_thought(generation_prompt: str) -> bool:
    """Whether a generation prompt ends inside a thought, so that a response begins there.

    Args:
        generation_prompt: Its text, or the whole prompt's; special tokens included.

    Returns:
        True if its last text opens a thought.
    """
    return (
        generation_prompt.rstrip().endswith(tuple(THOUGHT_MARKS))
        or _OPENED_CHANNELS.search(generation_prompt) is not None
    )


def _in_marks(text: str, *, opened: bool | None) -> Reply | None:
    families, thoughts, rest = _closing_families(text, opened=opened), list[str](), text
    if not families:
        return None
    while families and len(thoughts) < _MOST_THOUGHTS:
        body = rest.lstrip().removeprefix(families[0][0]) if len(families) == 1 else rest
        # Where the mark that ends a thought begins and ends. One in quotes or code is the
        # thought's text, unless there is no other.
        mark = next(
            (
                (start, start + len(closing))
                for quoted in (False, True)
                for _, closing in families
                for start in _positions(body, closing, quoted=quoted)
            ),
            None,
        )
        if mark is None:
            return Reply("", _joined([*thoughts, body]), cut=True)
        thoughts.append(body[: mark[0]])
        rest = body[mark[1] :]
        families = _closing_families(rest, opened=False)
    if families:
        return Reply("", _joined(thoughts), cut=True)
    return Reply(_unwrapped(_without_lead(rest), thought=True), _joined(thoughts))


def _closing_families(text: str, *, opened: bool | None) -> Sequence[tuple[str, str]]:
    # The families whose closing mark may end the thought that `text` begins in. A closing mark
    # right at the beginning ends a thought that the template has closed.
    known = list(THOUGHT_MARKS.items())
    begun = [marks for marks in known if text.lstrip().startswith(marks)]
    if opened is None and not begun:
        # A server's reply: a closing mark alone says that the prompt opened it.
        ends = ((marks, next(_positions(text, marks[1], quoted=False), None)) for marks in known)
        begun = [marks for marks, end in ends if end is not None and marks[0] not in text[:end]]
    return begun[:1] or (known if opened else ())


def _positions(text: str, mark: str, *, quoted: bool) -> Iterator[int]:
    # Where a mark stands: outside of quotes and code, or anywhere.
    fences = [] if quoted or mark not in text else [m.span() for m in _FENCED.finditer(text)]
    return (
        match.start()
        for match in re.finditer(re.escape(mark), text)
        if quoted
        or not (
            any(first <= match.start() < stop for first, stop in fences)
            or _is_quoted(text, *match.span())
        )
    )


def _is_quoted(text: str, start: int, end: int) -> bool:
    # In quotes, or in inline code of its line.
    line, after = text[text.rfind("\n", 0, start) + 1 : start], text[end:].split("\n", 1)[0]
    return (start > 0 and _QUOTES.get(text[start - 1]) == text[end : end + 1]) or (
        line.count("`") % 2 == 1 and "`" in after
    )


def _in_channels(text: str, *, opened: bool) -> Reply | None:
    # A reply of several messages with heads. Where the prompt opened a thought, the first
    # message has no head: it ends where another begins, or nothing follows.
    thoughts, answers = list[str](), list[str]()
    cut, position = False, 0
    if _HEAD.match(text) is None:
        end = _MESSAGE_ENDS.search(text) if opened else None
        rest = "" if end is None else text[end.end() :]
        if end is None or (rest.strip() and not (_HEAD.match(rest) or _PART_OF_HEAD.match(rest))):
            return None
        thoughts.append(text[: end.start()])
        position = end.end()
    while head := _HEAD.match(text, position):
        end = _MESSAGE_ENDS.search(text, head.end())
        stop, position = end.span() if end else (len(text), len(text))
        body = text[head.end() : stop]
        thinks = head["channel"] == "analysis" or (head["channel"] is None and head["to"] == "self")
        recipient = head["to"] or head["late_to"] or "user"  # else the tool that is called
        part = body if thinks or recipient == "user" else f"to={recipient} {body}"
        (thoughts if thinks else answers).append(part)
        cut = thinks and end is None
    if not _PART_OF_HEAD.match(text, position):
        answers.append(text[position:])
    answer = "\n\n".join(filter(None, (part.strip("\n") for part in answers)))
    return Reply(answer, _joined(thoughts), cut=cut)


def _in_words(text: str) -> Reply | None:
    match = next(filter(None, (words.fullmatch(text) for words in _WORDS)), None)
    return match and Reply(_without_lead(match["answer"]), _joined([match["thought"]]))


def _unwrapped(answer: str, *, thought: bool) -> str:
    # The answer without the marks that some families put around it.
    for opening, closing, always in _ANSWER_MARKS:
        if answer.lstrip().startswith(opening) and (always or thought):
            body, mark, after = answer.lstrip().removeprefix(opening).partition(closing)
            if not after.strip():
                return _without_lead(body).removesuffix("\n" if mark else "")
    return answer


def _without_lead(text: str) -> str:
    # Without the blank lines (or, on the mark's line, the spaces) before it.
    return re.sub(r"\A(?:\s*\n|[ \t]+)", "", text)


def _joined(thoughts: Sequence[str]) -> str | None:
    return "\n\n".join(filter(None, (thought.strip() for thought in thoughts))) or None
