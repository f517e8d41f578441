"""Answers and verdicts on them, and AlpacaEval's files of both.

One model's answers are known by their prompts and never by their position in a file.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefstage.core import (
    DataError,
    InputError,
    Ledger,
    progress,
    read_json,
    write_json,
)
from prefstage.data.records import Candidates, Prompt, prompt_id_of
from prefstage.judging.judged import comparison_of
from prefstage.measuring.rates import cached_file
from prefstage.measuring.responses import drawn_one
from prefstage.sampling import Sample, Sampler, collect, requests_for
from prefstage.sampling.base import shortfalls

_log = logging.getLogger(__name__)

CHOSEN, RANDOM = "chosen", "random"
_SIDES = (CHOSEN, "rejected")
_TEXTS = ("instruction", "output_1", "generator_1", "output_2", "generator_2")


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        prompt_id: Names the prompt's content.
        prompt: Messages up to and with the last user turn.
        text: The answer; may be empty, which a judge may well punish.
    """

    prompt_id: str
    prompt: Prompt
    text: str


@dataclass(frozen=True)
class Answers:
    """A model's answers, one a prompt.

    Attributes:
        name: The model's.
        by_prompt: prompt_id → answer, in the file's order.
        repeated: Rows that repeated a prompt with the same answer and were dropped.
        left_aside: Other answers to these prompts, of which one was drawn.
    """

    name: str
    by_prompt: Mapping[str, Answer]
    repeated: int = 0
    left_aside: int = 0

    def __len__(self) -> int:
        """Number of prompts answered."""
        return len(self.by_prompt)


def user_prompt(instruction: str) -> Prompt:
    """An instruction as a prompt of one user turn, as AlpacaEval poses it."""
    return ({"role": "user", "content": instruction},)


def instruction_of(prompt: Prompt) -> str:
    """A prompt as one text: of a single user turn its content alone."""
    if len(prompt) == 1:
        return str(prompt[0].get("content", ""))
    return "\n\n".join(f"{turn.get('role')}: {turn.get('content', '')}" for turn in prompt)


def gather_answers(name: str, answers: Iterable[tuple[Prompt, str]]) -> Answers:
    """Put answers under their prompts.

    Args:
        name: The model's.
        answers: (prompt, text) of each.

    Returns:
        The answers by prompt.

    Raises:
        DataError: If a prompt has two different answers, or there are none.
    """
    rows = [Answer(prompt_id_of(prompt), prompt, text) for prompt, text in answers]
    by_prompt: dict[str, Answer] = {}
    for row in rows:
        DataError.unless(
            by_prompt.setdefault(row.prompt_id, row).text == row.text,
            saw=f"two different answers of {name} to {instruction_of(row.prompt)[:60]!r}",
            expected="one answer a prompt",
            cure="keep one of them, name the writer whose answers are meant (FILE#WRITER), or "
            f"have one drawn (FILE#{RANDOM}; of pairs FILE#{CHOSEN})",
        )
    DataError.unless(
        by_prompt,
        saw=f"no answers of {name}",
        expected="at least one",
        cure="give a file with answers",
    )
    return Answers(name, by_prompt, len(rows) - len(by_prompt))


def load_answers(
    source: "str | Path | Answers", *, name: str | None = None, seed: int = 0
) -> Answers:
    """Load one model's answers, or one answer a prompt of a data set.

    Args:
        source: AlpacaEval's ``model_outputs.json``, or its rows as JSON lines, empty answers
            included; or any file, folder or Hub id that `load_candidates` reads.
            ``PATH#WRITER`` takes the answers of one of several writers; ``PATH#chosen`` and
            ``PATH#rejected`` that side of pairs; ``PATH#random`` one answer of several to a
            prompt, by the seed. Of a prompt with several pairs one is drawn.
        name: What to call the model; None: as the file says, or the file's name.
        seed: Of what is drawn.

    Returns:
        The answers by prompt.

    Raises:
        DataError: If a prompt has several answers, or the file cannot be read as answers.

    Source:
        A random answer of one set against the chosen answer of another: Sun et al. 2025,
        arXiv:2508.10530, App. B.5.
    """
    if isinstance(source, Answers):
        return source
    path, _, part = str(source).partition("#")
    if part in _SIDES:
        return _side_of_pairs(path, part, name, seed)
    rows = _alpaca_rows(Path(path))
    if rows is None:
        from prefstage.data import load_candidates

        rows = [
            (row.prompt, text, written_by)
            for row in load_candidates(path)
            for text, written_by in zip(row.responses, row.sources, strict=True)
        ]
    if part == RANDOM and not any(row[2] == part for row in rows):
        DataError.unless(
            rows, saw=f"no answers in {path}", expected="answers", cure="name another file"
        )
        return _drawn(name or f"{Path(path).stem}#{part}", [row[:2] for row in rows], seed)
    chosen = [row for row in rows if not part or row[2] == part]
    writers = sorted({str(written_by) for _, _, written_by in chosen if written_by})
    DataError.unless(
        len(writers) <= 1,
        saw=f"{path} has answers of {', '.join(writers)}",
        expected="one writer",
        cure=f"write for example {path}#{next(iter(writers), 'WRITER')}, or {path}#{RANDOM} for "
        "one of them by chance",
    )
    DataError.unless(
        chosen,
        saw=f"no answers{f' of {part!r}' if part else ''} in {path}",
        expected="answers",
        cure="name another file or writer",
    )
    return gather_answers(
        name or part or next(iter(writers), None) or Path(path).stem,
        ((prompt, text) for prompt, text, _ in chosen),
    )


