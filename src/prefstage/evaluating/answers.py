"""One model's answers, each found by its prompt and never by its place in a file."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefstage.core.errors import DataError
from prefstage.core.files import write_json
from prefstage.data.records import Candidates, Prompt, prompt_id_of


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

    @property
    def mean_length(self) -> float:
        """Mean length of the answers in characters."""
        return sum(len(each.text) for each in self.by_prompt.values()) / max(1, len(self))


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
    found: dict[str, Answer] = {}
    repeated = 0
    for prompt, text in answers:
        answer = Answer(prompt_id_of(prompt), prompt, text)
        known = found.setdefault(answer.prompt_id, answer)
        if known is not answer:
            repeated += 1
            if known.text != text:
                raise DataError.of(
                    saw=f"two different answers of {name} to {instruction_of(prompt)[:60]!r}",
                    expected="one answer a prompt",
                    cure="keep one of them, or name the writer whose answers are meant",
                )
    if not found:
        raise DataError.of(
            saw=f"no answers of {name}", expected="at least one", cure="give a file with answers"
        )
    return Answers(name, found, repeated)


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
    if path.removesuffix(".gz").endswith((".json", ".jsonl")) and Path(path).is_file():
        rows = _alpaca_rows(Path(path))
        if rows is not None:
            return _alpaca_answers(Path(path), rows, writer or None, name)
    from prefstage.data import load_candidates

    rows_of_data: Iterable[Candidates] = load_candidates(path)
    chosen = [
        (row.prompt, text, source_name)
        for row in rows_of_data
        for text, source_name in zip(row.responses, row.sources, strict=True)
        if not writer or source_name == writer
    ]
    writers = {source_name for _, _, source_name in chosen if source_name}
    if len(writers) > 1:
        raise DataError.of(
            saw=f"{path} has answers of {', '.join(sorted(writers))}",
            expected="one writer",
            cure=f"write for example {path}#{min(writers)}",
        )
    if not chosen:
        raise DataError.of(
            saw=f"no answers{f' of {writer!r}' if writer else ''} in {path}",
            expected="answers",
            cure="name another file or writer",
        )
    called = name or writer or next(iter(writers), None) or Path(path).stem
    return gather_answers(called, ((prompt, text) for prompt, text, _ in chosen))


def write_model_outputs(path: Path, answers: Answers, *, dataset: str | None = None) -> None:
    """Write AlpacaEval's ``model_outputs.json``: instruction, output, generator.

    Args:
        path: The file.
        answers: A model's answers.
        dataset: Name for the `dataset` field, where one is wanted.
    """
    extra = {} if dataset is None else {"dataset": dataset}
    rows = [
        extra
        | {
            "instruction": instruction_of(each.prompt),
            "output": each.text,
            "generator": answers.name,
        }
        for each in answers.by_prompt.values()
    ]
    write_json(path, rows)


def _alpaca_rows(path: Path) -> list[dict[str, Any]] | None:
    """The rows of an AlpacaEval outputs file; None if it is something else."""
    from prefstage.data.raw_rows import read_file

    rows: list[dict[str, Any]] = []
    try:
        for row in read_file(path, path.name):
            if row.fault or not (rows or {"instruction", "output"} <= set(row.values)):
                return None
            rows.append(row.values)
    except DataError:
        return None
    return None if any(row.get("input") for row in rows) else rows or None


def _alpaca_answers(
    path: Path, rows: list[dict[str, Any]], writer: str | None, name: str | None
) -> Answers:
    answers: list[tuple[Prompt, str]] = []
    writers = set()
    for place, row in enumerate(rows):
        instruction, output = row.get("instruction"), row.get("output")
        if not isinstance(instruction, str) or not isinstance(output, str):
            raise DataError.of(
                saw=f"{path} row {place} without text in `instruction` or `output`",
                expected="both as text in every row",
                cure="repair or drop the row",
            )
        generator = row.get("generator", row.get("model"))
        if writer is None or generator == writer:
            writers.add(generator)
            answers.append((user_prompt(instruction), output))
    if len(writers) > 1:
        raise DataError.of(
            saw=f"{path} has answers of {', '.join(sorted(map(str, writers)))}",
            expected="one generator",
            cure=f"write for example {path}#{min(map(str, writers))}",
        )
    called = name or writer or next(iter(writers), None) or path.stem
    return gather_answers(str(called), answers)
