"""From a short text to who writes the answers."""

import datetime
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefstage.core.errors import InputError
from prefstage.data.settings import ControlTokens
from prefstage.sampling.base import Sampler, SamplingConfig


@dataclass(frozen=True)
class LoadOptions:
    """How a sampler is loaded; None leaves the default, and what a kind lacks is an error.

    Attributes:
        chat_format: Named plain format for a base model without a chat template.
        template_options: Variables for the chat template, such as
            ``{"enable_thinking": False}``.
        template_date: In process: what templates read as today.
        control_tokens: In process: "split" or "keep", as in `ResponseEncoder`.
        dtype: In process: "auto", "float32", "bfloat16", "float16".
        device: In process: "auto", "cpu", "cuda:0", ...
        adapter: In process: PEFT adapter to merge into the weights.
        max_prompt_tokens: In process: longer prompts keep their end.
        batch_tokens: In process: tokens a batch may hold, full-grown.
        concurrency: Servers: requests in flight at most.
        timeout_s: Servers: seconds for one attempt of a request.
        retries: Servers: attempts after the first.
        api_key_env: Servers: environment variable that holds the API key.
        log_file: Servers that are started: where their output goes.
    """

    chat_format: str | None = None
    template_options: Mapping[str, Any] | None = None
    template_date: datetime.date | None = None
    control_tokens: ControlTokens | None = None
    dtype: str | None = None
    device: str | None = None
    adapter: str | None = None
    max_prompt_tokens: int | None = None
    batch_tokens: int | None = None
    concurrency: int | None = None
    timeout_s: float | None = None
    retries: int | None = None
    api_key_env: str | None = None
    log_file: Path | None = None

    def given(self, *names: str) -> dict[str, Any]:
        """The named options that are set."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


_IN_PROCESS = (
    *("template_date", "control_tokens"),
    *("dtype", "device", "adapter", "max_prompt_tokens", "batch_tokens"),
)
_CLIENT = ("timeout_s", "retries", "api_key_env")
_SERVER = ("concurrency", *_CLIENT)


def as_sampler(
    spec: str | Path | Sampler,
    config: SamplingConfig | None = None,
    *,
    options: LoadOptions | None = None,
) -> Sampler:
    """Load who writes answers.

    Args:
        spec: ``openai:MODEL@URL``, a running OpenAI-compatible server; ``serve:COMMAND``, a
            server that is started when needed and stopped at the end (by the sampler's
            `close`, or with this process), its command with `{port}` where the port goes;
            otherwise a model folder or Hub id, for transformers in this process. A `Sampler`
            is returned as it is.
        config: How to sample; None for the defaults.
        options: How to load.

    Returns:
        The sampler. Closing it (or its ``with`` block) stops the server of a `serve:` spec.

    Raises:
        InputError: If the spec is malformed, or an option has no effect on its kind.
        ModelError: If there is no such model.
    """
    if isinstance(spec, Sampler) and config is None and options is None:
        return spec
    if not isinstance(spec, str | Path):
        raise InputError.of(
            saw=f"a policy of type {type(spec).__name__}"
            + (" with settings of its own" if isinstance(spec, Sampler) else ""),
            expected="a model folder, a Hub id, openai:MODEL@URL, serve:COMMAND, or a "
            "prefstage.sampling.Sampler, which has its settings already",
            cure="pass one of these; a class of your own derives from prefstage.sampling.Sampler",
        )
    spec, config, options = str(spec), config or SamplingConfig(), options or LoadOptions()
    if spec.startswith("openai:"):
        _no_effect(spec, options, (*_IN_PROCESS, "log_file"))
        return _running_server(spec, config, options)
    if spec.startswith("serve:"):
        _no_effect(spec, options, _IN_PROCESS)
        return _started_server(spec.removeprefix("serve:").strip(), config, options)
    _no_effect(spec, options, (*_SERVER, "log_file"))
    if not spec.strip():
        raise InputError.of(
            saw="an empty policy",
            expected="a model folder, a Hub id, openai:MODEL@URL or serve:COMMAND",
            cure="name one",
        )
    from prefstage.sampling.transformers_sampler import TransformersSampler

    return TransformersSampler.load(
        spec,
        config,
        **options.given("chat_format", "template_options", *_IN_PROCESS),
    )


load_sampler = as_sampler
"""The name for users: `load_sampler("path/to/model")`."""


def _running_server(spec: str, config: SamplingConfig, options: LoadOptions) -> Sampler:
    from prefstage.sampling.server_sampler import ServerSampler
    from prefstage.serving import ServerClient

    model, _, url = spec.removeprefix("openai:").partition("@http")
    if not model or not url:
        raise InputError.of(
            saw=f"policy {spec!r}",
            expected="openai:MODEL@URL",
            cure="write, for example, openai:my-model@http://127.0.0.1:8000",
        )
    client = ServerClient("http" + url, model, **options.given(*_CLIENT))
    return ServerSampler(
        client,
        config,
        name=Path(model).name,
        chat_format=options.chat_format,
        concurrency=options.concurrency,
        template_options=options.template_options,
    )


def _started_server(command: str, config: SamplingConfig, options: LoadOptions) -> Sampler:
    from prefstage.sampling.server_sampler import ServedSampler
    from prefstage.serving import check_command

    check_command(command)
    return ServedSampler(
        command,
        config,
        log_file=options.log_file or Path(tempfile.mkdtemp(prefix="prefstage-")) / "server.log",
        chat_format=options.chat_format,
        concurrency=options.concurrency,
        client_options=options.given(*_CLIENT),
        template_options=options.template_options,
    )


def _no_effect(spec: str, options: LoadOptions, names: tuple[str, ...]) -> None:
    for name, value in options.given(*names).items():
        raise InputError.of(
            saw=f"{name}={value} with policy {spec!r}",
            expected="only options that have an effect on this kind of policy",
            cure=f"leave {name} out",
        )
