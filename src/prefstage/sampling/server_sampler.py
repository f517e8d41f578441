"""Sampling from a server that speaks the OpenAI protocol."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from jinja2.sandbox import ImmutableSandboxedEnvironment

from prefstage.core import InputError, ServiceError, digest, scratch_folder
from prefstage.data.conversation_tokens import probe_turn
from prefstage.data.records import SAMPLED, Message
from prefstage.data.settings import CHAT_FORMATS
from prefstage.data.thoughts import read_parts, read_reply
from prefstage.sampling.base import (
    Sample,
    Sampler,
    SampleRequest,
    SamplingConfig,
    sample_seed,
    shared_settings,
)
from prefstage.serving import (
    ChatReply,
    RefusedRequestError,
    ServerClient,
    ask_all,
    check_command,
    managed_server,
)

Dialect = Literal["standard", "transformers"]


class PlainFormat:
    """Renders prompts for a base model, whose server has no template.

    Args:
        name: Of `CHAT_FORMATS`.

    Attributes:
        lead: Whitespace before the response, which the model generates.

    Raises:
        InputError: If there is no such format.
    """

    def __init__(self, name: str) -> None:
        InputError.unless(
            name in CHAT_FORMATS,
            saw=f"chat_format={name!r}",
            expected=f"one of {', '.join(CHAT_FORMATS)}, or none for the server's template",
            cure="choose one of them",
        )
        self._template = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True
        ).from_string(CHAT_FORMATS[name])
        self.lead, _ = probe_turn(self.render)

    def render(self, messages: Sequence[Message], generation_prompt: bool = True) -> str:
        """Messages as text; with `generation_prompt` up to where the response begins."""
        return self._template.render(
            messages=messages, add_generation_prompt=generation_prompt, eos_token=""
        )


def request_options(config: SamplingConfig, seed: int, dialect: Dialect) -> dict[str, Any]:
    """The sampling settings as fields of a request.

    Args:
        config: How to sample.
        seed: Of this response.
        dialect: How the server wants them.

    Returns:
        The fields.
    """
    shape = {"temperature": config.temperature, "top_p": config.top_p}
    if dialect == "transformers":
        generation = {
            "max_new_tokens": config.max_new_tokens,
            "do_sample": config.temperature > 0,
            "repetition_penalty": 1.0,
            **({**shape, "top_k": config.top_k} if config.temperature > 0 else {}),
        }
        return {"generation_config": json.dumps(generation), "seed": seed}
    shape |= {"top_k": config.top_k} if config.top_k else {}
    return {**shape, "max_tokens": config.max_new_tokens, "seed": seed}


def sample_of(request: SampleRequest, reply: ChatReply, plain: PlainFormat | None) -> Sample:
    """The answer that a server's reply holds.

    Args:
        request: What was wanted.
        reply: The reply.
        plain: The format that rendered the prompt; None for the server's template.

    Returns:
        The answer, with what was thought before it apart; without tokens, which servers keep.
    """
    reasons: dict[str, Literal["stop", "length"]] = {"stop": "stop", "length": "length"}
    finish_reason: Literal["stop", "length", "other"] = reasons.get(reply.finish_reason, "other")
    # Thought and answer: as the server parts them, or by the marks that it leaves in the text.
    if plain is not None:
        parts = read_reply(reply.text.removeprefix(plain.lead), opened=False)
    elif reply.reasoning.strip():
        parts = read_parts(reply.text, reply.reasoning)
    else:
        parts = read_reply(reply.text)
    return Sample(
        prompt_id=request.prompt_id,
        index=request.index,
        text=parts.answer,
        finish_reason=finish_reason,
        prompt_tokens=reply.prompt_tokens,
        response_tokens=reply.completion_tokens,
        thought=parts.thought,
        thought_cut=parts.cut and finish_reason != "other",  # a tool call has no text either
    )


DEFAULT_CONCURRENCY = 16


class ServerSampler(Sampler):
    """Samples from a running OpenAI-compatible server, one request and one seed a response.

    `transformers serve` takes top_k and sampling at all only in a generation_config of its
    own, and seeds all its requests together; it is recognised, spoken to in its dialect and
    asked one request at a time (it generates one at a time anyway). Other servers get the
    fields temperature, top_p, top_k (unless 0), max_tokens and seed.

    Args:
        client: Of the server.
        config: How to sample.
        name: For people, and for the `sources` column.
        chat_format: None for /v1/chat/completions and the server's own template; a name of
            `CHAT_FORMATS` renders the prompt here and asks /v1/completions.
        concurrency: Requests in flight; None for 16, or for 1 with `transformers serve`.
        identity: What the answers depend on besides the settings; the model's name by
            default. The server's address is no part of it.
        template_options: Variables for the server's chat template, such as
            ``{"enable_thinking": False}``; sent as `chat_template_kwargs`, which vLLM, SGLang
            and `transformers serve` take.

    Raises:
        InputError: If the format's name is unknown, concurrency is below 1, template options
            are set for a plain format, which has none, or beams are asked for, which the OpenAI
            protocol does not know.
    """

    def __init__(
        self,
        client: ServerClient,
        config: SamplingConfig,
        *,
        name: str,
        chat_format: str | None = None,
        concurrency: int | None = None,
        identity: Mapping[str, Any] | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        InputError.unless(
            concurrency is None or concurrency >= 1,
            saw=f"concurrency={concurrency}",
            expected="1 or more",
            cure="raise concurrency",
        )
        InputError.unless(
            config.beams == 1,
            saw=f"beams={config.beams} with a server, whose protocol has no beam search",
            expected="one beam, or a policy in this process",
            cure="leave beams out, or name the model's folder or Hub id",
        )
        InputError.unless(
            chat_format is None or not template_options,
            saw=f"template_options with chat_format {chat_format!r}, which has no variables",
            expected="options of the model's own chat template",
            cure="leave one of them out",
        )
        self.client, self.config, self.name = client, config, name
        self._format = None if chat_format is None else PlainFormat(chat_format)
        self._concurrency = concurrency
        self._template_options = dict(template_options or {})
        self.settings: Mapping[str, Any] = {
            "kind": "server",
            **(identity or {"model": client.model}),
            "chat_format": chat_format,
            **({"template_options": self._template_options} if template_options else {}),
            **shared_settings(config),
        }
        self.fingerprint = digest(dict(self.settings))

    @classmethod
    def load(
        cls,
        target: str,
        config: SamplingConfig,
        *,
        chat_format: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        concurrency: int | None = None,
        **client: Any,
    ) -> Sampler:
        """Make the sampler from ``MODEL@URL``.

        Args:
            target: The model's name on the server, and the server's URL.
            config: How to sample.
            chat_format: As for the class.
            template_options: As for the class.
            concurrency: As for the class.
            client: Further arguments of `ServerClient`.

        Returns:
            The sampler, named after the model; nothing is sent yet.

        Raises:
            InputError: If the target has another form, or as for the class.
        """
        model, _, url = target.partition("@http")
        InputError.unless(
            model and url,
            saw=f"policy {'openai:' + target!r}",
            expected="openai:MODEL@URL",
            cure="write, for example, openai:my-model@http://127.0.0.1:8000",
        )
        return ServerSampler(
            ServerClient("http" + url, model, **client),
            config,
            name=Path(model).name,
            chat_format=chat_format,
            concurrency=concurrency,
            template_options=template_options,
        )

    @property
    def counts(self) -> Mapping[str, int]:
        """The client's usage so far."""
        return dict(self.client.usage)

    def sample_into(
        self, requests: Sequence[SampleRequest], keep: Callable[[Sample], None]
    ) -> Iterator[Sample]:
        """Answer every request once, and keep each answer the moment it arrives.

        Args:
            requests: What is wanted.
            keep: Called with each answer, on another thread.

        Yields:
            Each answer, after it was kept; of a prompt that the server refused, its refusal.

        Raises:
            ServiceError: If the server fails for good.
        """
        if not requests:
            return
        dialect = _dialect(self.client)
        self.client.concurrency = self._concurrency or (
            1 if dialect == "transformers" else DEFAULT_CONCURRENCY
        )

        async def ask(request: SampleRequest) -> Sample:
            try:
                sample = sample_of(request, await self._ask(request, dialect), self._format)
            except RefusedRequestError as error:
                # One prompt that a server cannot take is no reason to lose the others.
                if not error.of_content:
                    raise
                sample = Sample(
                    request.prompt_id, request.index, "", "other", 0, 0, refusal=error.reason
                )
            keep(sample)
            return sample

        yield from ask_all(self.client, requests, ask)

    async def _ask(self, request: SampleRequest, dialect: Dialect) -> ChatReply:
        options = request_options(self.config, sample_seed(self.config, request), dialect)
        if self._format is not None:
            return await self.client.complete(self._format.render(request.prompt), **options)
        tools = request.prompt[0].get("tools")
        options |= {"tools": tools} if tools else {}
        if self._template_options:
            options["chat_template_kwargs"] = self._template_options
        return await self.client.chat(
            [{k: v for k, v in m.items() if k not in ("tools", SAMPLED)} for m in request.prompt],
            **options,
        )


