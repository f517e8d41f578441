"""`prefstage doctor`: what is here, what prefstage will do with a model, whether a job fits."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from prefstage.core.config import Config
from prefstage.core.errors import InputError, PrefstageError
from prefstage.core.files import write_json
from prefstage.core.outcome import Outcome

if TYPE_CHECKING:
    from prefstage.scoring.memory import JobSize, ModelShape

_PACKAGES = ("prefstage", "torch", "transformers", "datasets", "peft", "trl", "vllm")
_SERVER_TIMEOUT_S = 10.0
_SMALL_SHARE = 0.25  # of the free memory: such a model is loaded without asking
_MIB = 2**20
_GIB = 2**30


class DoctorSettings(Config):
    """What is looked at."""

    model: str | None = Field(default=None, description="Model to look at: folder or Hub id.")
    load: bool | None = Field(
        default=None,
        description="Load the model to try its layout [a folder that takes a quarter of memory].",
    )
    dtype: str | None = Field(
        default=None, description="float32, bfloat16, float16 [as prefstage would load it]."
    )
    chat_format: str | None = Field(default=None, description="Plain format of a base model.")
    job: str | None = Field(
        default=None, description="Estimate memory for: score, sample or train."
    )
    batch: int | None = Field(default=None, description="Prompts in memory together [8].")
    responses: int | None = Field(default=None, description="Responses of each [2].")
    prompt_tokens: int | None = Field(default=None, description="Tokens of a prompt [256].")
    max_tokens: int | None = Field(default=None, description="Tokens of a response [256].")
    judge: str | None = Field(default=None, description="Judge to load, as for prefstage measure.")
    server: str | None = Field(default=None, description="OpenAI-compatible server to reach: URL.")


def doctor(settings: DoctorSettings, *, out: Path | None) -> Outcome:
    """Look at what is here."""
    model, job = settings.model, settings.job
    names = ("batch", "responses", "prompt_tokens", "max_tokens")
    sizes = {name: size for name in names if (size := getattr(settings, name)) is not None}
    of_model = {name: getattr(settings, name) for name in ("load", "dtype", "chat_format")}
    size = _checked(model, job, sizes, **of_model)
    found: dict[str, Any] = {"versions": _versions(), "machine": _machine()}
    if model is not None:
        found |= _look_at_model(
            model, settings.dtype, settings.chat_format, size, load=settings.load
        )
    if settings.judge is not None:
        found["judge"] = _look_at_judge(settings.judge)
    if settings.server is not None:
        found["server"] = _look_at_server(settings.server)
    if out is not None:
        write_json(out, found)
    return Outcome(_told(found), found, [] if out is None else [out])


def _checked(
    model: str | None,
    job: str | None,
    sizes: Mapping[str, int],
    *,
    dtype: str | None,
    **of_model: object,
) -> "JobSize | None":
    """Check that every option has an effect, before anything takes time."""
    from prefstage.scoring.memory import JobSize, check_dtype

    idle = [
        name
        for name, value in {"dtype": dtype, **of_model, "job": job}.items()
        if value is not None
    ]
    if model is None and idle:
        raise InputError.of(
            saw=f"--{idle[0].replace('_', '-')} without --model",
            expected="a model that it is about",
            cure="add --model FOLDER_OR_ID",
        )
    if job is None and sizes:
        raise InputError.of(
            saw=f"--{next(iter(sizes)).replace('_', '-')} without --job",
            expected="a job whose size it is",
            cure="add --job score, sample or train",
        )
    if dtype is not None:
        check_dtype(dtype)
    return None if job is None else JobSize(job, **sizes)  # type: ignore[arg-type] # checked there


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


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
        "devices": [_gpu(index) for index in range(torch.cuda.device_count())],
    }


def _gpu(index: int) -> dict[str, Any]:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    name = torch.cuda.get_device_name(index)
    return {"name": name, "memory_bytes": total, "memory_available_bytes": free}


def _look_at_model(
    name: str,
    dtype: str | None,
    chat_format: str | None,
    size: "JobSize | None",
    *,
    load: bool | None,
) -> dict[str, Any]:
    import torch

    from prefstage.core.checkpoints import CAUSAL_LM, check_config, load_config
    from prefstage.scoring.attention import choose_backend
    from prefstage.scoring.memory import (
        CPU_TOKENS,
        GPU_TOKENS,
        ModelShape,
        estimate_memory,
        training_budget,
    )

    config = load_config(name)
    check_config(config, CAUSAL_LM, name)
    on_gpu = torch.cuda.is_available()
    shape = ModelShape.of_config(config, dtype=dtype or _usual_dtype(config, on_gpu=on_gpu))
    backend, reason = choose_backend(torch.device("cuda" if on_gpu else "cpu"))
    scoring: dict[str, Any] = {"backend": backend, "backend_reason": reason}
    small = shape.weight_bytes <= _room(0)["available_bytes"] * _SMALL_SHARE
    if load or (load is None and Path(name).is_dir() and small):
        scoring |= _try_layout(name, shape)
    found: dict[str, Any] = {
        "model": {"name": name, **_described(shape)},
        "scoring": scoring,
        "chat": _look_at_chat(name, chat_format),
    }
    if size is not None:
        if size.job == "train":
            free = _room(0)["available_bytes"]
            budget = training_budget(shape, free, on_cpu=not on_gpu, loaded=False)
        else:
            budget = scoring.get("token_budget") or (GPU_TOKENS if on_gpu else CPU_TOKENS)
        estimate = estimate_memory(shape, size, pass_tokens=budget, on_cpu=not on_gpu).as_dict()
        found["job"] = {
            **vars(size),
            "token_budget": None if size.job == "sample" else budget,
            "bytes": estimate,
            **_room(estimate["total"]),
        }
    return found


def _usual_dtype(config: Any, *, on_gpu: bool) -> str:
    """As the scorer loads it: float32 on a CPU, the checkpoint's own on a GPU."""
    own = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return own if on_gpu else "float32"


