"""`prefstage judge --pairs`, then `prefstage train` on what it wrote: sppo reads the judge's P."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from prefstage.cli.main import app
from prefstage.data import load_pairs
from prefstage.judging import Judge
from prefstage.judging.base import Judgment, compare_by_rewards, judgment_of_rewards
from tests.tiny_models import save_tiny_llama, tiny_tokenizer

RUNNER = CliRunner()


class ByLength(Judge):
    """A pointwise judge."""

    name = fingerprint = "length"

    def score(self, items: Any) -> list[float]:
        return [len(text) / 10 for _, text in items]

    def compare(self, comparisons: Any) -> list[Judgment]:
        return compare_by_rewards(self.score, comparisons)


class Undecided(Judge):
    """A judge that compares, and gives no readable answer to prompts of odd numbers."""

    name = fingerprint = "undecided"

    def compare(self, comparisons: Any) -> list[Judgment]:
        odd = [int(c.prompt[-1]["content"][-1]) % 2 for c in comparisons]
        return [Judgment(0.5, "undecided") if each else Judgment(0.2) for each in odd]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    save_tiny_llama(folder / "policy", tiny_tokenizer("chatml"))
    rows = [
        {"prompt": f"question {n}", "chosen": f"answer {n}", "rejected": "no" * (n + 2)}
        for n in range(6)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def run(*words: object) -> Any:
    return RUNNER.invoke(app, [str(word) for word in words], catch_exceptions=False)


def trained(world: Path, data: Path, out: Path, **more: Any) -> Any:
    recipe = {
        "policy": str(world / "policy"),
        "data": str(data),
        "loss": "sppo",
        "training": {"max_steps": 1, "per_device_train_batch_size": 8, "use_cpu": True},
        **more,
    }
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe))
    return run("train", file, "--out", out)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("judge", [ByLength(), Undecided()])
def test_what_a_judge_says_of_pairs_is_trained_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, judge: Any
) -> None:
    monkeypatch.setattr("prefstage.judging.judged.as_judge", lambda spec: judge)
    judged = tmp_path / f"judged.{kind}"
    done = run("judge", "--judge", "mine", "--pairs", world / "pairs.jsonl", "--out", judged)
    assert done.exit_code == 0, done.output
    found = [each.judge_probability for each in load_pairs(judged)]
    if isinstance(judge, ByLength):
        expected = [judgment_of_rewards(0.8, (n + 2) / 5).probability for n in range(6)]
        assert found == pytest.approx(expected)
        assert min(found) < 0.5 < max(found)
    else:
        assert found == [0.2, None] * 3
    done = trained(world, judged, tmp_path / "run")
    assert done.exit_code == 0, done.output
    left_out = "note: data: 3 pairs without a preference left out" in done.output
    assert left_out == isinstance(judge, Undecided)
    assert f"by sppo on {3 if left_out else 6} pairs" in done.output


def test_judging_again_replaces_what_an_earlier_judge_said(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = world / "pairs.jsonl"
    for judge in (ByLength(), Undecided()):
        monkeypatch.setattr("prefstage.judging.judged.as_judge", lambda spec, judge=judge: judge)
        out = tmp_path / f"{judge.name}.jsonl"
        assert run("judge", "--judge", "m", "--pairs", source, "--out", out).exit_code == 0
        source = out
    assert [each.judge_probability for each in load_pairs(source)] == [0.2, None] * 3


def test_pairs_that_nobody_judged_are_refused_before_the_policy_is_loaded(
    world: Path, tmp_path: Path
) -> None:
    done = trained(world, world / "pairs.jsonl", tmp_path / "run", policy="no/policy")
    assert done.exit_code == 2
    assert "6 of 6 pairs without preference" in done.output
    assert "prefstage judge" in done.output


def test_what_is_left_out_is_on_the_terminal_and_in_the_results(
    world: Path, tmp_path: Path
) -> None:
    text = "once upon a time there was a quick brown fox that ran "
    rows = [
        {"prompt": "a", "chosen": "yes", "rejected": "no", "agreement": 0.5},
        {"prompt": "b", "chosen": text + "home", "rejected": text + "away"},
        {"prompt": "c", "chosen": text, "rejected": "no"},
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    more = {"loss": "sigmoid", "tokens": {"max_response_tokens": 6}, "eval": str(data)}
    done = trained(world, data, tmp_path / "run", **more)
    assert done.exit_code == 0, done.output
    counts = json.loads((tmp_path / "run" / "train.json").read_text())["counts"]
    wanted = {"ties_left_out": 1, "same_tokens_by_truncation": 1}
    wanted |= {"chosen_truncated": 2, "rejected_truncated": 1}
    assert {name: counts[name] for name in wanted} == wanted
    for name in ("data", "eval"):
        assert f"note: {name}: 1 ties left out (ties: keep trains on them)" in done.output
        assert f"note: {name}: 1 of the same tokens on both sides after trunc" in done.output
    assert "chosen truncated: 2" in done.output
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "- training: 1 ties left out (ties: keep trains on them)" in card
    assert "- training: rejected truncated: 1" in card
    kept = trained(world, data, tmp_path / "kept", **more, ties="keep")
    assert "on 2 pairs" in kept.output
