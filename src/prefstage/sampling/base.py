"""Who writes answers, one per (prompt, index), and how they are kept."""

import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from prefstage.core import (
    Config,
    InputError,
    Ledger,
    ServiceError,
    parse_json,
    redacted,
    redacted_values,
    seed_for,
)
from prefstage.data.records import Candidates, Generation, Prompt, generations_of
from prefstage.data.settings import ChatSettings


class AnswerConfig(Config):
    """How one answer is sampled. Defaults: Sun et al. 2025, arXiv:2508.10530, Table 5."""

    temperature: float = Field(default=0.7, ge=0, description="0 is greedy decoding.")
    top_p: float = Field(default=0.9, gt=0, le=1, description="Nucleus mass; 1 is off.")
    top_k: int = Field(default=50, ge=0, description="Tokens kept; 0 is off.")
    max_new_tokens: int = Field(default=1024, ge=1, description="Tokens per response at most.")
    beams: int = Field(
        default=1, ge=1, description="Beam search over so many; 1 is off. Not with servers."
    )

    # Beam search that is off is not named: nothing depends on it.
    @model_serializer(mode="wrap")
    def _without_idle(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if (name, value) != ("beams", 1)}


class SamplingConfig(AnswerConfig):
    """How answers are sampled."""

    responses: int = Field(default=2, ge=1, description="Responses per prompt.")
    seed: int = Field(default=0, ge=0, description="Run seed; each response derives its own.")


@dataclass(frozen=True)
class SampleRequest:
    """One answer that is wanted.

    Attributes:
        prompt_id: Names the prompt's content.
        prompt: Messages up to and with the last user turn.
        index: Which of the prompt's responses this is, from 0.
    """

    prompt_id: str
    prompt: Prompt
    index: int


@dataclass(frozen=True)
class Sample:
    """One answer.

    Attributes:
        prompt_id: As in the request.
        index: As in the request.
        text: The answer, without the end-of-turn token and without what was thought before it;
            empty where the response was cut within its thought.
        finish_reason: "stop" (end of turn), "length" (cut at max_new_tokens or at the end of
            the context), or "other" (a server withheld or ended it: content filter, tool call).
        prompt_tokens: Tokens of the prompt.
        response_tokens: Tokens generated, thought and end-of-turn included.
        thought: What was thought before the answer; None if nothing was.
        thought_cut: Whether the response ended within its thought.
        token_ids: The tokens generated, thought and end-of-turn included; empty where a server
            does not say.
        tokenizer: Fingerprint of the tokenizer that they belong to; empty where there are none.
        refusal: Why a server refused to answer this prompt, in its own words; then there is no
            text. Kept like an answer: it is not asked again.
    """

    prompt_id: str
    index: int
    text: str
    finish_reason: Literal["stop", "length", "other"]
    prompt_tokens: int
    response_tokens: int
    thought: str | None = None
    thought_cut: bool = False
    token_ids: tuple[int, ...] = ()
    tokenizer: str = ""
    refusal: str = ""

    @property
    def generation(self) -> Generation | None:
        """How the policy wrote it: what training has to see. None if the text says it all."""
        if self.thought is None and not self.token_ids:
            return None
        return Generation(self.thought, self.token_ids, self.tokenizer)


def shortfalls(samples: Sequence[Sample], *, max_new_tokens: int | None = None) -> list[str]:
    """Say how many responses were refused or ended within their thought, and what to do.

    Args:
        samples: Answers.
        max_new_tokens: The limit that they had, where one is known.

    Returns:
        A line for those that a server refused, one for those that were cut, and one for those
        that the policy ended itself; each only where there are some.

    Raises:
        ServiceError: If all were refused.
    """
    refused = [sample for sample in samples if sample.refusal]
    first = f"prompt {refused[0].prompt_id}: {refused[0].refusal}" if refused else ""
    ServiceError.unless(
        len(refused) < len(samples) or not refused,
        saw=f"the server refused all {len(refused)} requests, the first for {first}",
        expected="prompts that the server takes",
        cure="mend that; the refusals are kept, so that another --out asks anew",
    )
    reasons = [sample.finish_reason for sample in samples if sample.thought_cut]
    cut = reasons.count("length")
    limit = "max_new_tokens" if max_new_tokens is None else f"max_new_tokens={max_new_tokens}"
    lines = {
        f"cut in the thought at {limit}: raise it, or switch thinking off": cut,
        "ended in the thought by the policy itself: nothing was answered": len(reasons) - cut,
    }
    lines[f"refused by the server, the first for {first}"] = len(refused)
    return [f"{n} {'answer' if n == 1 else 'answers'} {what}" for what, n in lines.items() if n]


