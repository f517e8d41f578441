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


@dataclass(frozen=True)
class ThoughtMarks:
    """What a family of models writes around a thought.

    Attributes:
        opening: Before it.
        closing: After it.
    """

    opening: str
    closing: str


THOUGHT_MARKS = (
    ThoughtMarks("<think>", "</think>"),  # Qwen3, DeepSeek R1, GLM, Nemotron, Phi 4, Granite, …
    ThoughtMarks("[THINK]", "[/THINK]"),  # Magistral, Mistral
    ThoughtMarks("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
    ThoughtMarks("<|channel>thought", "<channel|>"),  # Gemma 4
    ThoughtMarks("<seed:think>", "</seed:think>"),  # Seed-OSS
    ThoughtMarks("◁think▷", "◁/think▷"),  # Kimi-VL
    ThoughtMarks("<mm:think>", "</mm:think>"),  # MiniMax
    ThoughtMarks("<longcat_think>", "</longcat_think>"),  # LongCat
    ThoughtMarks("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ThoughtMarks("<|begin_of_thought|>", "<|end_of_thought|>"),  # OpenThinker, Sky-T1
    ThoughtMarks("<unused94>thought", "<unused95>"),  # MedGemma
    ThoughtMarks("[unused16]", "[unused17]"),  # Pangu
    ThoughtMarks("<thought>", "</thought>"),  # EXAONE Deep
    ThoughtMarks("<thinking>", "</thinking>"),
    ThoughtMarks("<reasoning>", "</reasoning>"),
    ThoughtMarks("<reflection>", "</reflection>"),
)
"""Marks of the families; where a prompt opened the thought, the first one that closes counts."""

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
    answer = _without_lead(content)
    return Reply(answer, reasoning.strip() or None, cut=not answer.strip())


def opens_thought(generation_prompt: str) -> bool:
    """Whether a generation prompt ends inside a thought, so that a response begins there.

    Args:
        generation_prompt: Its text, or the whole prompt's; special tokens included.

    Returns:
        True if its last text opens a thought.
    """
    end = generation_prompt.rstrip()
    return any(end.endswith(marks.opening) for marks in THOUGHT_MARKS) or bool(
        _OPENED_CHANNELS.search(generation_prompt)
    )


def _in_marks(text: str, *, opened: bool | None) -> Reply | None:
    """Read marks around thoughts; None if there is no thought."""
    families = _closing_families(text, opened=opened)
    if families is None:
        return None
    thoughts, rest = list[str](), text
    while families is not None:
        start = rest.lstrip()
        body = start.removeprefix(families[0].opening) if len(families) == 1 else rest
        found = _closing(body, families)
        if found is None:
            return Reply("", _joined([*thoughts, body]), cut=True)
        thoughts.append(body[: found[0]])
        rest = body[found[1] :]
        families = _closing_families(rest, opened=False)
    return Reply(_unwrapped(_without_lead(rest), thought=True), _joined(thoughts))


def _closing_families(text: str, *, opened: bool | None) -> Sequence[ThoughtMarks] | None:
    """The families whose closing mark may end the thought that `text` begins in; None if none."""
    start = text.lstrip()
    for marks in THOUGHT_MARKS:
        # A closing mark right at the beginning ends a thought that the template has closed.
        if start.startswith((marks.opening, marks.closing)):
            return (marks,)
    if opened:
        return THOUGHT_MARKS
    if opened is None:
        for marks in THOUGHT_MARKS:
            found = next(_places(text, marks.closing, quoted=False), None)
            if found is not None and marks.opening not in text[:found]:
                return (marks,)
    return None


def _closing(body: str, families: Sequence[ThoughtMarks]) -> tuple[int, int] | None:
    """Where the mark that ends a thought begins and ends."""
    for quoted in (False, True):
        for marks in families:
            found = next(_places(body, marks.closing, quoted=quoted), None)
            if found is not None:
                return found, found + len(marks.closing)
    return None


def _places(text: str, mark: str, *, quoted: bool) -> Iterator[int]:
    """Where a mark stands: outside of quotes and code, or anywhere."""
    place = text.find(mark)
    if place < 0:
        return
    fences = [] if quoted else [found.span() for found in _FENCED.finditer(text)]
    while place >= 0:
        end = place + len(mark)
        fenced = any(start <= place < stop for start, stop in fences)
        if quoted or not (fenced or _is_quoted(text, place, end)):
            yield place
        place = text.find(mark, end)


def _is_quoted(text: str, start: int, end: int) -> bool:
    """Whether a part of a text stands in quotes, or in inline code of its line."""
    if text[start - 1 : start] in _QUOTES and _QUOTES[text[start - 1]] == text[end : end + 1]:
        return True
    line = text[text.rfind("\n", 0, start) + 1 : start]
    after = text[end:].split("\n", 1)[0]
    return line.count("`") % 2 == 1 and "`" in after


def _in_channels(text: str, *, opened: bool) -> Reply | None:
    """Read a reply of several messages with heads; None if it is none."""
    thoughts, answers = list[str](), list[str]()
    cut, place = False, 0
    if opened and _HEAD.match(text) is None:
        end = _MESSAGE_ENDS.search(text)
        if end is None or not _begins_message(text[end.end() :]):
            return None
        thoughts.append(text[: end.start()])
        place = end.end()
    elif _HEAD.match(text) is None:
        return None
    while head := _HEAD.match(text, place):
        end = _MESSAGE_ENDS.search(text, head.end())
        stop, place = (end.start(), end.end()) if end else (len(text), len(text))
        body = text[head.end() : stop]
        thinks = _is_thought(head)
        if thinks:
            thoughts.append(body)
        else:
            called = _recipient(head)
            answers.append(f"to={called} {body}" if called else body)
        cut = thinks and end is None
    if not _PART_OF_HEAD.match(text, place):
        answers.append(text[place:])
    answer = "\n\n".join(filter(None, (part.strip("\n") for part in answers)))
    return Reply(answer, _joined(thoughts), cut=cut)


def _begins_message(text: str) -> bool:
    return not text.strip() or bool(_HEAD.match(text) or _PART_OF_HEAD.match(text))


def _is_thought(head: re.Match[str]) -> bool:
    return head["channel"] == "analysis" or (head["channel"] is None and head["to"] == "self")


def _recipient(head: re.Match[str]) -> str | None:
    """The tool that a message calls; None if it speaks to the user."""
    to = head["to"] or head["late_to"]
    return None if to == "user" else to


def _in_words(text: str) -> Reply | None:
    for words in _WORDS:
        found = words.fullmatch(text)
        if found is not None:
            return Reply(_without_lead(found["answer"]), _joined([found["thought"]]))
    return None


def _unwrapped(answer: str, *, thought: bool) -> str:
    """The answer without the marks that some families put around it."""
    start = answer.lstrip()
    for opening, closing, always in _ANSWER_MARKS:
        if not start.startswith(opening) or not (always or thought):
            continue
        body, mark, after = start.removeprefix(opening).partition(closing)
        if not after.strip():
            return _without_lead(body).removesuffix("\n") if mark else _without_lead(body)
    return answer


def _without_lead(text: str) -> str:
    """The text without the blank lines (or, on the mark's line, the spaces) before it."""
    return re.sub(r"\A(?:\s*\n|[ \t]+)", "", text)


def _joined(thoughts: Sequence[str]) -> str | None:
    return "\n\n".join(filter(None, (thought.strip() for thought in thoughts))) or None
