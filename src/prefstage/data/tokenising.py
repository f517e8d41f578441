"""Prompts and responses as tokens: exactly those the model reads, and those it would write."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from prefstage.core.errors import InputError, ModelError
from prefstage.core.hashing import digest
from prefstage.data.chat_formats import CHAT_FORMATS, TurnShape, probe_turn
from prefstage.data.records import Message, prompt_id_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenTree:
    """One prompt and its responses as tokens; the prompt stands once.

    Attributes:
        prompt_id: Names the prompt's content.
        prompt_ids: Tokens of the prompt, generation prompt included.
        response_ids: Tokens of each response, end-of-turn included unless truncated;
            none is empty.
    """

    prompt_id: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[tuple[int, ...], ...]


@dataclass
class EncodingCounts:
    """What encoding did so far.

    Attributes:
        prompts: Prompts encoded.
        responses: Responses encoded.
        prompts_truncated: Prompts that lost their beginning.
        prompt_tokens_dropped: Tokens they lost.
        responses_truncated: Responses that lost their end, end-of-turn included.
        response_tokens_dropped: Tokens they lost.
        border_merges: Responses tokenised on their own because the tokenizer would have
            merged their start with the prompt's end.
        template_fallbacks: Responses taken as their text and the end-of-turn, because
            the template would have changed the text or the turns before it.
        control_tokens: Responses whose text spells a special token of the tokenizer.
    """

    prompts: int = 0
    responses: int = 0
    prompts_truncated: int = 0
    prompt_tokens_dropped: int = 0
    responses_truncated: int = 0
    response_tokens_dropped: int = 0
    border_merges: int = 0
    template_fallbacks: int = 0
    control_tokens: int = 0


class ResponseEncoder:
    """Turns a prompt and its responses into a token tree.

    The prompt goes through the chat template with the generation prompt. A response is
    the tokens that the model would have to generate: its text and the end-of-turn, and
    nothing that the template writes after that.

    Args:
        tokenizer: A transformers tokenizer.
        chat_format: None for the tokenizer's own chat template, or a name of
            `CHAT_FORMATS` for a model without one.
        max_prompt_tokens: Longer prompts keep their end (and a leading
            begin-of-sequence token). None for no limit.
        max_response_tokens: Longer responses keep their start and lose their
            end-of-turn. None for no limit.
        template_options: Extra variables for the chat template, such as
            ``{"enable_thinking": False}``.

    Raises:
        ModelError: If the tokenizer has no chat template and no format is named, or the
            end of a turn cannot be found.
        InputError: If the format's name is unknown or a limit is below 1.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_format: str | None = None,
        max_prompt_tokens: int | None = None,
        max_response_tokens: int | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.chat_format = chat_format
        self.max_prompt_tokens = _checked_limit("max_prompt_tokens", max_prompt_tokens)
        self.max_response_tokens = _checked_limit("max_response_tokens", max_response_tokens)
        self.counts = EncodingCounts()
        self._options = dict(template_options or {})
        self._template = _template_of(tokenizer, chat_format)
        self._starts_with_bos = chat_format is not None and _adds_bos(tokenizer)
        added = tokenizer.added_tokens_decoder.items()
        # Some tokenizers add runs of spaces as tokens; those end and control nothing.
        self._marks = frozenset(token for token, text in added if str(text).strip())
        special = {token: str(text) for token, text in added if text.special}
        self._special = frozenset(special)
        self._special_text = re.compile("|".join(map(re.escape, special.values())) or r"(?!)")
        self._shape: TurnShape = probe_turn(self._render)
        self.end_of_turn_ids: tuple[int, ...] = self._find_end_of_turn()

    @property
    def end_of_turn(self) -> str:
        """Text of the end-of-turn."""
        return str(self.tokenizer.decode(list(self.end_of_turn_ids), skip_special_tokens=False))

    @property
    def chat_template(self) -> str:
        """The template as a tokenizer needs it to read prompts as this encoder does."""
        return ("{{ bos_token }}" if self._starts_with_bos else "") + self._template

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything the tokens depend on: tokenizer, template, truncation."""
        return digest(
            {
                "tokenizer": _tokenizer_content(self.tokenizer),
                "template": self._template,
                "options": self._options,
                "limits": [self.max_prompt_tokens, self.max_response_tokens],
            }
        )

    def prompt_text(self, prompt: Sequence[Message]) -> str:
        """The prompt as the model reads it, generation prompt included, before tokenising."""
        return self._render(prompt, True)

    def prompt_ids(self, prompt: Sequence[Message]) -> tuple[int, ...]:
        """Tokens of the prompt, after truncation (counted)."""
        (ids,) = self._tokenise([self.prompt_text(prompt)])
        return self._cut_prompt(self._with_bos(ids))

    def encode(self, prompt: Sequence[Message], responses: Sequence[str | Message]) -> TokenTree:
        """Tokenise a prompt and its responses.

        Args:
            prompt: Messages up to and with the last user turn.
            responses: Each response's text, or its whole message if it calls tools.

        Returns:
            The tree; its prompt tokens followed by a response's are what the tokenizer
            makes of both texts together, except for counted border merges.

        Raises:
            ModelError: If the template refuses the prompt.
        """
        before = self.prompt_text(prompt)
        texts = [self._response_text(prompt, before, response) for response in responses]
        border = self._border(before)
        prompt_ids, border_ids, *joint = self._tokenise(
            [before, border, *(border + text for text in texts)]
        )
        if prompt_ids[len(prompt_ids) - len(border_ids) :] != border_ids:
            border_ids, joint = prompt_ids, self._tokenise([before + text for text in texts])
        encoded = [
            self._cut_response(self._split(border_ids, ids, text))
            for ids, text in zip(joint, texts, strict=True)
        ]
        return TokenTree(
            prompt_id_of(prompt), self._cut_prompt(self._with_bos(prompt_ids)), tuple(encoded)
        )

    def decode(self, response_ids: Sequence[int]) -> str:
        """Text of a response: the inverse of `encode` for one response.

        Tokens from the first end-of-turn on go, and the whitespace that the template
        puts before the text.

        Args:
            response_ids: Tokens as encoded, or as generated.

        Returns:
            The response's text.
        """
        ids = list(response_ids)
        if self.end_of_turn_ids[-1] in ids:
            ids = ids[: ids.index(self.end_of_turn_ids[-1])]
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return text.removeprefix(self._shape.lead or "")

    def _response_text(
        self, prompt: Sequence[Message], before: str, response: str | Message
    ) -> str:
        message = (
            {"role": "assistant", "content": response} if isinstance(response, str) else response
        )
        lead, suffix = self._shape.lead, self._shape.suffix
        whole = self._render([*prompt, message], False)
        if lead is not None and whole.startswith(before + lead) and whole.endswith(suffix):
            body = whole[len(before + lead) : len(whole) - len(suffix)]
            text = str(message["content"])
            trimmed = body in text and body.strip() == text.strip()
            if trimmed or message.get("tool_calls"):
                return lead + body + self.end_of_turn
        if self.counts.template_fallbacks == 0:
            _log.warning(
                "the chat template changes a response's text or the turns before it; such "
                "responses are tokenised as their text and the end-of-turn (counted)"
            )
        self.counts.template_fallbacks += 1
        return (lead or "") + str(message["content"]) + self.end_of_turn

    def _border(self, prompt_text: str) -> str:
        """The prompt's end from its last special token on.

        Tokenizers cut texts at special tokens first, so only what follows the last one can
        merge with a response; a long prompt need not be tokenised once per response.
        """
        start = max(
            (match.start() for match in self._special_text.finditer(prompt_text)), default=0
        )
        return prompt_text[start:]

    def _split(self, before_ids: list[int], joint: list[int], text: str) -> list[int]:
        if joint[: len(before_ids)] == before_ids and len(joint) > len(before_ids):
            ids = joint[len(before_ids) :]
        else:
            self.counts.border_merges += 1
            (ids,) = self._tokenise([text])
        body = ids[: len(ids) - len(self.end_of_turn_ids)]
        self.counts.control_tokens += any(token in self._special for token in body)
        return ids

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        rows = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [list(row) for row in rows]

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [bos, *ids] if self._starts_with_bos and ids[:1] != [bos] else ids

    def _cut_prompt(self, ids: list[int]) -> tuple[int, ...]:
        self.counts.prompts += 1
        limit = self.max_prompt_tokens
        if limit is None or len(ids) <= limit:
            return tuple(ids)
        self.counts.prompts_truncated += 1
        self.counts.prompt_tokens_dropped += len(ids) - limit
        if ids[0] == self.tokenizer.bos_token_id and limit > 1:
            return (ids[0], *ids[len(ids) - limit + 1 :])
        return tuple(ids[len(ids) - limit :])

    def _cut_response(self, ids: list[int]) -> tuple[int, ...]:
        self.counts.responses += 1
        limit = self.max_response_tokens
        if limit is None or len(ids) <= limit:
            return tuple(ids)
        self.counts.responses_truncated += 1
        self.counts.response_tokens_dropped += len(ids) - limit
        return tuple(ids[:limit])

    def _render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        tools = messages[0].get("tools") if messages else None
        plain = [{k: v for k, v in message.items() if k != "tools"} for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                plain,
                tools=tools,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **self._options,
            )
        except (TemplateError, TypeError, KeyError, AttributeError) as error:
            roles = ", ".join(str(message["role"]) for message in messages)
            raise ModelError.of(
                saw=f"turns {roles}, which the chat template refuses ({error})",
                expected="a prompt that the model's template can render",
                cure="mend the prompt, or name a chat_format: " + ", ".join(CHAT_FORMATS),
            ) from None
        return str(text)

    def _find_end_of_turn(self) -> tuple[int, ...]:
        ids = self.tokenizer(self._shape.suffix, add_special_tokens=False)["input_ids"]
        for index, token in enumerate(ids):
            if token in self._marks:
                return tuple(ids[: index + 1])
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise ModelError.of(
                saw=f"{self.tokenizer.name_or_path!r}: no special token ends a turn and none "
                "ends a text",
                expected="a tokenizer with an end-of-turn or end-of-sequence token",
                cure="set tokenizer.eos_token",
            )
        return (int(eos),)


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or the Hub.

    Args:
        name_or_path: A model's folder, or its id on the Hub.

    Returns:
        The tokenizer.

    Raises:
        ModelError: If there is none; one line with the reason.
    """
    try:
        return AutoTokenizer.from_pretrained(str(name_or_path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelError.of(
            saw=f"no tokenizer at {str(name_or_path)!r} ({reason})",
            expected="a folder with tokenizer.json or a model id of the Hub",
            cure="check the name, or point to the model's folder",
        ) from None


def _template_of(tokenizer: PreTrainedTokenizerBase, chat_format: str | None) -> str:
    if chat_format is not None:
        if chat_format not in CHAT_FORMATS:
            raise InputError.of(
                saw=f"chat_format={chat_format!r}",
                expected=f"one of {', '.join(CHAT_FORMATS)}, or none for the model's template",
                cure="choose one of them",
            )
        return CHAT_FORMATS[chat_format]
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise ModelError.of(
            saw=f"{tokenizer.name_or_path!r}: a tokenizer without a chat template",
            expected="a chat template, or a named format for a base model",
            cure=f"name one with chat_format: {', '.join(CHAT_FORMATS)}",
        )
    return str(template)


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def _checked_limit(name: str, limit: int | None) -> int | None:
    if limit is not None and limit < 1:
        raise InputError.of(
            saw=f"{name}={limit}",
            expected="at least 1 token, or none for no limit",
            cure="raise it",
        )
    return limit


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    if backend is None:
        return [type(tokenizer).__name__, tokenizer.get_vocab(), special]
    content = json.loads(backend.to_str())
    # Padding and truncation are states of the last call, not parts of the tokenizer.
    return [{k: v for k, v in content.items() if k not in ("padding", "truncation")}, special]
