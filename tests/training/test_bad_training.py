from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefstage.core.errors import PrefstageError
from prefstage.training.checkpoints import checkpoints_in, verify_checkpoint
from tests.training.bad_training import CASES, RUN


@pytest.mark.parametrize(("case", "said"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_bad_run_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Callable[[], Any], said: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PrefstageError) as caught:
        case()
    line = str(caught.value)
    assert "\n" not in line
    assert "; expected " in line
    for part in said:
        assert part in line
    if "untouched" in line:
        verify_checkpoint(checkpoints_in(RUN)[-1])


def test_no_case_stands_twice() -> None:
    names = [name for name, _, _ in CASES]
    assert len(set(names)) == len(names) >= 40
