import json
import shutil
from pathlib import Path

import pytest

from prefstage.core.errors import CheckpointError
from prefstage.training.checkpoints import (
    MANIFEST,
    STAGING,
    checkpoints_in,
    discard,
    finish_checkpoint,
    newest_whole,
    recover,
    rotate_checkpoints,
    verify_checkpoint,
)

SETTINGS = {"seed": 0, "model": {"hidden_size": 16}}


def staged_folder(folder: Path, step: int) -> Path:
    return folder / STAGING / f"checkpoint-{step}"


def stage(folder: Path, step: int, content: bytes = b"weights") -> Path:
    staged = staged_folder(folder, step)
    (staged / "inner").mkdir(parents=True)
    (staged / "model.bin").write_bytes(content)
    (staged / "inner" / "shard_0.bin").write_bytes(content[::-1])
    return staged


def save(folder: Path, step: int, content: bytes = b"weights") -> Path:
    staged = stage(folder, step, content)
    return finish_checkpoint(staged, settings=SETTINGS, versions={"torch": "2"})


def test_a_checkpoint_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    staged = stage(tmp_path, 3)
    assert checkpoints_in(tmp_path) == []
    assert newest_whole(tmp_path) is None
    final = finish_checkpoint(staged, settings=SETTINGS, processes=2)
    assert final == tmp_path / "checkpoint-3"
    assert not staged.parent.exists()
    record = verify_checkpoint(final)
    assert record["settings"] == SETTINGS
    assert (record["step"], record["processes"]) == (3, 2)
    assert set(record["files"]) == {"model.bin", "inner/shard_0.bin"}


def test_the_newest_is_by_step_and_whole(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        save(tmp_path, step)
    (tmp_path / "checkpoint-30").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    stage(tmp_path, 40)
    assert [each.name for each in checkpoints_in(tmp_path)][-1] == "checkpoint-30"
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-10"


def damage(checkpoint: Path, how: str) -> None:
    file = checkpoint / "model.bin"
    if how == "bit":
        data = bytearray(file.read_bytes())
        data[3] ^= 1
        file.write_bytes(bytes(data))
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-2])
    elif how == "gone":
        (checkpoint / "inner" / "shard_0.bin").unlink()
    elif how == "manifest":
        path = checkpoint / MANIFEST
        path.write_text(path.read_text().replace('"step": 2', '"step": 3'))
    elif how == "torn":
        path = checkpoint / MANIFEST
        path.write_text(path.read_text()[:40])
    else:
        (checkpoint / MANIFEST).unlink()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("bit", "content of model.bin has changed"),
        ("cut", "model.bin has 5 bytes instead of 7"),
        ("gone", "inner/shard_0.bin is missing"),
        ("manifest", f"{MANIFEST} has changed"),
        ("torn", f"{MANIFEST} has changed"),
        ("none", f"has no {MANIFEST}"),
    ],
)
def test_damage_is_found_and_the_cure_named(tmp_path: Path, how: str, said: str) -> None:
    save(tmp_path, 1)
    checkpoint = save(tmp_path, 2)
    damage(checkpoint, how)
    with pytest.raises(CheckpointError) as caught:
        verify_checkpoint(checkpoint)
    line = str(caught.value)
    assert said in line
    assert "checkpoint-2" in line
    assert "\n" not in line
    assert "go on from" in line
    if how != "none":
        assert "checkpoint-1" in line


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        verify_checkpoint(tmp_path / "checkpoint-8")


def test_a_half_written_one_is_deleted_and_said(tmp_path, caplog) -> None:
    save(tmp_path, 1)
    stage(tmp_path, 2)
    recover(tmp_path)
    assert "checkpoint-2: half-written" in caplog.text
    assert sorted(each.name for each in tmp_path.iterdir()) == ["checkpoint-1"]
    caplog.clear()
    recover(tmp_path)
    assert "half-written" not in caplog.text


def test_a_kill_between_the_renames_loses_neither_the_old_one_nor_the_new(tmp_path, caplog) -> None:
    save(tmp_path, 1, b"old")
    stage(tmp_path, 1, b"new")
    finished = tmp_path / "elsewhere"
    shutil.copytree(staged_folder(tmp_path, 1), staged_folder(finished, 1))
    whole = finish_checkpoint(staged_folder(finished, 1), settings=SETTINGS)
    shutil.copy(whole / MANIFEST, staged_folder(tmp_path, 1))
    (tmp_path / "checkpoint-1").rename(tmp_path / STAGING / "replaced-checkpoint-1")
    recover(tmp_path)
    assert "half-written" not in caplog.text
    assert (tmp_path / "checkpoint-1" / "model.bin").read_bytes() == b"new"
    verify_checkpoint(tmp_path / "checkpoint-1")
    assert not (tmp_path / STAGING).exists()


def test_a_staged_one_whose_name_is_taken_goes(tmp_path, caplog) -> None:
    save(tmp_path, 1, b"old")
    staged = stage(tmp_path, 1, b"new")
    (staged / MANIFEST).write_text("{}")
    recover(tmp_path)
    assert "checkpoint-1: half-written" in caplog.text
    assert (tmp_path / "checkpoint-1" / "model.bin").read_bytes() == b"old"


def test_the_same_step_again_replaces(tmp_path: Path) -> None:
    save(tmp_path, 1, b"old")
    final = save(tmp_path, 1, b"new")
    assert (final / "model.bin").read_bytes() == b"new"
    verify_checkpoint(final)
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint-1"]


def test_rotation_deletes_the_oldest_but_never_what_is_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        save(tmp_path, step)
    best, last = tmp_path / "checkpoint-2", tmp_path / "checkpoint-8"
    assert rotate_checkpoints(tmp_path, limit=None, keep=[last]) == []
    gone = rotate_checkpoints(tmp_path, limit=2, keep=[last, best])
    assert [each.name for each in gone] == ["checkpoint-4", "checkpoint-6"]
    assert rotate_checkpoints(tmp_path, limit=1, keep=[last, best]) == []
    assert checkpoints_in(tmp_path) == [best, last]
    assert not (tmp_path / STAGING).exists()


def test_checkpoints_of_others_are_neither_counted_nor_deleted(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    save(tmp_path, 2)
    new = save(tmp_path, 3)
    assert rotate_checkpoints(tmp_path, limit=2, keep=[new]) == []
    assert [each.name for each in rotate_checkpoints(tmp_path, limit=1)] == ["checkpoint-2"]
    assert (tmp_path / "checkpoint-1").is_dir()


def test_rotation_goes_by_age_not_by_step(tmp_path: Path) -> None:
    """A run begun anew in the same folder must not lose what it has just written."""
    save(tmp_path, 100)
    save(tmp_path, 200)
    new = save(tmp_path, 10)
    rotate_checkpoints(tmp_path, limit=2, keep=[new])
    assert [each.name for each in checkpoints_in(tmp_path)] == ["checkpoint-10", "checkpoint-200"]


def test_discarding_leaves_nothing(tmp_path: Path) -> None:
    stage(tmp_path, 5)
    discard(staged_folder(tmp_path, 5))
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    record = json.loads((save(tmp_path, 1) / MANIFEST).read_text())
    assert record["files"]["model.bin"]["bytes"] == 7
    assert record["versions"] == {"torch": "2"}
