"""What all tests share: where the shared real data is, and the tensor-shape checks."""

import os
import signal
from pathlib import Path

# Tests that run side by side (pytest -n) take one thread each; torch and the processes that
# tests start read this when they are imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A name that is no folder is looked for on the Hub, and without a network each request is tried
# again for most of a minute; tests marked `network` set it to 0.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Tensor packages are checked against their shape annotations in every test.
RANKINGS = ("flips", "rankings")
DYNAMICS = ("dynamics_measures", "dynamics_pairs")
install_import_hook(
    [
        "prefstage.losses",
        "prefstage.scoring",
        *(f"prefstage.diagnosing.{name}" for name in RANKINGS),
        *(f"prefstage.training.{name}" for name in DYNAMICS),
    ],
    "beartype.beartype",
)

# No test may fail because the machine is busy, and a change is judged by the same examples each
# time; `HYPOTHESIS_PROFILE=explore` draws others, ten times as many.
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# A shell's background job ignores Ctrl-C, and so would the commands that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared real data and models; tests that need it skip without it."""
    folder = Path(os.environ.get("PREFSTAGE_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(
            "no shared data: set PREFSTAGE_SHARED to the folder that holds data/ and models/"
        )
    return folder


@pytest.fixture(scope="session")
def chat_model() -> Path:
    """The real chat model (see benchmarks/prepare_chat_model.py); slow tests skip without it."""
    folder = os.environ.get("PREFSTAGE_CHAT_MODEL")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no chat model: see benchmarks/prepare_chat_model.py, set PREFSTAGE_CHAT_MODEL")
    return Path(folder)
