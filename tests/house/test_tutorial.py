"""The tutorial's Python runs as it stands, block after block, on a model of random weights."""

import json
import re
from pathlib import Path

import pytest

from prefstage.judging import Comparison, load_judge
from tests.tiny_models import save_tiny_llama, tiny_tokenizer

EVEN = 0.5
TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"


def test_the_tutorial_runs_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer("chatml")
    # A context this short ends the answers of a model that never ends its turn.
    shape = {"max_position_embeddings": 48}
    save_tiny_llama(tmp_path / "policy", tokenizer, **shape)
    save_tiny_llama(
        tmp_path / "judge", tokenizer, kind="LlamaForSequenceClassification", num_labels=1, **shape
    )
    # A judge that reverses many labels would be refused: this one agrees with all of them.
    rows, by = list[dict[str, str]](), load_judge("reward:judge")
    for n in range(50):
        prompt, a, b = f"fox {n}", f"ran {n}", f"moon {n % 7}"
        asked = Comparison(prompt, ({"role": "user", "content": prompt},), a, b)
        chosen, rejected = (a, b) if by.compare([asked])[0].probability > EVEN else (b, a)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    text = TUTORIAL.read_text(encoding="utf-8")
    names, *blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert re.findall(r"^(\w+) = ", names, re.MULTILINE) == ["POLICY", "JUDGE", "ROWS"]
    session = {"POLICY": "policy", "JUDGE": "reward:judge", "ROWS": "rows.jsonl"}
    session["__name__"] = "tutorial"
    for block in blocks:
        exec(compile(block, str(TUTORIAL), "exec"), session)

    assert "50 pairs, read as" in capsys.readouterr().out
    assert Path("report.html").stat().st_size > 0
    assert Path("run/model/model.safetensors").exists()