# One side of pairs, one pair a prompt.
def _side_of_pairs(path: str, side: str, name: str | None, seed: int) -> Answers:
    from prefstage.data import load_pairs

    DataError.unless(
        pairs := [
            comparison_of(pair) for pair in load_pairs(path) if pair.chosen and pair.rejected
        ],
        saw=f"no pair in {path}",
        expected="pairs, of which one side is taken",
        cure="name another file",
    )
    sides = [(pair.prompt, pair.a if side == CHOSEN else pair.b) for pair in pairs]
    return _drawn(name or f"{Path(path).stem}#{side}", sides, seed)


# One answer a prompt, by the seed, whatever the order of the file's prompts.
def _drawn(name: str, rows: Iterable[tuple[Prompt, str]], seed: int) -> Answers:
    several: dict[str, list[Answer]] = {}
    for prompt, text in rows:
        answer = Answer(prompt_id_of(prompt), prompt, text)
        several.setdefault(answer.prompt_id, []).append(answer)
    return Answers(
        name,
        {key: drawn_one(options, key, seed=seed) for key, options in several.items()},
        left_aside=sum(map(len, several.values())) - len(several),
    )


def answer_prompts(
    sampler: Sampler, prompts: Sequence[Prompt], ledger: Ledger, *, alone: bool = False
) -> Answers:
    """Let a policy answer each prompt once.

    Args:
        sampler: Who answers.
        prompts: What is asked; equal prompts once.
        ledger: Where each answer goes as it arrives; a repeated call asks only for what
            is not there.
        alone: Refuse a ledger that holds another policy's answers.

    Returns:
        One answer a prompt, without what was thought before it, empty ones included: a policy
        that says nothing (or was cut in its thought, which is logged) loses there. Prompts that a
        server refused are missing, and logged.
    """
    asked = {prompt_id_of(prompt): prompt for prompt in prompts}
    rows = [Candidates(key, prompt, (), (), ()) for key, prompt in asked.items()]
    requests, samples = requests_for(rows, responses=1), dict[str, Sample]()
    with progress(f"answers of {sampler.name}", len(rows)) as tick:
        key = None if alone else sampler.fingerprint
        for sample in collect(sampler, requests, ledger, key=key):
            samples[sample.prompt_id] = sample
            tick()
    for line in shortfalls(list(samples.values())):
        _log.warning("%s: %s", sampler.name, line)
    return gather_answers(
        sampler.name,
        [(p, samples[key].text) for key, p in asked.items() if not samples[key].refusal],
    )


def write_model_outputs(path: Path, answers: Answers, *, dataset: str | None = None) -> None:
    """Write AlpacaEval's ``model_outputs.json``: instruction, output, generator.

    Args:
        path: The file.
        answers: A model's answers.
        dataset: Name for the `dataset` field, where one is wanted.
    """
    write_json(
        path,
        [
            {
                **({} if dataset is None else {"dataset": dataset}),
                "instruction": instruction_of(answer.prompt),
                "output": answer.text,
                "generator": answers.name,
            }
            for answer in answers.by_prompt.values()
        ],
    )


# (prompt, output, generator) of AlpacaEval's outputs; None if the file is something else.
def _alpaca_rows(path: Path) -> list[tuple[Prompt, str, Any]] | None:
    from prefstage.data.raw_rows import read_file

    if not (path.name.removesuffix(".gz").endswith((".json", ".jsonl")) and path.is_file()):
        return None
    rows: list[dict[str, Any]] = []
    try:
        for row in read_file(path, path.name):
            # The first row decides: what has no instruction and output there is another format,
            # and a fault in a later row of this format is told below, by its number.
            if row.fault or not (rows or {"instruction", "output"} <= set(row.values)):
                return None
            rows.append(row.values)
    except DataError:
        return None
    if not rows or any(row.get("input") for row in rows):
        return None
    for number, values in enumerate(rows):
        DataError.unless(
            all(isinstance(values.get(field), str) for field in ("instruction", "output")),
            saw=f"{path} row {number} without text in `instruction` or `output`",
            expected="both as text in every row",
            cure="repair or drop the row",
        )
    return [
        (user_prompt(row["instruction"]), row["output"], row.get("generator", row.get("model")))
        for row in rows
    ]