class ServedSampler(ServerSampler):
    """Samples from a server that is started when first needed, and stopped by `close`.

    The server also ends with this process, however that ends.

    Args:
        command: As in `managed_server`.
        config: How to sample.
        log_file: Where the server's output goes; None for a temporary file.
        name: For people; None takes the model's name from the command.
        chat_format: As in `ServerSampler`.
        concurrency: As in `ServerSampler`.
        client_options: Further arguments of `ServerClient`.
        template_options: As in `ServerSampler`.
        start_timeout_s: As in `managed_server`.
    """

    def __init__(
        self,
        command: str,
        config: SamplingConfig,
        *,
        log_file: Path | None = None,
        name: str | None = None,
        chat_format: str | None = None,
        concurrency: int | None = None,
        client_options: Mapping[str, Any] | None = None,
        template_options: Mapping[str, Any] | None = None,
        start_timeout_s: float = 1800.0,
    ) -> None:
        self._server = partial(managed_server, command, start_timeout_s=start_timeout_s)
        self._log_file = log_file
        self._client_options = dict(client_options or {})
        self._open = ExitStack()
        self._running = False
        # Until the server runs, its address is any; the settings do not depend on it.
        super().__init__(
            ServerClient("http://127.0.0.1:1", None, **self._client_options),
            config,
            name=name or _model_of(command),
            chat_format=chat_format,
            concurrency=concurrency,
            identity={"command": command},
            template_options=template_options,
        )

    @classmethod
    def load(
        cls,
        target: str,
        config: SamplingConfig,
        *,
        chat_format: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        concurrency: int | None = None,
        log_file: Path | None = None,
        **client: Any,
    ) -> Sampler:
        """Make the sampler from a command.

        Args:
            target: The command, as for the class.
            config: How to sample.
            chat_format: As for the class.
            template_options: As for the class.
            concurrency: As for the class.
            log_file: As for the class.
            client: Further arguments of `ServerClient`.

        Returns:
            The sampler; no server is started yet.

        Raises:
            InputError: If it is no command, or as for the class.
        """
        command = target.strip()
        check_command(command)
        return ServedSampler(
            command,
            config,
            log_file=log_file,
            chat_format=chat_format,
            concurrency=concurrency,
            client_options=client,
            template_options=template_options,
        )

    def close(self) -> None:
        """Stop the server, if it runs; the next request starts it again."""
        self._running = False
        self._open.close()

    def sample_into(
        self, requests: Sequence[SampleRequest], keep: Callable[[Sample], None]
    ) -> Iterator[Sample]:
        """As `ServerSampler.sample_into`, after the server is up.

        Args:
            requests: What is wanted; if empty, no server is started.
            keep: As there.

        Yields:
            Each answer, after it was kept.
        """
        if requests and not self._running:
            self._start()
        yield from super().sample_into(requests, keep)

    def _start(self) -> None:
        log = self._log_file or self._open.enter_context(scratch_folder()) / "server.log"
        url = self._open.enter_context(self._server(log_file=log))
        started = ServerClient(url, None, **self._client_options)
        started.usage, self.client = self.client.usage, started
        if _dialect(self.client) == "standard":
            names = list[str]()
            with suppress(ServiceError):  # a server of one model may have no list of them
                (names,) = ask_all(self.client, [None], lambda _: self.client.models())
            self.client.model = next(iter(names), None)
        self._running = True


# How the server wants its settings; only transformers has a page to load models.
def _dialect(client: ServerClient) -> Dialect:
    (description,) = ask_all(client, [None], lambda _: client.describe())
    return "transformers" if "/load_model" in description.get("paths", {}) else "standard"


# The model's name in ``... serve MODEL ...``, or else the program's.
def _model_of(command: str) -> str:
    words = command.split()
    follows = [after for word, after in pairwise(words) if word == "serve"]
    named = bool(follows) and not follows[0].startswith("-")
    return Path(follows[0] if named else words[0]).name