def _described(shape: "ModelShape") -> dict[str, Any]:
    names = ("architecture", "parameters", "layers", "dtype", "weight_bytes", "vocabulary")
    return {name: getattr(shape, name) for name in names}


def _try_layout(name: str, shape: "ModelShape") -> dict[str, Any]:
    """Load the model and let the scorer choose, with its trial against the plain forward."""
    import warnings

    from prefstage.scoring import Scorer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reason is told below
        scorer = Scorer.load(name, dtype=shape.dtype)
    return {
        "layout": scorer.layout_choice.layout,
        "layout_reason": scorer.layout_choice.reason,
        "token_budget": scorer.token_budget,
    }


def _look_at_chat(name: str, chat_format: str | None) -> dict[str, Any]:
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
    gpus = machine["devices"]
    available = sum(gpu["memory_available_bytes"] for gpu in gpus)
    return {
        "libraries_bytes": psutil.Process().memory_info().rss,
        "device": "GPU" if gpus else "CPU",
        "available_bytes": available if gpus else machine["memory_available_bytes"],
        "fits": needed <= (available if gpus else machine["memory_available_bytes"]),
    }


def _look_at_judge(spec: str) -> dict[str, Any]:
    from prefstage.judging import load_judge

    judge = load_judge(spec)
    kind = "scores responses one by one" if judge.pointwise else "compares pairs"
    return {"spec": spec, "name": judge.name, "fingerprint": judge.fingerprint, "kind": kind}


def _look_at_server(url: str) -> dict[str, Any]:
    import asyncio

    from prefstage.serving import ServerClient

    async def ask() -> list[str]:
        async with ServerClient(url, timeout_s=_SERVER_TIMEOUT_S, retries=0) as client:
            return await client.models()

    return {"url": url, "models": asyncio.run(ask())}


def _told(found: Mapping[str, Any]) -> str:
    versions = [f"{name} {number}" for name, number in found["versions"].items() if number]
    absent = [name for name, number in found["versions"].items() if not number]
    lines = [f"versions  {', '.join(versions)}"]
    if absent:
        lines.append(f"          not installed: {', '.join(absent)}")
    lines += _told_machine(found["machine"])
    if "model" in found:
        lines += _told_model(found)
    if "job" in found:
        lines += _told_job(found["job"])
    if judge := found.get("judge"):
        lines.append(f"judge     {judge['name']}: {judge['kind']} ({judge['fingerprint']})")
    if server := found.get("server"):
        lines.append(f"server    {server['url']} offers {', '.join(server['models']) or 'nothing'}")
    return "\n".join(lines)


def _told_machine(machine: Mapping[str, Any]) -> list[str]:
    gpus = [
        f"GPU {index}    {gpu['name']}, {_size(gpu['memory_bytes'])}, "
        f"{_size(gpu['memory_available_bytes'])} free"
        for index, gpu in enumerate(machine["devices"])
    ]
    return [
        f"system    {machine['system']}, {machine['cpus']} CPUs, "
        f"torch uses {machine['torch_threads']} threads",
        f"memory    {_size(machine['memory_bytes'])}, "
        f"{_size(machine['memory_available_bytes'])} available",
        *(gpus or ["GPU       none"]),
    ]


def _told_model(found: Mapping[str, Any]) -> list[str]:
    model, scoring, chat = found["model"], found["scoring"], found["chat"]
    lines = [
        f"model     {model['name']}: {model['architecture']}, "
        f"{model['parameters']:,} parameters, {model['layers']} layers, "
        f"{_size(model['weight_bytes'])} in {model['dtype']}",
        f"attention {scoring['backend']}: {scoring['backend_reason']}",
    ]
    if "layout" in scoring:
        lines.append(f"layout    {scoring['layout']}: {scoring['layout_reason']}")
    else:
        lines.append("layout    tried when the model is loaded; --load tries it now")
    if chat["known"]:
        lines.append(f"chat      {chat['format']}; a response ends with {chat['end_of_turn']!r}")
    else:
        lines.append(f"chat      unknown: {chat['reason']}")
    return lines


def _told_job(job: Mapping[str, Any]) -> list[str]:
    parts = [f"{name} {_size(size)}" for name, size in job["bytes"].items() if size]
    *needs, total = [part.replace("_", " ") for part in parts]
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