# --- Verdicts -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Annotation:
    """One judged row, the baseline's answer first.

    Attributes:
        instruction: The prompt.
        output_1: The baseline's answer.
        output_2: The model's.
        generator_1: The baseline's name.
        generator_2: The model's.
        annotator: The judge's.
        preference: For the model, in [0, 1]; NaN where the judge gave none.
        error_share: Of the chance to miss, what an interval over all rows may use: less than 1
            where judging might have stopped early. AlpacaEval has no such field.
        prompt_id: Names the prompt's content; empty where the file has its text alone.
    """

    instruction: str
    output_1: str
    output_2: str
    generator_1: str
    generator_2: str
    annotator: str
    preference: float
    error_share: float = 1.0
    prompt_id: str = ""


def read_annotations(path: Path) -> list[Annotation]:
    """Read AlpacaEval's ``annotations.json``, in the file's order (the published row).

    Args:
        path: The file; its preferences are 1 (baseline) to 2 (model), 0 a draw, null none.

    Returns:
        The rows, with preferences in [0, 1].

    Raises:
        DataError: If the file is no list of annotations, a preference is out of range, or an
            instruction stands twice.
    """
    expected, cure = "a JSON list of annotations", "check the file"
    with DataError.instead_of(OSError, saw=f"{path}: {{error}}", expected=expected, cure=cure):
        rows = read_json(path, list, expected=expected, cure=cure)
    DataError.unless(
        rows,
        saw=f"{path} holds no row",
        expected="annotations",
        cure="check the file",
    )
    annotations = [_annotation(f"{path} row {number}", row) for number, row in enumerate(rows)]
    numbers: dict[str, int] = {}
    for number, row in enumerate(annotations):
        first = numbers.setdefault(row.instruction, number)
        DataError.unless(
            first == number,
            saw=f"{path} rows {first} and {number} have the same instruction",
            expected="each instruction once",
            cure="keep one of them",
        )
    return annotations


def write_annotations(path: Path, rows: Sequence[Annotation]) -> None:
    """Write ``annotations.json`` as AlpacaEval does.

    Args:
        path: The file.
        rows: What to write; NaN becomes null, ½ becomes 1.5.
    """
    write_json(
        path,
        [
            {
                **{name: getattr(row, name) for name in _TEXTS},
                "annotator": row.annotator,
                "preference": row.preference + 1,
                **({} if row.error_share == 1 else {"error_share": row.error_share}),
            }
            for row in rows
        ],
    )


def read_prompt_numbers(path: Path | None = None) -> dict[str, int] | None:
    """Number AlpacaEval's instructions in the official order.

    Args:
        path: The official ``alpaca_eval.json`` or any ``model_outputs.json`` in its order;
            None looks into the local Hub cache.

    Returns:
        instruction → number; None where the cache does not have the file.

    Raises:
        DataError: If the file is no list of rows with `instruction`, or one stands twice.
    """
    path = path or cached_file("alpaca_eval.json")
    if path is None:
        return None
    try:
        rows = read_json(path, list)
        numbers = {row["instruction"]: number for number, row in enumerate(rows)}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError.of(
            saw=f"{path}: {type(error).__name__} {error}",
            expected="a JSON list of rows with `instruction`, in AlpacaEval's order",
            cure="give the official alpaca_eval.json",
        ) from None
    DataError.unless(
        len(numbers) == len(rows),
        saw=f"{path} repeats {len(rows) - len(numbers)} instructions",
        expected="each once",
        cure="give the official alpaca_eval.json",
    )
    return numbers


def _annotation(where: str, row: Any) -> Annotation:
    DataError.unless(
        isinstance(row, dict) and all(isinstance(row.get(name), str) for name in _TEXTS),
        saw=f"{where} lacks text in one of {', '.join(_TEXTS)}",
        expected="all of them",
        cure="repair or drop the row",
    )
    raw, share = row.get("preference"), row.get("error_share", 1.0)
    try:
        value = math.nan if raw is None else float(raw)
    except (TypeError, ValueError):
        value = math.inf
    value = 1.5 if value == 0 else value  # a draw, in AlpacaEval's files
    InputError.unless(
        math.isnan(value) or 1 <= value <= 2,  # noqa: PLR2004 - baseline to model
        saw=f"{where}: preference {raw!r}",
        expected="1 (baseline) to 2 (model), 0 for a draw, or null",
        cure="repair or drop the row",
    )
    InputError.unless(
        isinstance(share, int | float) and 0 < share <= 1,
        saw=f"{where}: error_share {share!r}",
        expected="a number in (0, 1]",
        cure="leave it as prefstage wrote it, or drop the field",
    )
    return Annotation(
        **{name: row[name] for name in _TEXTS},
        annotator=str(row.get("annotator", "")),
        preference=value - 1,
        error_share=float(share),
    )