class Sampler(AbstractContextManager["Sampler"]):
    """Writes answers. Each depends on its (prompt, index) and the seed alone.

    The base class of every sampler: a subclass sets the attributes and defines `sample`, or
    `sample_into` where an answer costs money or minutes elsewhere.

    Attributes:
        name: Short name for people and for the `sources` column.
        fingerprint: Hash of everything that the answers depend on: weights or server model,
            settings, seed.
        settings: What the fingerprint is made of, by name; JSON-serialisable.
    """

    name: str
    fingerprint: str
    settings: Mapping[str, Any] = MappingProxyType({})

    @property
    def counts(self) -> Mapping[str, int]:
        """What happened so far besides sampling."""
        return {}

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sample]:
        """Answer every request once, in any order, each as soon as it is ready.

        Args:
            requests: What is wanted.

        Returns:
            An iterator over the answers.

        Raises:
            InputError: If the class does not define it.
        """
        InputError.unless(
            type(self).sample_into is not Sampler.sample_into,
            saw=f"sampler {type(self).__name__}, which defines no `sample`",
            expected="a class derived from prefstage.sampling.Sampler that does",
            cure="define it",
        )
        return self.sample_into(requests, lambda sample: None)

    def sample_into(
        self, requests: Sequence[SampleRequest], keep: Callable[[Sample], None]
    ) -> Iterator[Sample]:
        """As `sample`, but call `keep` with each answer before anything else happens to it.

        Args:
            requests: What is wanted.
            keep: Writes an answer to disk; may be called on another thread, while the
                consumer does something else.

        Yields:
            Each answer, after it was kept.
        """
        for sample in self.sample(requests):
            keep(sample)
            yield sample

    def close(self) -> None:
        """Give up what the sampler holds: nothing, unless a subclass says so."""

    def __exit__(self, *_: object) -> None:
        """Close the sampler at the end of a block."""
        self.close()


def requests_for(
    prompts: Iterable[Candidates], *, responses: int, first: int = 0
) -> list[SampleRequest]:
    """Ask for some responses to each prompt.

    Args:
        prompts: Each prompt stands once; its present responses play no part.
        responses: Responses per prompt, >= 1.
        first: Index of the first.

    Returns:
        The requests, prompt by prompt.
    """
    return [
        SampleRequest(prompt.prompt_id, prompt.prompt, index)
        for prompt in prompts
        for index in range(first, first + responses)
    ]


def sample_seed(config: SamplingConfig, request: SampleRequest) -> int:
    """Seed of one response: depends on the run's seed, the prompt and the index alone.

    Returns:
        An integer in [0, 2**31), which every server takes.
    """
    return seed_for(config.seed, "sample", request.prompt_id, request.index) >> 32


def shared_settings(config: SamplingConfig) -> dict[str, Any]:
    """The settings that each answer depends on: all but the number of responses."""
    return config.model_dump(exclude={"responses"})


