"""`sample`: a policy's own answers to the prompts of a dataset, in one file."""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from prefstage.core import InputError, Ledger, Outcome, progress
from prefstage.data.settings import BadRowSettings
from prefstage.sampling.base import (
    LoadOptions,
    LoadSettings,
    Sample,
    Sampler,
    SamplingConfig,
    collect,
    load_sampler,
    requests_for,
    shortfalls,
    stored_sample,
    to_candidates,
)

if TYPE_CHECKING:
    from prefstage.data import Candidates, CandidateSet
    from prefstage.data.sets import DataSource

_ENDINGS = (".jsonl", ".parquet")


class SampleConfig(SamplingConfig, LoadSettings, BadRowSettings):
    """How a policy is loaded, and how it answers the prompts of a dataset."""

    max_prompts: int | None = Field(
        default=None, ge=1, description="Answer the first so many prompts only."
    )


class SampleSettings(SampleConfig):
    """As YAML and the command have it: with the policy and the prompts."""

    policy: str = Field(
        description="Model folder or Hub id; openai:MODEL@URL for a running server; "
        "'serve:COMMAND --port {port}' for one to start and stop."
    )
    prompts: str = Field(
        description="Prompts, pairs or candidates to answer: file, folder or Hub id."
    )


@dataclass(frozen=True)
class Sampled(Outcome):
    """What `sample` returns.

    Attributes:
        candidates: Each prompt with its answers, as written.
    """

    candidates: "CandidateSet | None" = None


def sample(
    policy: str | Path | Sampler,
    prompts: "DataSource",
    *,
    out: str | Path,
    config: SampleConfig | None = None,
) -> Sampled:
    """Sample a policy's answers to the prompts of a dataset.

    Each answer is on disk, in OUT.samples.sqlite, as soon as it arrives: the same call goes on
    from there after a stop. At the end `out` holds each prompt with its answers.

    Args:
        policy: Model folder or Hub id, ``openai:MODEL@URL``, ``serve:COMMAND``, or a sampler,
            for which the settings of sampling and loading in `config` play no part.
        prompts: Prompts, pairs or candidates, as for `load_prompts`.
        out: Where the candidates go: .jsonl or .parquet.
        config: How the policy is loaded and answers.

    Returns:
        What came of it, and the candidates. Empty responses are counted, kept in the store and
        left out of the candidates.

    Raises:
        InputError: If `out` has another ending or is something else's file, or a setting has no
            effect on this kind of policy.
        ModelError: If there is no such model.
        DataError: If the prompts cannot be read.
    """
    from prefstage.data import CandidateSet, load_prompts

    config, out = config or SampleConfig(), Path(out)
    store_file = out.with_name(out.name + ".samples.sqlite")
    InputError.unless(
        out.suffix in _ENDINGS,
        saw=f"--out {out}",
        expected=f"a name that ends in {' or '.join(_ENDINGS)}",
        cure="change the ending",
    )
    InputError.unless(
        store_file.exists() or not out.exists(),
        saw=f"--out {out} exists, and {store_file.name} beside it does not",
        expected="a new file, or one that an earlier run of this command wrote",
        cure="name another file",
    )
    loaded = load_prompts(
        prompts, on_bad_row=config.on_bad_row, quarantine_file=config.quarantine_file
    )
    rows = [loaded[index] for index in range(min(len(loaded), config.max_prompts or len(loaded)))]
    with ExitStack() as stack:
        store = stack.enter_context(Ledger(store_file, alone=True))
        sampler = policy if isinstance(policy, Sampler) else _load(str(policy), out, config, store)
        stack.enter_context(sampler)
        result, samples = _collect(sampler, rows, config.responses, store)
    # An answer without text is no candidate: it would be a tie with every other empty one.
    written = [answer for answer in samples if answer.text.strip()]
    candidates = CandidateSet.of(to_candidates(rows, written, source=sampler.name))
    candidates.save(out)
    result |= {
        "notes": [
            *loaded.report.notes,
            *shortfalls(samples, max_new_tokens=config.max_new_tokens),
        ],
        "rows_quarantined": loaded.report.quarantined,
        "out": str(out),
        "responses_refused": sum(bool(answer.refusal) for answer in samples),
        "responses_empty": sum(not (a.text.strip() or a.refusal) for a in samples),
        "prompts_without_responses": len(rows) - len(candidates),
        "store": str(store_file),
    }
    return Sampled(_summary(result), result, [out, store_file], candidates=candidates)


def _load(policy: str, out: Path, config: SampleConfig, store: Ledger) -> Sampler:
    from prefstage.data.rendering import reads_clock

    options = config.model_dump(include=set(LoadSettings.model_fields))
    if config.template_date is None and reads_clock(policy):
        options["template_date"] = store.date
    if policy.startswith("serve:"):
        options["log_file"] = out.with_name(out.name + ".server.log")
    return load_sampler(
        policy,
        SamplingConfig(**config.model_dump(include=set(SamplingConfig.model_fields))),
        options=LoadOptions(**options),
    )


def _collect(
    sampler: Sampler, rows: "Sequence[Candidates]", responses: int, store: Ledger
) -> tuple[dict[str, Any], list[Sample]]:
    requests = requests_for(rows, responses=responses)
    kept = sum(
        stored_sample(sampler.fingerprint, request, store) is not None for request in requests
    )
    samples: list[Sample] = []
    started = time.monotonic()
    with progress(f"sampling from {sampler.name}", len(requests)) as tick:
        for answer in collect(sampler, requests, store):
            samples.append(answer)
            tick()
    seconds = time.monotonic() - started
    return {
        "policy": sampler.name,
        "fingerprint": sampler.fingerprint,
        "prompts": len(rows),
        "responses": len(samples),
        "responses_new": len(samples) - kept,
        "finish_reasons": dict(Counter(answer.finish_reason for answer in samples)),
        "thoughts": sum(answer.thought is not None for answer in samples),
        "thoughts_cut": sum(answer.thought_cut for answer in samples),
        "prompt_tokens": sum(answer.prompt_tokens for answer in samples),
        "response_tokens": sum(answer.response_tokens for answer in samples),
        "seconds": round(seconds, 3),
        "tokens_per_s": (
            round(sum(answer.response_tokens for answer in samples[kept:]) / seconds, 1)
            if seconds > 0
            else 0.0
        ),
        "counts": dict(sampler.counts),
    }, samples


def _summary(result: dict[str, Any]) -> str:
    kept = result["responses"] - result["responses_new"]
    reasons, counts = result["finish_reasons"], result["counts"]
    lines = [
        f"{result['responses']} responses to {result['prompts']} prompts by {result['policy']}"
        + (f" ({kept} of them kept from before)" if kept else ""),
        f"{result['response_tokens']} tokens, {result['tokens_per_s']} a second; "
        f"{reasons.get('length', 0)} responses were cut at the token limit",
    ]
    if result["thoughts"]:
        lines.append(
            f"{result['thoughts']} responses think first; their thoughts stand beside the answers"
        )
    notable = {
        "responses ended by the server for other reasons": reasons.get("other", 0)
        - result["responses_refused"],
        "responses refused by the server (left out, kept in the store)": result[
            "responses_refused"
        ],
        "empty responses (left out, kept in the store)": result["responses_empty"],
        "prompts without a response (left out)": result["prompts_without_responses"],
        "prompts truncated": counts.get("prompts_truncated", 0),
        "requests sent again after a fault": counts.get("retries", 0),
        "rows quarantined": result["rows_quarantined"],
    }
    lines += [f"{name}: {count}" for name, count in notable.items() if count]
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])
