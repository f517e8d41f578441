"""`doctor`: what is here, what prefstage will do with a model, whether a job fits."""

import os
import platform
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from prefstage.core import (
    Config,
    InputError,
    Outcome,
    PrefstageError,
    installed_versions,
    locked_file,
    redacted_values,
    write_json,
)

if TYPE_CHECKING:
    from prefstage.judging import Judge
    from prefstage.scoring.memory import JobSize

_PACKAGES = ("prefstage", "torch", "transformers", "datasets", "peft", "trl", "vllm")
_SERVER_TIMEOUT_S = 10.0
_SMALL_SHARE = 0.25  # of the free memory: such a model is loaded without asking
_NOT_TRIED, _NOT_KNOWN = "tried when the model is loaded; --load tries it now", "unknown: {reason}"
_MIB = 2**20
_GIB = 2**30
# Settings of a job and of a model; what is said of a model's shape.
_OF_JOBS = ("batch", "responses", "prompt_tokens", "max_tokens")
_OF_MODELS = ("dtype", "load", "chat_format", "job")
_OF_SHAPES = ("architecture", "parameters", "layers", "dtype", "weight_bytes", "vocabulary")


class DoctorConfig(Config):
    """How a model is looked at, and the job whose memory is estimated."""

    load: bool | None = Field(
        default=None,
        description="Load the model to try its layout [a folder that takes a quarter of memory].",
    )
    dtype: str | None = Field(
        default=None, description="float32, bfloat16, float16 [as prefstage would load it]."
    )
    chat_format: str | None = Field(default=None, description="Plain format of a base model.")
    job: Literal["score", "sample", "train"] | None = Field(
        default=None, description="Estimate memory for this."
    )
    batch: int | None = Field(default=None, description="Prompts in memory together [8].")
    responses: int | None = Field(default=None, description="Responses per prompt [2].")
    prompt_tokens: int | None = Field(default=None, description="Tokens of a prompt [256].")
    max_tokens: int | None = Field(default=None, description="Tokens of a response [256].")


class DoctorSettings(DoctorConfig):
    """As YAML and the command have it: with what is looked at."""

    model: str | None = Field(default=None, description="Model to look at: folder or Hub id.")
    judge: str | None = Field(default=None, description="Judge to load, as for prefstage measure.")
    server: str | None = Field(default=None, description="OpenAI-compatible server to reach: URL.")


def doctor(
    model: str | Path | None = None,
    *,
    judge: "str | Path | Judge | None" = None,
    server: str | None = None,
    out: str | Path | None = None,
    config: DoctorConfig | None = None,
) -> Outcome:
    """Say what is here: versions, devices, memory; and whether a model and a job fit.

    Args:
        model: Folder or Hub id: its size, how its responses will be scored and why, and whether
            its chat template is known.
        judge: Loaded, as for `load_judge`.
        server: URL of an OpenAI-compatible server, which is asked for its models.
        out: JSON file for the findings.
        config: How the model is looked at, and a job whose memory is estimated from the model's
            configuration.

    Returns:
        The findings: "versions", "machine" and, where they were asked for, "model", "scoring",
        "chat", "job", "judge" and "server". Memory in bytes.

    Raises:
        InputError: If a setting has no effect or is out of range, or there is no such judge.
        ModelError: If the model's configuration cannot be read.
    """
    config = config or DoctorConfig()
    size = _job_size(model, config)
    findings: dict[str, Any] = {
        "versions": {"python": platform.python_version(), **installed_versions(_PACKAGES)},
        "machine": _machine(),
    }
    if model is not None:
        findings |= _model(str(model), config, size)
    if judge is not None:
        from prefstage.judging import as_judge

        asked = as_judge(judge)
        findings["judge"] = {
            "spec": str(judge),
            "name": asked.name,
            "fingerprint": asked.fingerprint,
            "kind": "scores responses one by one" if asked.pointwise else "compares pairs",
        }
    if server is not None:
        from prefstage.serving import ServerClient, ask_all

        client = ServerClient(server, timeout_s=_SERVER_TIMEOUT_S, retries=0)
        (models,) = ask_all(client, [None], lambda _: client.models())
        findings["server"] = {"url": server, "models": models}
    if out is not None:
        with locked_file(Path(out)):
            write_json(Path(out), redacted_values(findings))
    return Outcome("\n".join(_lines(findings)), findings, [] if out is None else [Path(out)])


