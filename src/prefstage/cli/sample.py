"""`prefstage sample`: a policy's own answers to the prompts of a dataset."""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefstage.cli.chat_options import (
    ChatFormat,
    ControlTokensOption,
    TemplateDate,
    TemplateOptions,
    chat_settings,
)
from prefstage.cli.manners import Outcome, mannered, say
from prefstage.core.config import load_config
from prefstage.core.errors import InputError
from prefstage.core.progress import progress

if TYPE_CHECKING:
    from prefstage.core.ledger import Ledger
    from prefstage.data import Candidates
    from prefstage.sampling import Sample, Sampler, SampleRequest

Text = str | None
Number = int | None

_ENDINGS = (".jsonl", ".parquet")
_SAMPLING = ("responses", "temperature", "top_p", "top_k", "max_new_tokens", "beams", "seed")
_LOADING = (
    *("dtype", "device", "adapter", "max_prompt_tokens", "batch_tokens"),
    *("concurrency", "timeout_s", "retries", "api_key_env"),
)


PolicyOption = Annotated[
    str,
    typer.Option(
        help="Model folder or Hub id; openai:MODEL@URL for a running server; "
        "'serve:COMMAND --port {port}' for one to start and stop."
    ),
]


@mannered
def sample(
    *,
    policy: PolicyOption,
    prompts: Annotated[
        str, typer.Option(help="Prompts, pairs or candidates to answer: file, folder or Hub id.")
    ],
    out: Annotated[Path, typer.Option(help="Where the candidates go: .jsonl or .parquet.")],
    limit: Annotated[Number, typer.Option(help="Answer the first so many prompts only.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Sampling settings as YAML; options win.")
    ] = None,
    responses: Annotated[Number, typer.Option(help="Responses a prompt [2].")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy [0.7].")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus mass; 1 is off [0.9].")] = None,
    top_k: Annotated[Number, typer.Option(help="Tokens kept; 0 is off [50].")] = None,
    max_new_tokens: Annotated[Number, typer.Option(help="Tokens a response [1024].")] = None,
    beams: Annotated[Number, typer.Option(help="Beam search over so many; no servers [1].")] = None,
    seed: Annotated[Number, typer.Option(help="Of all responses [0].")] = None,
    chat_format: ChatFormat = None,
    template_options: TemplateOptions = None,
    template_date: TemplateDate = None,
    control_tokens: ControlTokensOption = None,
    dtype: Annotated[Text, typer.Option(help="auto, float32, bfloat16, float16.")] = None,
    device: Annotated[Text, typer.Option(help="auto, cpu, cuda:0, ...")] = None,
    adapter: Annotated[Text, typer.Option(help="PEFT adapter on the policy.")] = None,
    max_prompt_tokens: Annotated[
        Number, typer.Option(help="Longer prompts keep their end (counted).")
    ] = None,
    batch_tokens: Annotated[Number, typer.Option(help="Tokens a batch may hold [32768].")] = None,
    concurrency: Annotated[
        Number, typer.Option(help="Requests to a server in flight [16; transformers serve: 1].")
    ] = None,
    timeout_s: Annotated[
        float | None, typer.Option(help="Seconds for one attempt of a request [600].")
    ] = None,
    retries: Annotated[Number, typer.Option(help="Attempts after the first [8].")] = None,
    api_key_env: Annotated[
        Text, typer.Option(help="Variable with the server's API key [OPENAI_API_KEY].")
    ] = None,
    on_bad_row: Annotated[str, typer.Option(help="error, or quarantine.")] = "error",
    quarantine_file: Annotated[
        Path | None, typer.Option(help="Where bad rows go with --on-bad-row quarantine.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Sample a policy's answers to the prompts of a dataset.

    Each answer is on disk, in OUT.samples.sqlite, as soon as it arrives; the same command goes
    on from there after a stop. At the end OUT holds each prompt with its answers.
    """
    _sample(dict(locals()))


def _sample(given: dict[str, Any]) -> None:
    """The command, with its options by name."""
    policy, out, limit = given["policy"], given["out"], given["limit"]
    _check_out(out, limit)
    from prefstage.core.ledger import Ledger
    from prefstage.data import load_prompts
    from prefstage.data.tokenizer_files import reads_clock
    from prefstage.sampling import LoadOptions, SamplingConfig, load_sampler
    from prefstage.sampling.base import cut_thoughts

    settings = load_config(
        SamplingConfig, given["config"], {name: given[name] for name in _SAMPLING}
    )
    store_file = out.with_name(out.name + ".samples.sqlite")
    options = {name: given[name] for name in _LOADING}
    if policy.startswith("serve:"):
        options["log_file"] = out.with_name(out.name + ".server.log")
    _check_replaceable(out, store_file)
    loaded = load_prompts(
        given["prompts"],
        on_bad_row=_bad_row(given["on_bad_row"]),
        quarantine_file=given["quarantine_file"],
    )
    rows = [loaded[place] for place in range(min(len(loaded), limit or len(loaded)))]
    with ExitStack() as stack:
        former = (f"{out.name}.samples.jsonl",)
        store = stack.enter_context(Ledger(store_file, alone=True, former=former))
        chat = chat_settings(given)
        if chat.template_date is None and reads_clock(policy):
            chat = chat.model_copy(update={"template_date": store.date})
        loading = LoadOptions(**chat.encoding, **options)
        sampler = stack.enter_context(load_sampler(policy, settings, options=loading))
        result = _run(sampler, rows, settings.responses, store)
    cut = cut_thoughts(result["samples"], max_new_tokens=settings.max_new_tokens)
    result |= {"notes": [*loaded.report.notes, *cut], "rows_quarantined": loaded.report.quarantined}
    result |= _write(rows, result.pop("samples"), out, source=sampler.name)
    result |= {"store": str(store_file)}
    say(Outcome(_told(result), result, [out, store_file]), as_json=given["as_json"])


def _run(
    sampler: "Sampler", rows: Sequence["Candidates"], responses: int, store: "Ledger"
) -> dict[str, Any]:
    """Collect every answer; what came of it, and the answers themselves as `samples`."""
    from prefstage.sampling import collect, requests_for
    from prefstage.sampling.base import stored_sample

    requests: list[SampleRequest] = requests_for(rows, responses=responses)
    known = sum(stored_sample(sampler.fingerprint, each, store) is not None for each in requests)
    samples: list[Sample] = []
    started = time.monotonic()
    with progress(f"sampling from {sampler.name}", len(requests)) as tick:
        for answer in collect(sampler, requests, store):
            samples.append(answer)
            tick()
    seconds = time.monotonic() - started
    new_tokens = sum(answer.response_tokens for answer in samples[known:])
    return {
        "policy": sampler.name,
        "fingerprint": sampler.fingerprint,
        "prompts": len(rows),
        "responses": len(samples),
        "responses_new": len(samples) - known,
        "finish_reasons": dict(Counter(answer.finish_reason for answer in samples)),
        "thoughts": sum(answer.thought is not None for answer in samples),
        "thoughts_cut": sum(answer.thought_cut for answer in samples),
        "prompt_tokens": sum(answer.prompt_tokens for answer in samples),
        "response_tokens": sum(answer.response_tokens for answer in samples),
        "seconds": round(seconds, 3),
        "tokens_per_s": round(new_tokens / seconds, 1) if seconds > 0 else 0.0,
        "counts": dict(sampler.counts),
        "samples": samples,
    }


def _write(
    rows: Sequence["Candidates"], samples: Sequence["Sample"], out: Path, *, source: str
) -> dict[str, Any]:
    """Write the candidates; empty responses stay out of them, and are counted."""
    from prefstage.data import CandidateSet
    from prefstage.sampling import to_candidates

    spoken = [answer for answer in samples if answer.text.strip()]
    made = to_candidates(rows, spoken, source=source)
    CandidateSet.of(made).save(out)
    return {
        "out": str(out),
        "responses_empty": len(samples) - len(spoken),
        "prompts_without_responses": len(rows) - len(made),
    }


def _told(result: dict[str, Any]) -> str:
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
        "responses ended by the server for other reasons": reasons.get("other", 0),
        "empty responses (left out, kept in the store)": result["responses_empty"],
        "prompts without a response (left out)": result["prompts_without_responses"],
        "prompts truncated": counts.get("prompts_truncated", 0),
        "requests sent again after a fault": counts.get("retries", 0),
        "rows quarantined": result["rows_quarantined"],
    }
    lines += [f"{name}: {count}" for name, count in notable.items() if count]
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])


def _check_out(out: Path, limit: int | None) -> None:
    if out.suffix not in _ENDINGS:
        raise InputError.of(
            saw=f"--out {out}",
            expected=f"a name that ends in {' or '.join(_ENDINGS)}",
            cure="change the ending",
        )
    if limit is not None and limit < 1:
        raise InputError.of(saw=f"--limit {limit}", expected="1 or more", cure="raise it")


def _check_replaceable(out: Path, store_file: Path) -> None:
    if out.exists() and not store_file.exists():
        raise InputError.of(
            saw=f"--out {out} exists, and {store_file.name} beside it does not",
            expected="a new file, or one that an earlier run of this command wrote",
            cure="name another file",
        )


def _bad_row(text: str) -> Any:
    if text not in ("error", "quarantine"):
        raise InputError.of(
            saw=f"--on-bad-row {text}", expected="error or quarantine", cure="choose one of them"
        )
    return text
