"""How many files a reader walks through to follow one call: files, functions and depth.

    python benchmarks/walk.py            # the table
    python benchmarks/walk.py --list     # with the files of each walk
    python benchmarks/walk.py --check    # exit 1 if a walk is longer than wanted

Counted are the functions of `src/prefstage` that run, by `sys.setprofile`: what an import runs
(module and class bodies, decorators) is no part of a call and is left out, and so are
comprehensions and generator expressions, which a reader sees where they stand. The depth is the
largest number of such functions that are under way at once in one thread.
"""

import argparse
import importlib
import inspect
import json
import pkgutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import prefstage

SOURCE = str(Path(prefstage.__file__).parent) + "/"
# What importing another module of ours needs, such as vLLM, may not be installed.
OPTIONAL = (ImportError, OSError)


@dataclass
class Walk:
    """The functions of the library that ran.

    Attributes:
        code: Of each function that ran.
        depth: Most functions under way at once.
    """

    code: set[CodeType] = field(default_factory=set)
    depth: int = 0

    @property
    def files(self) -> Counter[str]:
        """Functions that ran by file."""
        return Counter(code.co_filename.removeprefix(SOURCE) for code in self.code)


@contextmanager
def followed() -> Iterator[Walk]:
    """Count what runs inside the block, in every thread that starts there."""
    walk = Walk()
    under_way = threading.local()

    def count(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        # Bodies of modules and classes run with names instead of fast locals.
        if not code.co_flags & inspect.CO_OPTIMIZED or code.co_name.startswith("<"):
            return
        if event not in ("call", "return") or not code.co_filename.startswith(SOURCE):
            return
        depth = getattr(under_way, "depth", 0) + (1 if event == "call" else -1)
        under_way.depth = max(depth, 0)
        walk.depth = max(walk.depth, depth)
        walk.code.add(code)

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        yield walk
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type] # typeshed does not know the reset


def import_everything() -> None:
    """Import each module beforehand, so that no decorator or registration counts as a step."""
    for module in pkgutil.walk_packages(prefstage.__path__, "prefstage."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except OPTIONAL as error:
            print(f"not imported: {module.name} ({error})", file=sys.stderr)


def measure(folder: Path) -> tuple[Walk, Walk]:
    """`measure_stage` of answers that exist, by a table of judgments; and the command."""
    from typer.testing import CliRunner

    from prefstage.cli.main import app
    from prefstage.data import Pair, PairSet, prompt_id_of
    from prefstage.measuring import measure_stage

    prompts = [f"Question {number}?" for number in range(8)]
    off, on, table = (folder / name for name in ("off.jsonl", "on.jsonl", "table.jsonl"))

    def pair(text: str) -> Pair:
        prompt, good, bad = (
            ({"role": role, "content": content},)
            for role, content in (("user", text), ("assistant", "Yes."), ("assistant", "No."))
        )
        return Pair(prompt_id_of(prompt), prompt, good, bad)

    PairSet.of(map(pair, prompts)).save(off)
    rows = [{"prompt": text, "responses": ["Maybe.", "Perhaps."]} for text in prompts]
    on.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    answers = ["Maybe.", "Perhaps.", "Yes.", "No."]
    scored = [
        {"prompt": text, "responses": answers, "scores": [1.0, 4.0, 3.0, 2.0]} for text in prompts
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in scored), encoding="utf-8")
    with followed() as library:
        measure_stage(off, on_policy=on, judge=f"table:{table}?scores=reward", out=folder / "stage")
    command = [
        "measure",
        "--off-policy",
        str(off),
        "--on-policy",
        str(on),
        "--judge",
        f"table:{table}?scores=reward",
    ]
    with followed() as walk:
        ran = CliRunner().invoke(app, [*command, "--out", str(folder / "run"), "--json"])
    if ran.exit_code:
        raise SystemExit(f"measure: {ran.output}")
    return library, walk


def training(folder: Path) -> tuple[Walk, Walk]:
    """The trainer's constructor, and one optimizer step of two pairs."""
    from prefstage.data import Pair, PairSet, prompt_id_of
    from prefstage.training import PreferenceArguments, PreferenceTrainer

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.tiny_models import tiny_llama, tiny_tokenizer

    def pair(text: str) -> Pair:
        prompt = ({"role": "user", "content": text},)
        chosen, rejected = (
            ({"role": "assistant", "content": answer},) for answer in ("the fox ran", "once")
        )
        return Pair(prompt_id_of(prompt), prompt, chosen, rejected)

    tokenizer = tiny_tokenizer("chatml")
    settings: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    model = tiny_llama(tokenizer, seed=0, **settings)
    pairs = PairSet.of(map(pair, ("the quick fox", "a tall moon")))
    arguments = PreferenceArguments(
        output_dir=str(folder / "trained"),
        per_device_train_batch_size=2,
        max_steps=2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    with followed() as constructed:
        trainer = PreferenceTrainer(
            model, arguments, train_dataset=pairs, processing_class=tokenizer
        )
    steps: list[Walk] = []
    step: Callable[..., Any] = trainer.training_step

    def followed_step(*args: Any, **kwargs: Any) -> Any:
        with followed() as walk:
            value = step(*args, **kwargs)
        steps.append(walk)
        return value

    trainer.training_step = followed_step
    trainer.train()
    return constructed, steps[0]


def main() -> None:
    """Follow the three walks and print them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--list", action="store_true", help="name the files of each walk")
    parser.add_argument("--check", action="store_true", help="exit 1 if a walk is too long")
    asked = parser.parse_args()
    import_everything()
    with tempfile.TemporaryDirectory() as name:
        measured, commanded = measure(Path(name))
        constructed, step = training(Path(name))
    walks = {
        "measure without a model": (measured, 35),
        "the same by the command": (commanded, None),
        "the trainer's constructor": (constructed, 28),
        "one training step of two pairs": (step, 20),
    }
    print(f"{'walk':<32}{'files':>7}{'wanted':>8}{'functions':>11}{'depth':>7}")
    for title, (walk, wanted) in walks.items():
        files = walk.files
        print(f"{title:<32}{len(files):>7}{wanted or '-':>8}{files.total():>11}{walk.depth:>7}")
    if asked.list:
        for title, (walk, _) in walks.items():
            print(f"\n{title}")
            for file, functions in sorted(walk.files.items()):
                print(f"  {functions:>4}  {file}")
    if asked.check and any(wanted and len(walk.files) > wanted for walk, wanted in walks.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