# The job, after a check that every setting has an effect, before anything takes time.
def _job_size(model: str | Path | None, config: DoctorConfig) -> "JobSize | None":
    from prefstage.scoring.memory import JobSize, check_dtype

    sizes = {name: size for name in _OF_JOBS if (size := getattr(config, name)) is not None}
    idle = next((name for name in _OF_MODELS if getattr(config, name) is not None), "")
    InputError.unless(
        model is not None or not idle,
        saw=f"--{idle.replace('_', '-')} without --model",
        expected="a model that it is about",
        cure="add --model FOLDER_OR_ID",
    )
    InputError.unless(
        config.job is not None or not sizes,
        saw=f"--{next(iter(sizes), '').replace('_', '-')} without --job",
        expected="a job whose size it is",
        cure="add --job score, sample or train",
    )
    if config.dtype is not None:
        check_dtype(config.dtype)
    return None if config.job is None else JobSize(config.job, **sizes)


def _machine() -> dict[str, Any]:
    import psutil
    import torch

    memory = psutil.virtual_memory()
    return {
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "devices": [
            {
                "name": torch.cuda.get_device_name(index),
                "memory_bytes": total,
                "memory_available_bytes": free,
            }
            for index in range(torch.cuda.device_count())
            for free, total in [torch.cuda.mem_get_info(index)]
        ],
    }


def _model(name: str, config: DoctorConfig, size: "JobSize | None") -> dict[str, Any]:
    import torch

    from prefstage.core import CAUSAL_LM, check_model_config, load_model_config
    from prefstage.scoring import Scorer
    from prefstage.scoring.attention import choose_backend
    from prefstage.scoring.memory import (
        CPU_TOKENS,
        GPU_TOKENS,
        ModelShape,
        estimate_memory,
        training_budget,
    )

    model = load_model_config(name)
    check_model_config(model, CAUSAL_LM, name)
    on_gpu = torch.cuda.is_available()
    # As the scorer loads it: float32 on a CPU, the checkpoint's own on a GPU.
    saved = str(getattr(model, "dtype", None) or "float32").removeprefix("torch.")
    shape = ModelShape.of_config(model, dtype=config.dtype or (saved if on_gpu else "float32"))
    backend, reason = choose_backend(torch.device("cuda" if on_gpu else "cpu"))
    scoring: dict[str, Any] = {"backend": backend, "backend_reason": reason}
    small = shape.weight_bytes <= _room(0)["available_bytes"] * _SMALL_SHARE
    if config.load or (config.load is None and Path(name).is_dir() and small):
        # Load the model and let the scorer choose, with its trial against the plain forward.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the layout's reason says it
            scorer = Scorer.load(name, dtype=shape.dtype)
        scoring |= {
            "layout": scorer.layout_choice.layout,
            "layout_reason": scorer.layout_choice.reason,
            "token_budget": scorer.token_budget,
        }
    findings: dict[str, Any] = {
        "model": {"name": name, **{field: getattr(shape, field) for field in _OF_SHAPES}},
        "scoring": scoring,
        "chat": _chat(name, config.chat_format),
    }
    if size is not None:
        budget = (
            training_budget(shape, _room(0)["available_bytes"], on_cpu=not on_gpu, loaded=False)
            if size.job == "train"
            else scoring.get("token_budget") or (GPU_TOKENS if on_gpu else CPU_TOKENS)
        )
        estimate = estimate_memory(shape, size, pass_tokens=budget, on_cpu=not on_gpu).as_dict()
        findings["job"] = {
            **vars(size),
            "token_budget": None if size.job == "sample" else budget,
            "bytes": estimate,
            **_room(estimate["total"]),
        }
    return findings


