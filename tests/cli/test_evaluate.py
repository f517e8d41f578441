"""`prefstage evaluate`: answers judged, verdicts recounted, a stop gone on from."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from typer.testing import CliRunner

from prefstage.cli.main import app
from prefstage.core.ledger import LEDGER, Ledger
from prefstage.measuring.rates import standardised_length
from tests.killed_command import run_until_killed
from tests.tiny_models import save_tiny_llama, tiny_tokenizer

RUNNER = CliRunner()
HERE = Path(__file__).parent


def longer(a: str, b: str, prompt: Any) -> float:
    return 0.5 + 0.5 * ((len(a) > len(b)) - (len(a) < len(b)))


def slow(a: str, b: str, prompt: Any) -> float:
    with Path(os.environ["VERDICTS"]).open("a") as stream:
        stream.write(f"{prompt[0]['content']} {min(a, b)}\n")
    time.sleep(0.02)
    return longer(a, b, prompt)


def outputs(path: Path, name: str, texts: list[str]) -> Path:
    rows = [
        {"instruction": f"q{k}", "output": text, "generator": name} for k, text in enumerate(texts)
    ]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    sizes = [(k * 7) % 11 for k in range(60)]
    return {
        "m": outputs(tmp_path / "m.json", "m", ["x" * size for size in sizes]),
        "n": outputs(tmp_path / "n.json", "n", ["x" * (size + 2) for size in sizes]),
        "b": outputs(tmp_path / "b.json", "b", ["x" * 6] * 60),
    }


def run(*arguments: object) -> Any:
    return RUNNER.invoke(app, ["evaluate", *map(str, arguments)])


def judged(files: dict[str, Path], *more: object, judge: str = "longer") -> list[object]:
    return [
        *("--answers", files["m"], "--baseline", files["b"]),
        *("--judge", f"python:test_evaluate:{judge}", "--out", files["m"].parent / "out", *more),
    ]


def test_models_are_judged_compared_and_written(files: dict[str, Path]) -> None:
    done = run(*judged(files, "--answers", files["n"], "--json"))
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    sizes = [(k * 7) % 11 for k in range(60)]
    wins = sum(size > 6 for size in sizes) + 0.5 * sum(size == 6 for size in sizes)
    assert result["results"]["m"]["rates"]["win_rate"] == pytest.approx(100 * wins / 60)
    assert result["results"]["m"]["controlled"]["difficulty"] == "none"
    assert result["comparison"][0]["better"] == "n"
    out = files["m"].parent / "out"
    saved = json.loads((out / "results.json").read_text())
    assert saved["results"] == result["results"]
    assert (out / "leaderboard.csv").read_text().count("\n") == 3
    again = run("--annotations", out / "model-0" / "annotations.json", "--json")
    assert again.exit_code == 0, again.output
    told, before = json.loads(again.stdout), result["results"]["m"]
    assert told["win_rate"] == pytest.approx(100 * wins / 60)
    name = "length_controlled_win_rate"
    assert told[name] == pytest.approx(before["controlled"][name])
    assert told["interval"] == pytest.approx(before["controlled_interval"])


def test_a_summary_is_told(files: dict[str, Path]) -> None:
    done = run(*judged(files, "--stop-early"))
    assert done.exit_code == 0, done.output
    assert "win rate" in done.stdout
    assert "wrote" in done.stdout


def test_a_recount_allows_for_looks_as_the_run_did(files: dict[str, Path]) -> None:
    done = run(*judged(files, "--stop-early", "--json"))
    assert done.exit_code == 0, done.output
    before = json.loads(done.stdout)["results"]["m"]
    assert before["looks"] > 1
    again = run("--annotations", files["m"].parent / "out/model-0/annotations.json", "--json")
    assert again.exit_code == 0, again.output
    told = json.loads(again.stdout)
    assert told["interval"] == pytest.approx(before["controlled_interval"])
    assert any("judging might have stopped early" in note for note in told["notes"])


def test_a_recount_of_few_verdicts_tells_the_raw_rates(files: dict[str, Path]) -> None:
    done = run(*judged(files, "--max-prompts", "4", "--json"))
    assert done.exit_code == 0, done.output
    before = json.loads(done.stdout)["results"]["m"]["rates"]
    out = files["m"].parent / "out"
    again = run("--annotations", out / "model-0/annotations.json", "--json", "--out", out / "again")
    assert again.exit_code == 0, again.output
    told = json.loads(again.stdout)
    names = ("win_rate", "standard_error", "interval", "discrete_win_rate", "n_total", "confidence")
    assert {name: told[name] for name in names} == {name: before[name] for name in names}
    assert told["notes"] == ["4 verdicts are too few to control for length"]
    assert json.loads((out / "again/results.json").read_text())["win_rate"] == told["win_rate"]


def test_annotations_are_recounted_as_published(tmp_path: Path) -> None:
    rows = [
        {
            "instruction": f"q{k}",
            "output_1": "a" * (k + 1),
            "output_2": "b" * (2 * k % 13),
            "generator_1": "base",
            "generator_2": "model",
            "annotator": "judge",
            "preference": 1 + (k % 5) / 4,
        }
        for k in range(40)
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    done = run("--annotations", path, "--lookup", "as-published", "--out", tmp_path / "o", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["difficulty"], result["win_rate"]) == ("official", 50.0)
    assert (tmp_path / "o" / "leaderboard.csv").exists()


def test_a_killed_evaluation_judges_nothing_twice(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = files["m"].parent / "verdicts.txt"
    environment = {**os.environ, "VERDICTS": str(verdicts), "PYTHONPATH": str(HERE)}
    words = ["evaluate", *map(str, judged(files, "--json", judge="slow"))]
    run_until_killed(
        words,
        until=lambda: verdicts.exists() and len(verdicts.read_text().splitlines()) >= 40,
        environment=environment,
    )
    monkeypatch.setenv("VERDICTS", str(verdicts))
    done = run(*judged(files, "--json", judge="slow"))
    assert done.exit_code == 0, done.output
    asked = verdicts.read_text().splitlines()
    assert json.loads(done.stdout)["counts"]["reused"] >= 15
    # each comparison in both orders; only the one that the kill cut short is asked again
    assert len(asked) <= 2 * len(set(asked)) + 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a model to evaluate"),
        (["--answers", "a.json"], "--baseline"),
        (["--answers", "a.json", "--annotations", "b.json"], "--annotations and --answers"),
        (["--annotations", "none.json"], "none.json"),
        (["--answers", "a.json", "--answers", "b.json", "--joint-difficulty"], "with 2 models"),
        (["--answers", "a.json", "--beams", "3"], "--beams without --policy"),
        (["--annotations", "a.json", "--temperature", "1"], "--temperature without --policy"),
    ],
)
def test_wrong_commands_are_one_line(words: list[str], message: str) -> None:
    done = run(*words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_difficulty_is_estimated_from_all_models_together(tmp_path: Path) -> None:
    """Against a fit by a general optimiser of the same two problems."""
    rng = np.random.default_rng(4)
    baseline = rng.integers(5, 60, 50)
    sizes = np.round(baseline * rng.uniform(0.5, 1.8, (3, 50))).astype(int)
    # answers of "x" and "y"; more x than in the baseline's wins: neither always nor never
    shares = rng.random((3, 50)) * rng.random(50)
    texts = [
        ["x" * round(n * s) + "y" * (n - round(n * s)) for n, s in zip(*row, strict=True)]
        for row in zip(sizes, shares, strict=True)
    ]
    models = [outputs(tmp_path / f"{k}.json", f"m{k}", each) for k, each in enumerate(texts)]
    base = outputs(
        tmp_path / "b.json", "b", ["x" * (n // 4) + "y" * (n - n // 4) for n in baseline]
    )
    words = [word for each in models for word in ("--answers", each)]
    words += ["--baseline", base, "--judge", "python:test_evaluate:by_x", "--out", tmp_path / "out"]
    done = run(*words, "--joint-difficulty", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["results"]
    theirs = ["x" * (n // 4) for n in baseline]
    y = np.array([[by_x(*pair, None) for pair in zip(row, theirs, strict=True)] for row in texts])
    t = np.stack([standardised_length(row.astype(float), baseline.astype(float)) for row in sizes])

    def joint(v: np.ndarray) -> float:
        z = v[:3, None] * t + v[3:6, None] + v[6:]
        ridge = 0.005 * (v[:6] ** 2).sum() + (v[6:] ** 2).sum() / 2
        return float((np.logaddexp(0, z) - y * z).sum() + ridge)

    d = minimize(joint, np.zeros(56), method="BFGS", options={"gtol": 1e-7}).x[6:]
    d -= d.mean()
    for k, result in enumerate(found.values()):
        controlled = result["controlled"]
        x = np.stack([t[k], d, np.ones(50)], axis=1)

        def penalised(v: np.ndarray, x: np.ndarray = x, k: int = k) -> float:
            z = x @ (v[:3] - v[3:])  # positive and negative parts: the penalty is smooth
            loss = (np.logaddexp(0, z) - y[k] * z).sum()
            return float(v.sum() + found[f"m{k}"]["controlled"]["C"] * loss)

        parts = minimize(penalised, np.full(6, 0.1), bounds=[(0, None)] * 6, tol=1e-12).x
        w = parts[:3] - parts[3:]
        expected = 100 * (1 / (1 + np.exp(-(w[1] * d + w[2])))).mean()
        assert controlled["difficulty"] == "given"
        assert controlled["length_controlled_win_rate"] == pytest.approx(expected, abs=0.1)
        assert "difficulty estimated from the verdicts on these 3 models" in result["notes"]
        assert not any("without difficulty" in note for note in result["notes"])
    plain = json.loads(run(*words[:-1], tmp_path / "plain", "--json").stdout)["results"]
    rates = [
        [each["controlled"]["length_controlled_win_rate"] for each in one.values()]
        for one in (found, plain)
    ]
    assert np.abs(np.subtract(*rates)).max() > 0.2  # it does change the rate
    told = run(*words, "--joint-difficulty")
    assert "(difficulty: given)" in told.stdout


def by_x(a: str, b: str, prompt: Any) -> float:
    return 1 / (1 + math.exp(-0.3 * (a.count("x") - b.count("x"))))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("models") / "tiny", tiny_tokenizer("chatml")
    return save_tiny_llama(folder, tokenizer, max_position_embeddings=512, initializer_range=0.3)


def test_a_policy_answers_by_beam_search_as_transformers_does(
    files: dict[str, Path], model: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = ["--policy", model, "--baseline", files["b"], "--judge", "python:test_evaluate:longer"]
    words += ["--beams", 3, "--temperature", 0, "--max-new-tokens", 12, "--max-prompts", 6]
    out = files["b"].parent / "beams"
    done = run(*words, "--out", out)
    assert done.exit_code == 0, done.output
    written = json.loads((out / "model-0" / "model_outputs.json").read_text())
    assert len(written) == 6
    tokenizer, loaded = (
        AutoTokenizer.from_pretrained(model),
        AutoModelForCausalLM.from_pretrained(model),
    )
    for row in written:
        turns = [{"role": "user", "content": row["instruction"]}]
        given = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        made = loaded.generate(**given, num_beams=3, do_sample=False, max_new_tokens=12)
        new = made[0, given["input_ids"].shape[1] :]
        assert row["output"] == tokenizer.decode(new, skip_special_tokens=True)
    assert json.loads((out / "manifest.json").read_text())["inputs"]["sampling"]["beams"] == 3
    with Ledger(out / LEDGER) as ledger:
        ((_, _, settings, _),) = ledger.samplers()
    assert json.loads(settings)["beams"] == 3
    other = run(*words, "--beams", 4, "--out", out)
    assert other.exit_code == 2


@pytest.mark.slow
def test_a_killed_beam_search_answers_nothing_twice(files: dict[str, Path], model: Path) -> None:
    words = ["evaluate", "--policy", model, "--baseline", files["b"], "--beams", 3, "--json"]
    words += ["--judge", "python:test_evaluate:longer", "--max-new-tokens", 400]
    whole, out = files["b"].parent / "whole", files["b"].parent / "killed"
    typed = [str(word) for word in (*words, "--out", out)]

    def answers() -> list[tuple[object, ...]]:
        with Ledger(out / LEDGER) as ledger:
            return ledger.rows("samples")

    run_until_killed(
        typed,
        until=lambda: (out / LEDGER).exists() and len(answers()) >= 4,
        environment={**os.environ, "PYTHONPATH": str(HERE)},
    )
    before = answers()
    assert RUNNER.invoke(app, typed).exit_code == 0
    assert RUNNER.invoke(app, [str(word) for word in (*words, "--out", whole)]).exit_code == 0
    after = answers()
    assert after[: len(before)] == before
    assert len(after) == 60
    outputs = [(each / "model-0" / "model_outputs.json").read_text() for each in (out, whole)]
    assert outputs[0] == outputs[1]
