"""What every record passes after its format has read it, whatever the format."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefstage.data.annotators import read_annotator
from prefstage.data.faults import RowFault
from prefstage.data.messages import SYSTEM_ROLES
from prefstage.data.observations import Observations, SourceRow
from prefstage.data.records import Candidates, Message, Pair, Prompt, Record, prompt_id_of
from prefstage.data.templated import template_mark

_OFTEN_EMPTY = ("annotator", "votes", "generations")
_MEDIA = {
    "<image>": ("images", "image", "img", "image_path", "image_paths", "pixel_values"),
    "<video>": ("videos", "video", "video_path"),
    "<audio>": ("audios", "audio", "audio_path"),
}


def finish_record(
    record: Record, row: SourceRow, observations: Observations, *, with_annotators: bool
) -> Record:
    """Apply the rules that hold for all formats, and note what they changed.

    Args:
        record: As its format read it.
        row: The row that it was read from.
        observations: The account of the pass.
        with_annotators: Whether the record will be used as a labelled pair.

    Returns:
        The record without blank system turns, and with its annotator where the row has one.

    Raises:
        RowFault: If a picture, sound or film belongs to the text, or an annotator is no name.
    """
    record = _without_blank_systems(record, observations)
    _check_media(record, row)
    observations.nulls += any(map(_has_null, _structured(record)))
    mark = template_mark(_all_messages(record))
    if mark is not None:
        observations.templated[mark] += 1
    if with_annotators and isinstance(record, Pair) and not record.votes:
        annotator = read_annotator(row)
        if annotator is not None:
            record = replace(record, annotator=annotator)
            if len(observations.annotators) <= 1:
                observations.annotators.add(annotator)
    _use_canonical(row, record, observations)
    return record


def _use_canonical(row: SourceRow, record: Record, observations: Observations) -> None:
    """Columns of our own files of which nothing is lost: ids made again, votes of nobody."""
    if row.peek("prompt_id") == record.prompt_id:
        observations.used.add("prompt_id")
    observations.used.update(name for name in _OFTEN_EMPTY if not row.peek(name))


def _without_blank_systems(record: Record, observations: Observations) -> Record:
    """A system turn without text says nothing, but would be rendered; its tools move on."""
    kept = [message for message in record.prompt if not _is_blank_system(message)]
    blank = len(record.prompt) - len(kept)
    if not blank:
        return record
    observations.blank_systems += blank
    tools: Any = next((m["tools"] for m in record.prompt if m.get("tools") is not None), None)
    if tools is not None and kept and "tools" not in kept[0]:
        kept[0] = {**kept[0], "tools": tools}
    return replace(record, prompt=tuple(kept), prompt_id=prompt_id_of(kept))


def _is_blank_system(message: Message) -> bool:
    return message["role"] in SYSTEM_ROLES and not message["content"].strip()


def _check_media(record: Record, row: SourceRow) -> None:
    """Refuse text that speaks of a picture which the row holds and nobody would see."""
    for sign, columns in _MEDIA.items():
        column = next((name for name in columns if _is_filled(row.peek(name))), None)
        if column is None:
            continue
        if any(sign in message["content"] for message in _all_messages(record)):
            raise RowFault(
                column,
                saw=f"{sign} in the text, and what belongs there",
                expected="text alone",
                cure="remove the rows with pictures, sounds or films: only text is supported",
            )


def _is_filled(value: Any) -> bool:
    if isinstance(value, str | Sequence):
        return any(item is not None for item in value)
    return value is not None


def _structured(record: Record) -> Iterator[Any]:
    """What templates render of messages beside their texts."""
    for message in _all_messages(record):
        yield from (message[name] for name in ("tools", "tool_calls") if name in message)


def _has_null(value: Any) -> bool:
    """Whether an object somewhere inside a value has a null for a field."""
    if isinstance(value, Mapping):
        return any(item is None or _has_null(item) for item in value.values())
    return isinstance(value, list | tuple) and any(map(_has_null, value))


def _all_messages(record: Record) -> Iterator[Message]:
    yield from record.prompt
    if isinstance(record, Candidates):
        yield from ({"role": "assistant", "content": text} for text in record.responses)
    parts: Iterable[Prompt] = (
        getattr(record, name, ()) for name in ("chosen", "rejected", "completion")
    )
    for part in parts:
        yield from part
