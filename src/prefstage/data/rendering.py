"""Messages to text: the door for tokenizers, and what their chat templates make of messages."""

import copy
import datetime
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from jinja2 import Environment, TemplateError

from prefstage.core import (
    InputError,
    ModelError,
    adapters_of,
    bounded,
    foreign_files,
    is_path,
    parse_json,
    run_date,
    trust_remote_code,
)
from prefstage.data.compat import Tokenizer
from prefstage.data.records import SAMPLED, Message
from prefstage.data.rows import RowFault
from prefstage.data.settings import CHAT_FORMATS, ChatSettings

_Settings = TypeVar("_Settings", bound=ChatSettings)
_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")

# Message fields under which templates read what an assistant thought before its answer.
THOUGHT_FIELDS = ("reasoning_content", "thinking", "reasoning")

_CLOCK = re.compile(r"strftime_now\(\s*(?P<quote>['\"])(?P<format>[^'\"]*)(?P=quote)\s*\)")
PROBE = "prefstage probe"
_NONCE = "qzjx"
_OF_CONVERSATION = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "chat_template", "tokenize")
)
_ENDLESS = ModelError.of(
    saw="a chat template that takes more than 5 seconds or 512 MiB for a conversation",
    expected="a template that writes the turns",
    cure="mend tokenizer.chat_template, or name a chat_format: " + ", ".join(CHAT_FORMATS),
)
_SHORT_FACTOR = 3  # digits


def load_tokenizer(name_or_path: str) -> Any:
    """Load a tokenizer from a folder or the Hub.

    Args:
        name_or_path: A model's folder, or its id on the Hub; or those of an adapter, whose own
            tokenizer comes before its base's.

    Returns:
        The tokenizer, of transformers.

    Raises:
        ModelError: If there is none, or its files are damaged; one line with the reason.
    """
    from transformers import AutoTokenizer  # on first use: it takes seconds

    base, adapters = adapters_of(str(name_or_path))
    # The last adapter that was trained with its tokenizer; a bare one has its base's.
    source = next(
        (
            adapter
            for adapter in reversed(adapters)
            if not Path(adapter).is_dir() or any(Path(adapter, name).is_file() for name in _FILES)
        ),
        base,
    )
    ModelError.unless(
        Path(source).exists() or not is_path(source),
        saw=f"no tokenizer at {source!r} (no such folder)",
        expected="a folder with tokenizer.json or a model id of the Hub",
        cure="check the name, or point to the model's folder",
    )
    with foreign_files(
        source,
        saw=f"no tokenizer at {source!r}",
        expected="a folder with tokenizer.json or a model id of the Hub",
        cure="check the name, or point to the model's folder",
        whole="whole files of a tokenizer",
    ):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code())
        ModelError.unless(
            tokenizer.vocab_size,
            saw=f"the tokenizer at {source!r} has an empty vocabulary",
            expected="a tokenizer that knows tokens",
            cure="copy or download its files again",
        )
    return tokenizer


def reads_clock(name_or_path: str) -> bool:
    """Whether a model's chat template writes today's date.

    Args:
        name_or_path: A model's folder or its id on the Hub; of a server it is not known.

    Returns:
        Whether it does; False where there is no tokenizer to look at.
    """
    with suppress(ModelError):
        return not name_or_path.startswith(("openai:", "serve:")) and "strftime_now" in str(
            load_tokenizer(name_or_path).chat_template
        )
    return False


def with_date(settings: _Settings, policy: str | None, run: Path | None) -> _Settings:
    """Settings that name the day which the policy's chat template reads as today.

    Args:
        settings: With `template_date`.
        policy: Who answers; None for nobody.
        run: The run's folder: one that goes on keeps the day on which it began.

    Returns:
        The settings with the day, if the template reads the clock and none was set.
    """
    return (
        settings.model_copy(update={"template_date": run_date(run)})
        if settings.template_date is None and policy is not None and reads_clock(policy)
        else settings
    )


