"""How PairRM is shown a conversation: its published wording and its length rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from prefstage.data.compat import plain_ids
from prefstage.data.records import Prompt
from prefstage.judging.base import Comparison
from prefstage.judging.texts import content_of, plain_prompt

SOURCE = "<|source|>"
CANDIDATES = ("<|candidate1|>", "<|candidate2|>")

# Word for word what PairRM is given for conversations, misspelling included.
_INSTRUCTION = (
    "Finish the following coversation in each i-th turn by filling in <Response i> with your"
    " response."
)


@dataclass(frozen=True)
class PairEncoding:
    """Both orders of one comparison as token ids, equally long.

    Attributes:
        forward: Source, then `a` as candidate 1 and `b` as candidate 2. [tokens].
        backward: The same with `b` as candidate 1 and `a` as candidate 2. [tokens].
        cut: Whether anything was left out to fit.
    """

    forward: tuple[int, ...]
    backward: tuple[int, ...]
    cut: bool


@dataclass(frozen=True)
class PairRMEncoder:
    """``[CLS]<|source|>x[SEP][CLS]<|candidate1|>a[SEP][CLS]<|candidate2|>b[SEP]``.

    The source has at most `max_source_tokens`, and each candidate at most
    (`max_length` - the source's own length) // 2: lengths of this example alone, never of
    its batch. Where a conversation does not fit, its oldest turns are left out of source and
    candidates together, so that the responses in question stay; only then are texts cut at
    their end.

    Attributes:
        tokenizer: PairRM's tokenizer, with its marker tokens.
        style: "conversation" is the published `compare_conversations`; "plain" gives prompt
            and response as they are.
        max_source_tokens: With special tokens.
        max_length: Of source and both candidates together.
    """

    tokenizer: Any
    style: Literal["conversation", "plain"] = "conversation"
    max_source_tokens: int = 1224
    max_length: int = 2048

    def __call__(self, comparison: Comparison) -> PairEncoding:
        """Encode both orders of one comparison."""
        turns = turns_of(comparison.prompt)
        oldest = 0 if self.style == "conversation" else len(turns) - 1
        while True:
            source, a, b = self._texts(comparison, turns, oldest)
            head, head_cut = self._ids(SOURCE, source, self.max_source_tokens)
            room = (self.max_length - len(head)) // 2
            parts = [self._ids(mark, text, room) for mark in CANDIDATES for text in (a, b)]
            cut = head_cut or any(part_cut for _, part_cut in parts)
            if not cut or oldest == len(turns) - 1:
                break
            oldest += 1
        (a1, _), (b1, _), (a2, _), (b2, _) = parts
        left_out = self.style == "conversation" and oldest > 0
        return PairEncoding((*head, *a1, *b2), (*head, *b1, *a2), cut or left_out)

    def _texts(
        self, comparison: Comparison, turns: Sequence[tuple[str, str]], oldest: int
    ) -> tuple[str, str, str]:
        if self.style == "plain":
            return plain_prompt(comparison.prompt), comparison.a, comparison.b
        numbered = list(enumerate(turns, start=1))[oldest:]
        asked = [f"USER: {user}\nAssistant: <Response {i}>" for i, (user, _) in numbered]
        answered = [f"<Response {i}>: {assistant}" for i, (_, assistant) in numbered[:-1]]
        a, b = (
            "\n".join([*answered, f"<Response {len(turns)}>: {text}"])
            for text in (comparison.a, comparison.b)
        )
        return _INSTRUCTION + "\n".join(asked), a, b

    def _ids(self, mark: str, text: str, limit: int) -> tuple[list[int], bool]:
        """One segment; whether its end was cut."""
        if any(token in text for token in self._control):
            # A response must not open a new segment: control tokens that it spells are split.
            start = self.tokenizer(mark, verbose=False)["input_ids"]
            whole = [*start[:-1], *plain_ids(self.tokenizer, text), start[-1]]
        else:
            whole = self.tokenizer(mark + text, verbose=False)["input_ids"]
        if len(whole) <= limit:
            return list(whole), False
        return [*whole[: limit - 1], whole[-1]], True

    @cached_property
    def _control(self) -> frozenset[str]:
        return frozenset({SOURCE, *CANDIDATES, "<|candidate|>", *self.tokenizer.all_special_tokens})


def turns_of(prompt: Prompt) -> list[tuple[str, str]]:
    """A conversation as (user, assistant) turns; the last one awaits its response.

    Args:
        prompt: Messages up to and with the last user turn. Messages of other roles than the
            assistant's (system, tool) count as the user's side; neighbours of one side are
            joined by a blank line.

    Returns:
        At least one turn; the last has an empty assistant text.
    """
    turns = [("", "")]
    for message in prompt:
        user, assistant = turns[-1]
        text = content_of(message)
        if message.get("role") == "assistant":
            turns[-1] = (user, _join(assistant, text))
        elif assistant:
            turns.append((text, ""))
        else:
            turns[-1] = (_join(user, text), "")
    return turns


def _join(start: str, more: str) -> str:
    return f"{start}\n\n{more}" if start else more