def collect(
    sampler: Sampler, requests: Sequence[SampleRequest], ledger: Ledger, *, key: str | None = None
) -> Iterator[Sample]:
    """Answer requests, asking the sampler only for what the ledger does not hold.

    Args:
        sampler: Who answers; its answers depend on its fingerprint and the request alone.
        requests: What is wanted.
        ledger: Every new answer is in it before it is yielded, and those of a server even
            before anything else is done with them.
        key: Names the answers in a ledger that holds those of other samplers too; None for a
            ledger of this sampler alone, where its fingerprint names them.

    Yields:
        The answer to each request: those in the ledger first, then new ones as they come.

    Raises:
        InputError: If the ledger holds another sampler's answers and `key` is None, or an answer
            in it cannot be read.
    """
    if key is None:
        key = sampler.fingerprint
        _check_alone(sampler, ledger)
    settings = json.dumps(redacted_values(sampler.settings))
    ledger.put("samplers", (key,), (redacted(sampler.name), settings, ledger.date.isoformat()))
    missing: dict[tuple[str, int], SampleRequest] = {}
    for request in requests:
        known = stored_sample(key, request, ledger)
        if known is None:
            missing[request.prompt_id, request.index] = request
        else:
            yield known

    def keep(sample: Sample) -> None:
        values = {k: v for k, v in asdict(sample).items() if k not in ("prompt_id", "index")}
        if not values["refusal"]:
            del values["refusal"]
        ledger.put(
            "samples",
            (key, sample.prompt_id, sample.index),
            # Half of a surrogate pair, which JSON can carry and UTF-8 cannot, stays an escape.
            (json.dumps(values), sample.prompt_tokens, sample.response_tokens),
        )

    yield from sampler.sample_into(list(missing.values()), keep)


def stored_sample(sampler: str, request: SampleRequest, ledger: Ledger) -> Sample | None:
    """Look an answer up.

    Args:
        sampler: The sampler's key: its fingerprint, or as `collect` was told.
        request: What was asked.
        ledger: Where to look.

    Returns:
        The answer, or None if there is none yet.

    Raises:
        InputError: If it cannot be read.
    """
    row = ledger.get("samples", (sampler, request.prompt_id, request.index))
    if row is None:
        return None
    with ledger.intact(f"the answer {request.index} to prompt {request.prompt_id} is unreadable"):
        values = parse_json(row[0])
        values["token_ids"] = tuple(values["token_ids"])
        return Sample(request.prompt_id, request.index, **values)


def to_candidates(
    prompts: Sequence[Candidates], samples: Iterable[Sample], *, source: str
) -> list[Candidates]:
    """Join samples with their prompts.

    Args:
        prompts: Each prompt once; only id and messages are used.
        samples: Answers, at most one per (prompt, index), in any order.
        source: Who wrote them.

    Returns:
        The prompts that have answers, in order, with their answers by index, and how each was
        generated; no scores. Refused ones are no answers.
    """
    answers: dict[str, list[Sample]] = {}
    spoken = (sample for sample in samples if not sample.refusal)
    for sample in sorted(spoken, key=lambda sample: sample.index):
        answers.setdefault(sample.prompt_id, []).append(sample)
    return [
        Candidates(
            prompt.prompt_id,
            prompt.prompt,
            responses=tuple(sample.text for sample in written),
            sources=(source,) * len(written),
            scores=(None,) * len(written),
            generations=generations_of(sample.generation for sample in written),
        )
        for prompt in prompts
        if (written := answers.get(prompt.prompt_id))
    ]


def _check_alone(sampler: Sampler, ledger: Ledger) -> None:
    settings = json.loads(json.dumps(redacted_values(sampler.settings)))
    for fingerprint, name, text, answers in ledger.samplers():
        if fingerprint != sampler.fingerprint:
            with ledger.intact(f"the settings of {name!r}"):
                former = dict(parse_json(text))
            different = ", ".join(
                f"{key}={former.get(key)!r}, now {settings.get(key)!r}"
                for key in sorted({*former, *settings})
                if former.get(key) != settings.get(key)
            )
            raise InputError.of(
                saw=f"{ledger.path} holds {answers} answers of {name!r}"
                + (f" with other settings ({different})" if different else ""),
                expected="a new file, or the same sampler, settings and seed",
                cure="name another file, or repeat the first run's settings to go on with it",
            )


class PolicySettings(ChatSettings):
    """How a policy is loaded, for recipes; what is None is left to its kind."""

    dtype: str | None = Field(default=None, description="auto, float32, bfloat16 or float16.")
    device: str | None = Field(default=None, description="auto, cpu, cuda:0, ...")
    adapter: str | None = Field(default=None, description="PEFT adapter on the policy.")
    concurrency: int | None = Field(default=None, ge=1, description="Requests in flight.")