def _chat(name: str, chat_format: str | None) -> dict[str, Any]:
    from prefstage.data import ResponseEncoder, load_tokenizer

    try:
        encoder = ResponseEncoder(load_tokenizer(name), chat_format=chat_format)
    except PrefstageError as error:
        if chat_format is not None:  # asked for, so it is no finding but an error
            raise
        return {"known": False, "reason": str(error)}
    return {
        "known": True,
        "format": chat_format or "the tokenizer's chat template",
        "end_of_turn": encoder.end_of_turn,
        "end_of_turn_ids": list(encoder.end_of_turn_ids),
    }


def _room(needed: int) -> dict[str, Any]:
    import psutil

    machine = _machine()
    available = sum(device["memory_available_bytes"] for device in machine["devices"] or [machine])
    return {
        "libraries_bytes": psutil.Process().memory_info().rss,
        "device": "GPU" if machine["devices"] else "CPU",
        "available_bytes": available,
        "fits": needed <= available,
    }


def _lines(findings: Mapping[str, Any]) -> list[str]:
    versions, machine = findings["versions"], findings["machine"]
    judge, server = findings.get("judge"), findings.get("server")
    absent = [name for name, number in versions.items() if not number]
    return [
        f"versions  {', '.join(f'{name} {n}' for name, n in versions.items() if n)}",
        *([f"          not installed: {', '.join(absent)}"] if absent else []),
        f"system    {machine['system']}, {machine['cpus']} CPUs, "
        f"torch uses {machine['torch_threads']} threads",
        f"memory    {_size(machine['memory_bytes'])}, "
        f"{_size(machine['memory_available_bytes'])} available",
        *(
            [
                f"GPU {index}    {gpu['name']}, {_size(gpu['memory_bytes'])}, "
                f"{_size(gpu['memory_available_bytes'])} free"
                for index, gpu in enumerate(machine["devices"])
            ]
            or ["GPU       none"]
        ),
        *(_model_lines(findings) if "model" in findings else []),
        *(_job_lines(findings["job"]) if "job" in findings else []),
        *(
            [f"judge     {judge['name']}: {judge['kind']} ({judge['fingerprint']})"]
            if judge
            else []
        ),
        *(
            [f"server    {server['url']} offers " + (", ".join(server["models"]) or "nothing")]
            if server
            else []
        ),
    ]


def _model_lines(findings: Mapping[str, Any]) -> list[str]:
    model, scoring, chat = (findings[name] for name in ("model", "scoring", "chat"))
    layout = "{layout}: {layout_reason}" if "layout" in scoring else _NOT_TRIED
    ending = "{format}; a response ends with {end_of_turn!r}" if chat["known"] else _NOT_KNOWN
    return [
        f"model     {model['name']}: {model['architecture']}, "
        f"{model['parameters']:,} parameters, {model['layers']} layers, "
        f"{_size(model['weight_bytes'])} in {model['dtype']}",
        f"attention {scoring['backend']}: {scoring['backend_reason']}",
        f"layout    {layout.format_map(scoring)}",
        f"chat      {ending.format_map(chat)}",
    ]


def _job_lines(job: Mapping[str, Any]) -> list[str]:
    *needs, total = [
        f"{name.replace('_', ' ')} {_size(size)}" for name, size in job["bytes"].items() if size
    ]
    budget = job["token_budget"]
    passes = "" if budget is None else f", up to {budget:,} tokens a pass"
    verdict = "fits" if job["fits"] else "does not fit: lower --batch, or take a smaller --dtype"
    return [
        f"job       {job['job']}: {job['batch']} prompts of {job['prompt_tokens']} tokens with "
        f"{job['responses']} responses of {job['max_tokens']}{passes}",
        f"          {', '.join(needs)}; {total}",
        f"          {_size(job['available_bytes'])} available on the {job['device']}: {verdict}",
    ]


def _size(size: int) -> str:
    return f"{size / _MIB:.0f} MiB" if size < _GIB else f"{size / _GIB:.1f} GiB"