class RenderingError(ModelError):
    """A chat template cannot render a row as it stands.

    Attributes:
        fault: What is wrong with the row, and in which field of it: "prompt[1].content",
            "responses[0].tool_calls".
    """

    fault: RowFault

    @classmethod
    def at(
        cls, field: str, *, saw: str, expected: str, cure: str, row: str = ""
    ) -> "RenderingError":
        """As `of`, with the field (after the row, if any) named in the message."""
        error = cls.of(saw=f"{row}{field}: {saw}", expected=expected, cure=cure)
        error.fault = RowFault(field, saw=saw, expected=expected, cure=cure)
        return error

    def within(self, row: str) -> "RenderingError":
        """The same error, with the row named in the message."""
        return self.at(**vars(self.fault), row=f"{row}, ")


class ChatTemplate:
    """A tokenizer's chat template (or a named format) with its variables: messages in, text out.

    Args:
        tokenizer: A transformers tokenizer.
        chat_format: None for the tokenizer's own template, or a name of `CHAT_FORMATS`.
        variables: Extra variables of the template, such as ``{"enable_thinking": False}``.
        date: What a template reads as today, so that rendering does not depend on the clock.

    Raises:
        ModelError: If the tokenizer has no template and no format is named, or the template
            reads the clock in a way that cannot be held still.
        InputError: If the format's name is unknown, or a variable is not JSON.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_format: str | None,
        variables: Mapping[str, Any],
        date: datetime.date,
    ) -> None:
        self._tokenizer = tokenizer
        self.variables = dict(variables)
        wrong = sorted(self.variables.keys() & _OF_CONVERSATION)
        InputError.unless(
            not wrong,
            saw=f"template_options with {', '.join(wrong)}",
            expected="variables of the chat template, such as enable_thinking",
            cure="remove what the conversation itself says",
        )
        with InputError.instead_of(
            *(TypeError, ValueError),
            saw="template_options that are no JSON ({error})",
            expected="texts, numbers, true or false, lists and objects",
            cure="write the value as text",
        ):
            json.dumps(self.variables, allow_nan=False)
        self.sources = {
            name: _with_date(_without_powers(source), date)
            for name, source in _templates_of(tokenizer, chat_format).items()
        }
        self._read_whole = set[Any]()  # what messages have, where a template reads all of it

    def render(self, messages: Sequence[Message], *, generation_prompt: bool) -> str:
        """The text of a conversation.

        Args:
            messages: The turns; `tools` of the first one go to the template as its tools.
            generation_prompt: Whether the assistant's turn is opened at the end.

        Returns:
            The text, before tokenising.

        Raises:
            RenderingError: If the template refuses the conversation.
        """
        try:
            return self._render(
                [self._message(message, index) for index, message in enumerate(messages)],
                generation_prompt,
            )
        except ModelError:
            raise
        except Exception as error:  # a template is code of others
            raise RenderingError.at(
                "conversation",
                saw=f"turns {', '.join(str(message['role']) for message in messages)}, which the "
                f"chat template refuses ({str(error).strip() or type(error).__name__})",
                expected="a conversation that the model's template can render",
                cure="mend or remove the row (on_bad_row: quarantine sets it aside), or name a "
                "chat_format: " + ", ".join(CHAT_FORMATS),
            ) from None

    def check_read(self, messages: Sequence[Message], response: str | None = None) -> None:
        """Refuse a conversation of which the template leaves something out.

        Args:
            messages: The turns, called "prompt[0]" and so on.
            response: What the last turn is called, if it is a response: "responses[1]".

        Raises:
            RenderingError: Naming the first field that the template does not read.
        """
        shape = tuple((m["role"], bool(m.get("content")), *sorted(m)) for m in messages)
        if shape in self._read_whole:
            return
        unread = self._unread_fields(messages)
        if unread:
            turn, _, field = unread[0].partition(".")
            is_response = response is not None and int(turn) == len(messages) - 1
            raise RenderingError.at(
                f"{response if is_response else f'prompt[{turn}]'}.{field}",
                saw="a field that the chat template leaves out of the text",
                expected="a template that renders it",
                cure="remove the field or the row (on_bad_row: quarantine sets it aside), or "
                "train a model whose template knows it",
            )
        self._read_whole.add(shape)

    @cached_property
    def thought_field(self) -> str | None:
        """The message field from which the template takes a thought; None if from none."""
        user, answer = ({"role": role, "content": PROBE} for role in ("user", "assistant"))
        return next(
            (n for n in THOUGHT_FIELDS if _NONCE in self._attempt([user, answer | {n: _NONCE}])),
            None,
        )

    @cached_property
    def _content_form(self) -> Literal["text", "parts"]:
        # Templates of vision-language models leave texts out that do not come as parts.
        turns = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": _NONCE}]
        texts = {f: self._attempt([_in_form(t, f) for t in turns]) for f in ("text", "parts")}
        whole = [form for form, text in texts.items() if PROBE in text and _NONCE in text]
        return "parts" if whole == ["parts"] else "text"

    @cached_property
    def _arguments_form(self) -> Literal["mapping", "text"] | None:
        # What the template needs a tool call's arguments to be; None if either will do.
        as_text, as_mapping = (
            self._attempt(_call_probe(form)) for form in (f'{{"{_NONCE}": "v"}}', {_NONCE: "v"})
        )
        if not as_mapping:
            return "text" if as_text else None
        # A template that writes its arguments as JSON writes a text as a quoted, escaped text.
        return "mapping" if not as_text or f'\\"{_NONCE}\\"' in as_text else None

    def _attempt(self, messages: Sequence[Message]) -> str:
        # A probe that the template refuses has no text.
        try:
            return self._render(messages, False)
        except ModelError:
            raise
        except Exception:
            return ""

    def _render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        tools = messages[0].get("tools") if messages else None
        with bounded(_ENDLESS):
            return str(
                self._tokenizer.apply_chat_template(
                    [{k: v for k, v in message.items() if k != "tools"} for message in messages],
                    tools=tools,
                    chat_template=(tools and self.sources.get("tool_use"))
                    or self.sources["default"],
                    tokenize=False,
                    add_generation_prompt=generation_prompt,
                    **self.variables,
                )
            )

    def _message(self, message: Message, index: int) -> Message:
        made = {key: value for key, value in message.items() if key != SAMPLED}
        thoughts = [name for name in THOUGHT_FIELDS if name in made]
        if len(thoughts) == 1 and self.thought_field not in (None, thoughts[0]):
            made[str(self.thought_field)] = made.pop(thoughts[0])
        if made.get("tool_calls") and self._arguments_form is not None:
            made["tool_calls"] = [
                _with_arguments(call, self._arguments_form, f"turn {index}, tool call {number}")
                for number, call in enumerate(made["tool_calls"])
            ]
        return _in_form(made, self._content_form)

    def _unread_fields(self, messages: Sequence[Message]) -> tuple[str, ...]:
        # Which fields the text does not depend on, as "turn.field": every text gets a mark that
        # no template knows, and what is not in the rendered text was not read.
        altered, marks = copy.deepcopy(list(messages)), dict[str, str]()
        for turn, message in enumerate(altered):
            texts = {
                "content": [message] if str(message.get("content") or "").strip() else [],
                "tool_calls": _named_functions(message.get("tool_calls")),
                "tools": _named_functions(message.get("tools")) if turn == 0 else [],
            }
            for field, holder in ((name, holder) for name in texts for holder in texts[name]):
                key, mark = "content" if field == "content" else "name", f"{_NONCE}{len(marks)}e"
                holder[key], marks[f"{turn}.{field}"] = f"{holder[key]}{mark}", mark
        try:
            text = self.render(altered, generation_prompt=False)
        except RenderingError:
            return ()  # the rendering itself says what is wrong
        return tuple(field for field, nonce in marks.items() if nonce not in text)


def _templates_of(tokenizer: Tokenizer, chat_format: str | None) -> dict[str, str]:
    if chat_format is not None:
        InputError.unless(
            chat_format in CHAT_FORMATS,
            saw=f"chat_format={chat_format!r}",
            expected=f"one of {', '.join(CHAT_FORMATS)}, or none for the model's template",
            cure="choose one of them",
        )
        return {"default": CHAT_FORMATS[chat_format]}
    template = tokenizer.chat_template
    named = dict(template) if isinstance(template, Mapping) else {"default": template}
    if not named.get("default"):
        what = f"chat templates {', '.join(named)} and no default" if any(named.values()) else ""
        raise ModelError.of(
            saw=f"{tokenizer.name_or_path!r}: " + (what or "a tokenizer without a chat template"),
            expected="a chat template, or a named format for a base model",
            cure=f"name one with chat_format: {', '.join(CHAT_FORMATS)}",
        )
    return {name: str(source) for name, source in named.items() if source}


def _without_powers(template: str) -> str:
    # One power or product of large numbers can take for ever inside the interpreter, where nothing
    # stops it; the templates of models have neither.
    try:
        tokens = [(kind, text) for _, kind, text in Environment().lex(template) if text.strip()]
    except TemplateError:
        return template  # rendering it says what is wrong
    for before, (kind, sign), after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        factors = [text for other, text in (before, after) if other == "integer"]
        ModelError.unless(
            (kind != "operator" or sign not in ("*", "**"))
            or before[1] in ("(", ",")  # of arguments
            or (sign == "*" and any(len(text) <= _SHORT_FACTOR for text in factors)),
            saw=f"a chat template that computes {before[1]} {sign} {after[1]}",
            expected="products with a small number alone, and no powers",
            cure="mend tokenizer.chat_template, or name a chat_format: " + ", ".join(CHAT_FORMATS),
        )
    return template


def _with_date(template: str, date: datetime.date) -> str:
    # A template that asks for today's date renders another prompt tomorrow: a run that is
    # resumed would train on other tokens than it began with. So the date is written in.
    noon = datetime.datetime.combine(date, datetime.time(12))
    dated = _CLOCK.sub(lambda call: json.dumps(noon.strftime(call["format"])), template)
    ModelError.unless(
        re.search(r"strftime_now\s*\(", dated) is None,
        saw="a chat template that asks strftime_now for a format which it computes",
        expected="a format that is written out, so that the date can be held still",
        cure="write the format (or the date) into tokenizer.chat_template",
    )
    return dated


def _named_functions(calls: Any) -> list[dict[str, Any]]:
    return [
        function
        for function in (call.get("function", call) for call in calls or ())
        if isinstance(function, dict) and isinstance(function.get("name"), str)
    ]


def _in_form(message: Message, form: str) -> Message:
    content = message.get("content")
    return (
        message
        if form == "text" or not isinstance(content, str)
        else message | {"content": [{"type": "text", "text": content}]}
    )


def _call_probe(arguments: Any) -> list[Message]:
    tool = {"name": "probe", "description": "", "parameters": {"type": "object", "properties": {}}}
    return [
        {"role": "user", "content": "p", "tools": [{"type": "function", "function": tool}]},
        {
            **{"role": "assistant", "content": ""},
            "tool_calls": [
                {"type": "function", "function": {"name": "probe", "arguments": arguments}}
            ],
        },
    ]


def _with_arguments(call: Any, form: Literal["mapping", "text"], where: str) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _with_arguments(call["function"], form, where)}
    arguments = call.get("arguments")
    if form == "text" and isinstance(arguments, Mapping | list):
        return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
    if form == "mapping" and isinstance(arguments, str):
        try:
            return {**call, "arguments": parse_json(arguments) if arguments.strip() else {}}
        except ValueError as error:
            raise RenderingError.at(
                f"{where}, arguments",
                saw=f"text that is no JSON ({error}), for a template that needs a mapping",
                expected="an object, or its JSON text",
                cure="mend the arguments, or remove the row (on_bad_row: quarantine)",
            ) from None
    return call