class LoadSettings(PolicySettings):
    """Everything that says how a policy is loaded, as the command has it."""

    max_prompt_tokens: int | None = Field(
        default=None, description="Longer prompts keep their end (counted)."
    )
    batch_tokens: int | None = Field(default=None, description="Tokens a batch may hold [32768].")
    concurrency: int | None = Field(
        default=None, description="Requests to a server in flight [16; transformers serve: 1]."
    )
    timeout_s: float | None = Field(
        default=None, description="Seconds for one attempt of a request [600]."
    )
    retries: int | None = Field(default=None, description="Attempts after the first [8].")
    api_key_env: str | None = Field(
        default=None, description="Variable with the server's API key [OPENAI_API_KEY]."
    )
    without: str | None = Field(
        default=None, description="Fields that a server does not take, such as top_k,seed."
    )


class LoadOptions(LoadSettings):
    """How a sampler is loaded; None leaves the default, and what a kind lacks is an error.

    Policies in this process take `template_date`, `control_tokens`, `dtype`, `device`, `adapter`,
    `max_prompt_tokens` and `batch_tokens`; servers `concurrency`, `timeout_s`, `retries`,
    `api_key_env` and `without`; those that are started also `log_file`; all take `chat_format`
    and `template_options`.
    """

    log_file: Path | None = Field(
        default=None, description="Where the output of a server goes that is started."
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_for_none(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value is not None}


_SERVED = (
    *("chat_format", "template_options", "concurrency"),
    *("timeout_s", "retries", "api_key_env", "without"),
)
# By the beginning of a spec: where the class of such a policy stands, and the options it takes.
_KINDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "openai:": ("server_sampler", "ServerSampler", _SERVED),
    "serve:": ("server_sampler", "ServedSampler", (*_SERVED, "log_file")),
    "": (
        "transformers_sampler",
        "TransformersSampler",
        (
            *(*ChatSettings.model_fields, "dtype", "device", "adapter"),
            *("max_prompt_tokens", "batch_tokens"),
        ),
    ),
}


def as_sampler(
    spec: str | Path | Sampler,
    config: SamplingConfig | None = None,
    *,
    options: PolicySettings | None = None,
) -> Sampler:
    """Load who writes answers.

    Args:
        spec: ``openai:MODEL@URL``, a running OpenAI-compatible server; ``serve:COMMAND``, a
            server that is started when needed and stopped at the end (by the sampler's
            `close`, or with this process), its command with `{port}` where the port goes;
            otherwise a model folder or Hub id, for transformers in this process. A `Sampler`
            is returned as it is.
        config: How to sample; None for the defaults.
        options: How to load: `LoadOptions`, or the settings of a recipe.

    Returns:
        The sampler. Closing it (or its ``with`` block) stops the server of a `serve:` spec.

    Raises:
        InputError: If the spec is malformed, or an option has no effect on its kind.
        ModelError: If there is no such model.
    """
    if isinstance(spec, Sampler) and config is None and options is None:
        return spec
    InputError.unless(
        isinstance(spec, str | Path),
        saw=f"a policy of type {type(spec).__name__}"
        + (" with settings of its own" if isinstance(spec, Sampler) else ""),
        expected="a model folder, a Hub id, openai:MODEL@URL, serve:COMMAND, or a "
        "prefstage.sampling.Sampler, which has its settings already",
        cure="pass one of these; a class of your own derives from prefstage.sampling.Sampler",
    )
    spec, config, options = str(spec), config or SamplingConfig(), options or LoadOptions()
    prefix = next(start for start in _KINDS if spec.startswith(start))
    module, name, takes = _KINDS[prefix]
    fields = type(options).model_fields
    chosen = {
        option: getattr(options, option)
        for option in LoadOptions.model_fields
        if option in fields and getattr(options, option) != fields[option].default
    }
    for option in (option for option in chosen if option not in takes):
        raise InputError.of(
            saw=f"{option}={chosen[option]} with policy {spec!r}",
            expected="only options that have an effect on this kind of policy",
            cure=f"leave {option} out",
        )
    # Imported only now: one of the kinds needs torch, and the others should not wait for it.
    kind = getattr(importlib.import_module(f"prefstage.sampling.{module}"), name)
    return cast(Sampler, kind.load(spec.removeprefix(prefix), config, **chosen))


load_sampler = as_sampler
"""The name for users: `load_sampler("path/to/model")`."""
