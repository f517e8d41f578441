"""Small inputs of other people's bug reports, each with neighbours of its kind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Audio, Dataset, Features, Image, Value

from prefstage.core.errors import DataError, InputError
from prefstage.data import (
    load_candidates,
    load_conversations,
    load_pairs,
    load_prompts,
    load_unpaired,
)
from tests.data.dataset_rows import GOOD, one_line, write_rows

CASES = Path(__file__).parent / "cases"
USER = [{"role": "user", "content": "Why?"}]
GOOD_TURN = [{"role": "assistant", "content": "Good."}]
BAD_TURN = [{"role": "assistant", "content": "Bad."}]


def chat(prompt: Any = USER, **changes: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": GOOD_TURN, "rejected": BAD_TURN, **changes}


def refusal(rows: Any, load: Callable[..., Any] = load_pairs) -> str:
    with pytest.raises(DataError) as caught:
        load(rows)
    return one_line(caught.value)


def text_of(value: Any) -> str:
    return json.dumps(value)


# --- Pictures and sounds -------------------------------------------------------------


def test_a_picture_beside_its_sign_in_the_text_is_refused() -> None:
    said = refusal(CASES / "images.jsonl")
    assert "8 bad of 8 rows: images.jsonl row 1, field 'images': saw <image> in the text" in said


@pytest.mark.parametrize(
    ("sign", "column"), [("<image>", "image"), ("<video>", "videos"), ("<audio>", "audio")]
)
def test_films_and_sounds_are_refused_likewise(sign: str, column: str) -> None:
    said = refusal([{**GOOD, "prompt": f"{sign} What?", column: {"path": "x"}}])
    assert f"field '{column}': saw {sign} in the text" in said


def test_a_picture_that_no_text_speaks_of_is_named_as_not_used() -> None:
    rows = [{**GOOD, "prompt": "<image> is a tag", "images": []}, {**GOOD, "images": ["a.png"]}]
    report = load_pairs(rows).report
    assert (report.rows_kept, report.unused_columns) == (2, ("images",))
    assert "columns not used: images" in report.notes


def test_parts_that_are_no_text_are_refused() -> None:
    said = refusal(CASES / "parts3.jsonl")
    assert "parts3.jsonl row 1, field 'prompt[0].content': saw a part of type 'image'" in said


@pytest.mark.parametrize(
    ("part", "seen"),
    [
        ({"type": "image_url", "image_url": {"url": "u"}}, "'image_url'"),
        ({"type": "input_audio", "input_audio": {"data": ""}}, "'input_audio'"),
        ({"type": "video", "text": None, "video": "v"}, "'video'"),
        ({"type": "tool_use", "name": "f"}, "'tool_use'"),
        ({"image": "x.png", "text": ""}, "list"),
    ],
)
def test_every_other_part_is_refused_by_its_type(part: dict[str, Any], seen: str) -> None:
    said = refusal([chat([{"role": "user", "content": [part, {"type": "text", "text": "q"}]}])])
    assert f"field 'prompt[0].content': saw {'a part of type ' if seen[0] == chr(39) else ''}" in (
        said
    )
    assert seen in said


def test_parts_of_text_are_their_text() -> None:
    parts = [{"type": "text", "text": "Wh"}, {"type": "input_text", "text": "y?", "image": None}]
    assert load_pairs([chat([{"role": "user", "content": parts}])])[0].prompt == tuple(USER)


@pytest.mark.parametrize("name", ["aud", "img"])
def test_an_unused_picture_or_sound_is_never_decoded(name: str) -> None:
    pairs = load_pairs(CASES / f"{name}.parquet")
    assert pairs[0].prompt[0]["content"] == "What is this?"
    assert pairs.report.unused_columns == ({"aud": "audio", "img": "image"}[name],)


@pytest.mark.parametrize("kind", [Audio(), Image()])
def test_pictures_and_sounds_that_cannot_be_opened_do_not_stop_loading(
    tmp_path: Path, kind: Any
) -> None:
    features = Features({**{name: Value("string") for name in GOOD}, "media": kind})
    (tmp_path / "broken").write_bytes(b"neither a picture nor a sound")
    path = {"bytes": None, "path": str(tmp_path / "broken")}
    table = pa.table({**{k: [v] for k, v in GOOD.items()}, "media": [path]}, features.arrow_schema)
    dataset = Dataset(table)
    assert dataset.features == features
    pq.write_table(table, tmp_path / "a.parquet")
    dataset.save_to_disk(tmp_path / "a")
    sources = (dataset, dataset.to_iterable_dataset(), tmp_path / "a.parquet", tmp_path / "a")
    for source in sources:
        pairs = load_pairs(source)
        assert pairs[0].chosen == tuple(GOOD_TURN)
        assert pairs.report.unused_columns == ("media",)
    assert len(list(load_pairs(dataset.to_iterable_dataset(), streaming=True))) == 1


# --- System turns --------------------------------------------------------------------


def test_a_system_prompt_is_the_system_turn() -> None:
    pairs = load_pairs(CASES / "sysprompt.jsonl")
    assert all(
        pair.prompt[0] == {"role": "system", "content": "Answer as a pirate."} for pair in pairs
    )
    assert "system turns read from system_prompt (8 rows)" in pairs.report.notes
    assert pairs.report.unused_columns == ()


@pytest.mark.parametrize("name", ["system_message", "sys_prompt"])
def test_other_spellings_and_loaders_know_system_prompts(name: str) -> None:
    system = {"role": "system", "content": "S"}
    assert load_pairs([chat(**{name: "S"})])[0].prompt == (system, *USER)
    assert load_prompts([{"prompt": "Why?", name: "S"}])[0].prompt == (system, *USER)
    answers = {"prompt": "Why?", "responses": ["A"], name: "S"}
    assert load_candidates([answers])[0].prompt == (system, *USER)
    talk = {"messages": [*USER, *GOOD_TURN], name: "S"}
    assert load_conversations([talk])[0].prompt == (system, *USER)
    labelled = {"prompt": "Why?", "completion": "A", "label": True, name: "S"}
    assert load_unpaired([labelled])[0].prompt == (system, *USER)


def test_two_system_prompts_that_differ_are_refused() -> None:
    said = refusal([{**GOOD, "system": "x", "system_prompt": "y"}])
    assert "field 'system_prompt': saw 'y' beside 'x' in system" in said
    same = load_pairs([{**GOOD, "system": "x", "system_prompt": "x", "sys_prompt": " "}])
    assert [turn["role"] for turn in same[0].prompt] == ["system", "user"]


def test_a_blank_system_turn_is_none() -> None:
    pairs = load_pairs(CASES / "sy.jsonl")
    assert [pair.prompt for pair in pairs] == [({"role": "user", "content": "q"},)] * 2
    assert "1 system turns without text left out" in pairs.report.notes


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("content", ["", " \n\t", None])
def test_blank_turns_in_messages_vanish_and_their_tools_move_on(role: str, content: Any) -> None:
    blank = {"role": role, "content": content, "tools": [{"name": "f"}]}
    for pairs in (
        load_pairs([chat([blank, *USER])]),
        load_pairs([{"chosen": [blank, *USER, *GOOD_TURN], "rejected": [blank, *USER, *BAD_TURN]}]),
    ):
        assert pairs[0].prompt == ({**USER[0], "tools": [{"name": "f"}]},)
        assert "1 system turns without text left out" in pairs.report.notes
    assert load_pairs([chat([{"role": "user", "content": "Why?"}])])[0].prompt == tuple(USER)


def test_a_blank_column_beside_a_system_turn_leaves_the_turn() -> None:
    turns = [{"role": "system", "content": "S"}, *USER]
    assert load_pairs([chat(turns, system_prompt="  ")])[0].prompt == tuple(turns)


# --- Text that a template has written ------------------------------------------------


def test_text_that_is_templated_already_is_said(caplog: pytest.LogCaptureFixture) -> None:
    report = load_pairs(CASES / "pretemplated.jsonl").report
    (note,) = (note for note in report.notes if "WARNING" in note)
    assert (
        "8 rows hold text that a chat template has written already (such as <|im_start|>)" in note
    )
    assert "give the messages, or the bare texts" in note
    assert note in str(report)
    assert note in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
        "<s>[INST] Hi [/INST]",
        "<start_of_turn>user\nHi<end_of_turn>",
        "<|turn>user\nHi<turn|>",
        "<|user|>\nHi</s>\n<|assistant|>",
        "<｜User｜>Hi<｜Assistant｜>",
        "<|start|>user<|message|>Hi<|end|>",
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi",
    ],
)
def test_the_marks_of_many_families_are_known_in_prompts_and_responses(text: str) -> None:
    for row in ({**GOOD, "prompt": text}, {**GOOD, "rejected": text}, chat(rejected=text)):
        assert any("WARNING: 1 rows hold" in note for note in load_pairs([row]).report.notes)
    listed = load_candidates([{"prompt": "q", "responses": ["a", text]}])
    assert any("WARNING: 1 rows hold" in note for note in listed.report.notes)


@pytest.mark.parametrize(
    "text", ["### Instruction:\nHi", "a <- b |> c", "List[INT]", "<s>struck</s>", "<b>user</b>"]
)
def test_other_text_is_not_taken_for_templated(text: str) -> None:
    assert load_pairs([{**GOOD, "chosen": text}]).report.notes == []


# --- Messages written as text --------------------------------------------------------


def test_messages_as_json_text_are_parsed() -> None:
    pairs = load_pairs(CASES / "jsonstr.jsonl")
    assert pairs[0].prompt == ({"role": "user", "content": "Hi apple"},)
    assert pairs[0].chosen == ({"role": "assistant", "content": "Hello"},)
    assert pairs.report.format == "trl-conversational"
    assert any(
        "parsed: prompt (8 rows), chosen (8 rows), rejected (8 rows)" in note
        for note in pairs.report.notes
    )


def test_json_text_is_parsed_by_every_loader_and_at_every_level(tmp_path: Path) -> None:
    talk = text_of([*USER, *GOOD_TURN])
    assert load_conversations([{"messages": talk}])[0].completion == tuple(GOOD_TURN)
    prompt = text_of(USER)
    assert load_prompts([{"prompt": prompt}])[0].prompt == tuple(USER)
    labelled = {"prompt": prompt, "completion": text_of(GOOD_TURN), "label": True}
    assert load_unpaired([labelled])[0].completion == tuple(GOOD_TURN)
    listed = {"prompt": prompt, "responses": [text_of(GOOD_TURN), text_of(BAD_TURN[0])]}
    assert load_candidates([listed])[0].responses == ("Good.", "Bad.")
    whole = {"chosen": talk, "rejected": text_of([*USER, *BAD_TURN])}
    assert load_pairs([whole])[0].prompt == tuple(USER)
    shared = {
        "conversations": text_of([{"from": "human", "value": "Why?"}]),
        "chosen": text_of({"from": "gpt", "value": "Good."}),
        "rejected": BAD_TURN[0],
    }
    assert load_pairs([shared])[0].chosen == tuple(GOOD_TURN)
    items = chat(
        [text_of(USER[0])], chosen=text_of(GOOD_TURN[0]), rejected=text_of(text_of(BAD_TURN))
    )
    assert load_pairs([items])[0] == load_pairs([chat()])[0]
    (tmp_path / "a.csv").write_text('prompt,chosen,rejected\nWhy?,"{""role"": ""assistant"", '
                                    '""content"": ""Good.""}",Bad.\n')  # fmt: skip
    assert load_pairs(tmp_path / "a.csv")[0].chosen == tuple(GOOD_TURN)


def test_tools_and_calls_as_text_are_parsed_but_arguments_stay() -> None:
    call = {"function": {"name": "f", "arguments": '{"x": 1}'}}
    asked = {"role": "assistant", "content": None, "tool_calls": text_of([call])}
    turns = [*USER, asked, {"role": "tool", "content": "1"}]
    tool = {"name": "f", "parameters": {"b": 1, "a": None}}
    for tools in (text_of([tool]), [text_of(tool)], [tool], text_of(tool)):
        prompt = load_pairs([chat(turns, tools=tools)])[0].prompt
        assert prompt[0]["tools"] == [tool]
        assert list(prompt[0]["tools"][0]["parameters"]) == ["b", "a"]
        assert prompt[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    for broken in ("{'name': 'f'}", "7"):
        assert "'tools'" in refusal([chat(tools=broken)])
    asked["tool_calls"] = "[{'function': 1}]"
    assert "field 'prompt[1].tool_calls'" in refusal([chat(turns)])
    other = [{**USER[0], "tools": [{"name": "g"}]}]
    assert "other tools in the first message" in refusal([chat(other, tools=[tool])])


@pytest.mark.parametrize("name", ["reprs.jsonl", "reprs.csv"])
def test_messages_as_python_text_are_refused(name: str) -> None:
    said = refusal(CASES / name)
    assert "8 bad of 8 rows" in said
    assert f"{name} row {2 if name.endswith('csv') else 1}, field 'prompt'" in said
    assert "messages written as text that is no JSON" in said
    assert "json.dumps(messages)" in said


@pytest.mark.parametrize(
    "text",
    [
        "[{'role': 'user', 'content': 'Hi'}\n {'role': 'assistant', 'content': None}]",
        "array([{'role': 'user', 'content': 'Hi'}], dtype=object)",
        "[{'content': \"It's\", 'role': 'user'}]",
        "({'from': 'human', 'value': 'Hi'},)",
        "{'role': 'user', 'content': 'Hi'}",
        "[{'role': 'assistant', 'content': '', 'tool_calls': [{'x': True}]}]",
        '[{"role": "user", "content": "Hi',
        '[{"role": "user", "content": "Hi" "name": "x"}]',
    ],
)
def test_every_other_spelling_is_refused_wherever_it_stands(text: str) -> None:
    for row in ({**GOOD, "prompt": text}, {**GOOD, "chosen": text}, chat(rejected=[text])):
        assert "messages written as text that is no JSON" in refusal([row])
    shared = {"conversations": text, "chosen": GOOD_TURN, "rejected": BAD_TURN}
    assert "field 'conversations'" in refusal([shared])
    assert "field 'messages'" in refusal([{"messages": text}], load_conversations)
    listed = {"prompt": "q", "responses": ["a", text]}
    assert "field 'responses[1]'" in refusal([listed], load_candidates)


@pytest.mark.parametrize(
    "text",
    [
        "[{ is how a list of objects begins",
        '[{"role": "user"} opens a conversation.',
        "[{'role': 'user', 'content': 'x'}] is a list in Python.",
        '[{"a": 1}]',
        '{"value": 3}',
        "{'value': 3, 'name': 'x'}",
        '{"role": "king", "name": "Lear"}',
        "[1, 2, 3]",
        '"quoted"',
    ],
)
def test_text_that_only_begins_so_stays_text(text: str) -> None:
    pairs = load_pairs([{**GOOD, "prompt": text, "chosen": text}])
    assert pairs[0].prompt[0]["content"] == pairs[0].chosen[0]["content"] == text


# --- Twice the same name, other separators -------------------------------------------


def test_a_key_twice_is_refused() -> None:
    assert "dupkey.jsonl row 1, field 'chosen': saw the key 'chosen' twice" in refusal(
        CASES / "dupkey.jsonl"
    )


def test_a_key_twice_is_refused_at_every_depth_and_in_lists(tmp_path: Path) -> None:
    good = text_of(chat())
    deep = good.replace('"content": "Good."', '"content": "Good.", "x": {"y": [{"z": 1, "z": 2}]}')
    (tmp_path / "a.jsonl").write_text(f"{good}\n{deep}\n")
    (tmp_path / "a.json").write_text(f"[{good},\n{deep}, {good}]")
    for name, of in (("a.jsonl", 2), ("a.json", 3)):
        said = refusal(tmp_path / name)
        assert f"1 bad of {of} rows: {name} row 2, field 'z': saw the key 'z' twice" in said
    aside = tmp_path / "bad.jsonl"
    kept = load_pairs(tmp_path / "a.json", on_bad_row="quarantine", quarantine_file=aside)
    assert (len(kept), len(aside.read_text().splitlines())) == (2, 1)
    inner = '[{"role": "user", "content": "a", "content": "b"}]'
    assert "field 'prompt': saw the key 'content' twice" in refusal([{**GOOD, "prompt": inner}])


def test_a_column_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,chosen,chosen,rejected\nq,a,c,b\n")
    table = pa.Table.from_arrays([pa.array(["x"])] * 4, ["prompt", "chosen", "chosen", "rejected"])
    pq.write_table(table, tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        assert f"{name}: the column 'chosen' twice" in refusal(tmp_path / name)


@pytest.mark.parametrize(("sign", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical")])
def test_other_separators_are_read_and_said(tmp_path: Path, sign: str, name: str) -> None:
    header = sign.join(("prompt", "chosen", "rejected"))
    (tmp_path / "a.csv").write_text(f"{header}\n{sign.join(('q, and more', 'a', 'b'))}\n")
    pairs = load_pairs(tmp_path / "a.csv")
    assert pairs[0].prompt[0]["content"] == "q, and more"
    assert any(f"separated by {name}" in note for note in pairs.report.notes)
    (tmp_path / "a.csv").write_text(f"{header}\nq{sign}a\n")
    assert f"quote texts that hold {name}" in refusal(tmp_path / "a.csv")


def test_the_case_with_semicolons_and_its_neighbours(tmp_path: Path) -> None:
    assert load_pairs(CASES / "semi.csv")[0].chosen[0]["content"] == "a"
    (tmp_path / "a.tsv").write_text("prompt\tchosen\trejected\nq\ta\tb\n")
    assert load_pairs(tmp_path / "a.tsv")[0].rejected[0]["content"] == "b"
    (tmp_path / "b.csv").write_text('"a;b;c;d",prompt,chosen,rejected\n1,q,a,b\n')
    assert load_pairs(tmp_path / "b.csv").report.unused_columns == ("a;b;c;d",)


# --- Lists of rows -------------------------------------------------------------------


def test_lists_of_rows_are_datasets() -> None:
    rows = [GOOD, {**GOOD, "prompt": "How?"}]
    assert [pair.prompt[0]["content"] for pair in load_pairs(rows)] == ["Why?", "How?"]
    assert len(list(load_pairs(rows, streaming=True))) == 2
    assert "list row 2, field '(row)': saw int 3" in refusal([GOOD, 3])
    assert "list row 2, field 'chosen'" in refusal([GOOD, {**GOOD, "chosen": ""}])
    assert "list without any row" in refusal([])


@pytest.mark.parametrize("source", [{"prompt": ["q"]}, 7, None, [1, 2], b"x", iter([GOOD])])
def test_what_holds_no_rows_is_refused(source: Any) -> None:
    with pytest.raises(InputError, match="or a list of rows"):
        load_pairs(source)


def test_nulls_in_tools_of_json_are_counted() -> None:
    tools = [{"name": "f", "parameters": {"a": {"type": "x"}, "b": None}}]
    report = load_pairs([chat(tools=tools), chat(tools=[{"name": "f"}])]).report
    assert any("1 rows hold nulls inside tools or tool calls" in note for note in report.notes)


def test_unused_columns_are_named_once_for_every_loader(tmp_path: Path) -> None:
    more = {"id": 1, "topic": "t"}
    path = write_rows(tmp_path / "a.jsonl", [{**GOOD, **more}, {**GOOD, "other": None}])
    assert load_pairs(path).report.unused_columns == ("id", "topic", "other")
    stream = load_pairs(path, streaming=True)
    assert len(list(stream)) == 2
    assert stream.report.notes == ["columns not used: id, topic, other"]
    assert load_unpaired(path).report.unused_columns == ("id", "topic", "other")
    listed = [{"prompt": "q", "responses": ["a"], **more}]
    assert load_candidates(listed).report.unused_columns == ("id", "topic")
    assert load_prompts([{"prompt": "q", **more}]).report.unused_columns == ("id", "topic")
    talk = [{"messages": [*USER, *GOOD_TURN], **more}]
    assert load_conversations(talk).report.unused_columns == ("id", "topic")
    named = load_pairs([{**GOOD, "q": "Who?"}], columns={"prompt": "q"})
    assert named.report.unused_columns == ("prompt",)
    assert "columns not used: id, topic, other" in str(load_pairs(path).report)
