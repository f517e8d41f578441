"""One model's answers, known by their prompts and never by their position in a file."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefstage.core import DataError, Ledger, progress, write_json
from prefstage.data.records import Candidates, Prompt, prompt_id_of
from prefstage.sampling import Sample, Sampler, collect, requests_for
from prefstage.sampling.base import cut_thoughts

_log = logging.getLogger(__name__)


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
    """

    name: str
    by_prompt: Mapping[str, Answer]
    repeated: int = 0

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
            cure="keep one of them, or name the writer whose answers are meant",
        )
    DataError.unless(
        by_prompt,
        saw=f"no answers of {name}",
        expected="at least one",
        cure="give a file with answers",
    )
    return Answers(name, by_prompt, len(rows) - len(by_prompt))


def load_answers(source: "str | Path | Answers", *, name: str | None = None) -> Answers:
    """Load one model's answers.

    Args:
        source: AlpacaEval's ``model_outputs.json``, or its rows as JSON lines, empty answers
            included; or any file, folder or Hub id that `load_candidates` reads.
            ``PATH#WRITER`` takes the answers of one of several writers.
        name: What to call the model; None: as the file says, or the file's name.

    Returns:
        The answers by prompt.

    Raises:
        DataError: If a prompt has several answers, or the file cannot be read as answers.
    """
    if isinstance(source, Answers):
        return source
    path, _, writer = str(source).partition("#")
    rows = _alpaca_rows(Path(path))
    if rows is None:
        from prefstage.data import load_candidates

        rows = [
            (row.prompt, text, written_by)
            for row in load_candidates(path)
            for text, written_by in zip(row.responses, row.sources, strict=True)
        ]
    chosen = [row for row in rows if not writer or row[2] == writer]
    writers = sorted({str(written_by) for _, _, written_by in chosen if written_by})
    if len(writers) > 1:
        raise DataError.of(
            saw=f"{path} has answers of {', '.join(writers)}",
            expected="one writer",
            cure=f"write for example {path}#{writers[0]}",
        )
    DataError.unless(
        chosen,
        saw=f"no answers{f' of {writer!r}' if writer else ''} in {path}",
        expected="answers",
        cure="name another file or writer",
    )
    return gather_answers(
        name or writer or next(iter(writers), None) or Path(path).stem,
        ((prompt, text) for prompt, text, _ in chosen),
    )


def answer_prompts(sampler: Sampler, prompts: Sequence[Prompt], ledger: Ledger) -> Answers:
    """Let a policy answer each prompt once.

    Args:
        sampler: Who answers.
        prompts: What is asked; equal prompts once.
        ledger: Where each answer goes as it arrives; a repeated call asks only for what
            is not there.

    Returns:
        One answer a prompt, without what was thought before it, empty ones included: a policy
        that says nothing (or was cut in its thought, which is logged) loses there.
    """
    asked = {prompt_id_of(prompt): prompt for prompt in prompts}
    rows = [Candidates(key, prompt, (), (), ()) for key, prompt in asked.items()]
    requests, samples = requests_for(rows, responses=1), dict[str, Sample]()
    with progress(f"answers of {sampler.name}", len(rows)) as tick:
        for sample in collect(sampler, requests, ledger, key=sampler.fingerprint):
            samples[sample.prompt_id] = sample
            tick()
    for line in cut_thoughts(samples.values()):
        _log.warning("%s: %s", sampler.name, line)
    return gather_answers(sampler.name, [(p, samples[key].text) for key, p in asked.items()])


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
