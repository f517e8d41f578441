"""The Python API as people use it: what they hold is taken, and anything else is one clear line."""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import prefstage
from prefstage.core.errors import ConfigError, PrefstageError
from prefstage.data import CandidateSet, PairSet
from prefstage.evaluating import EvaluateConfig
from prefstage.judging import JudgeConfig
from prefstage.measuring import MeasureConfig
from prefstage.sampling import SampleConfig
from tests.tiny_models import save_tiny_llama, tiny_tokenizer
from tests.training.preference_runs import arguments, logged, preference_trainer, tiny_policy

PAIRS = [
    {"prompt": f"the fox {n}", "chosen": f"a long good answer {n}", "rejected": f"bad {n}"}
    for n in range(12)
]
OWN = [{"prompt": f"the fox {n}", "responses": [f"mine {n}", f"mine again {n}"]} for n in range(12)]
SCORED = [
    {"prompt": f"the fox {n}", "responses": ["once", f"ran {n}", "moon"], "scores": [1.0, 3.0, 2.0]}
    for n in range(8)
]
JUDGE = "python:tests.house.test_python_api:longer"


def longer(a: str, b: str, prompt: object) -> float:
    return 0.9 if len(a) > len(b) else 0.1


def in_one_line(error: PrefstageError) -> str:
    """What was seen, what is expected, what to do."""
    text = str(error)
    assert "\n" not in text
    assert text.count("; ") >= 2
    return text


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_tokenizer("chatml")
    folder = tmp_path_factory.mktemp("model")
    return save_tiny_llama(folder, tokenizer, max_position_embeddings=256)


# --- Measuring --------------------------------------------------------------------------------


def test_a_judge_may_be_a_specification_and_data_a_path(file: Path) -> None:
    by_name = prefstage.measure_stage(str(file), judge=JUDGE, on_policy=OWN)
    by_object = prefstage.measure(PAIRS, judge=longer, on_policy=OWN)
    assert by_name.boundary_score == by_object.boundary_score
    assert by_name.prompts_used == len(PAIRS)


@pytest.mark.parametrize("wrong", [{"judge": "nojudge:x"}, {"off_policy": 7}, {"on_policy": 7}])
def test_what_measuring_cannot_take_is_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(PrefstageError) as caught:
        prefstage.measure_stage(**{"off_policy": PAIRS, "judge": JUDGE, "on_policy": OWN, **wrong})
    in_one_line(caught.value)


@pytest.mark.parametrize(
    ("config", "typo", "meant"),
    [
        (MeasureConfig, "max_promts", "max_prompts"),
        (SampleConfig, "temprature", "temperature"),
        (EvaluateConfig, "confidance", "confidence"),
        (JudgeConfig, "stor", "store"),
    ],
)
def test_a_typo_in_settings_names_the_setting_that_was_meant(
    config: Any, typo: str, meant: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**{typo: 1})
    assert f"did you mean {meant!r}?" in in_one_line(caught.value)


# --- Data -------------------------------------------------------------------------------------


def test_record_sets_are_sliced_filtered_and_indexed() -> None:
    pairs = prefstage.load_pairs(PAIRS)
    first = pairs[:3]
    assert isinstance(first, PairSet)
    assert len(first) == 3
    assert first[-1] == pairs[2]
    assert len(prefstage.load_candidates(SCORED)[2:5]) == 3
    assert first.fingerprint == prefstage.load_pairs(PAIRS[:3]).fingerprint


def built(folder: Path) -> PairSet:
    """Pairs built anew from a file."""
    path = folder / "scored.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in SCORED), encoding="utf-8")
    result = prefstage.build_pairs({"candidates": str(path), "method": "best-vs-worst"})
    (pairs,) = next(iter(result.parts.values())).values()
    return pairs


def test_equal_builds_hash_equal(tmp_path: Path) -> None:
    first, second = built(tmp_path), built(tmp_path)
    assert first is not second
    assert first.fingerprint == second.fingerprint


def test_a_training_of_built_pairs_resumes(tmp_path: Path) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = preference_trainer(tmp_path / "run", data=built(tmp_path), **settings)
    whole.train()
    # As if the run had been stopped after its first checkpoint; the pairs are built anew.
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    resumed = preference_trainer(tmp_path / "run", data=built(tmp_path), **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert logged(resumed) == pytest.approx(logged(whole))


# --- Training ---------------------------------------------------------------------------------


def test_the_trainer_takes_a_path_and_rows(model: Path, tmp_path: Path) -> None:
    trainer = prefstage.PreferenceTrainer(
        model, arguments(tmp_path / "out", max_steps=1), train_dataset=prefstage.load_pairs(PAIRS)
    )
    assert trainer.train().global_step == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("beta", "'beta': 0.1"),
        ("loss_type", "loss='ipo'"),
        ("tokenizer", "processing_class=tokenizer"),
        ("ref_model", "reference="),
        ("compute_metrics", "trainer.evaluate()"),
        ("compute_loss_func", "set loss"),
        ("preprocess_logits_for_metrics", "logits are never held"),
    ],
)
def test_arguments_of_other_trainers_get_a_hint(tmp_path: Path, name: str, hint: str) -> None:
    tokenizer = tiny_tokenizer("chatml")
    with pytest.raises(ConfigError) as caught:
        prefstage.PreferenceTrainer(
            tiny_policy(tokenizer),
            arguments(tmp_path),
            train_dataset=prefstage.load_pairs(PAIRS),
            processing_class=tokenizer,
            **{name: lambda *_: pytest.fail("called")},
        )
    assert hint in in_one_line(caught.value)


# --- Folders and commands ---------------------------------------------------------------------


def test_align_takes_a_folder_as_text(tmp_path: Path, file: Path) -> None:
    recipe = {"policy": str(tmp_path / "none"), "off_policy": str(file), "judge": JUDGE}
    with pytest.raises(PrefstageError, match="none") as caught:
        prefstage.align(recipe, out=str(tmp_path / "run"))
    in_one_line(caught.value)


COMMANDS = (
    *("advise", "align", "build", "diagnose", "doctor", "evaluate", "experiment"),
    *("judge", "measure", "report", "sample", "train"),
)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_function_whose_folder_is_text_or_a_path(name: str) -> None:
    out = inspect.signature(getattr(prefstage, name)).parameters["out"]
    assert "str" in str(out.annotation)
    assert "Path" in str(out.annotation)


def test_sample_writes_what_the_command_writes(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "own.jsonl"
    config = SampleConfig(responses=1, max_new_tokens=4, max_prompts=2)
    sampled = prefstage.sample(model, PAIRS, out=str(out), config=config)
    assert sampled.result["responses"] == 2
    assert isinstance(sampled.candidates, CandidateSet)
    assert sampled.written[0] == out
    again = prefstage.sample(str(model), PAIRS, out=out, config=config)
    assert again.result["responses_new"] == 0


def test_judge_takes_rows_and_a_function(tmp_path: Path) -> None:
    judged = prefstage.judge(longer, pairs=PAIRS, out=str(tmp_path / "judged.jsonl"))
    assert judged.result["agreement"] == 1.0
    assert judged.written[0].exists()
    scored = prefstage.judge(JUDGE, candidates=prefstage.load_candidates(OWN))
    assert scored.result["score"] == "mean win probability"
    with pytest.raises(PrefstageError) as caught:
        prefstage.judge(longer)
    in_one_line(caught.value)


def test_evaluate_takes_paths_and_a_function(tmp_path: Path) -> None:
    answers = {}
    for name, text in (("mine", "a longer answer"), ("base", "short")):
        answers[name] = tmp_path / f"{name}.json"
        rows = [
            {"instruction": f"Q{n}?", "output": f"{text} {n}", "generator": name} for n in range(5)
        ]
        answers[name].write_text(json.dumps(rows), encoding="utf-8")
    done = prefstage.evaluate(
        answers["mine"],
        baseline=str(answers["base"]),
        judge=longer,
        out=str(tmp_path / "out"),
        config=EvaluateConfig(confidence=0.9),
    )
    assert done.result["results"]["mine"]["rates"]["win_rate"] > 50
    assert (tmp_path / "out" / "results.json").exists()
    with pytest.raises(PrefstageError) as caught:
        prefstage.evaluate(answers["mine"], judge=longer)
    in_one_line(caught.value)


def test_diagnose_writes_its_report(tmp_path: Path) -> None:
    diagnosis = prefstage.diagnose(PAIRS, judge=longer, out=str(tmp_path / "out"))
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["diagnoses"][0]["dataset"] == diagnosis.as_dict()["dataset"]


def test_doctor_says_what_is_here(tmp_path: Path) -> None:
    here = prefstage.doctor(out=str(tmp_path / "here.json"))
    assert json.loads((tmp_path / "here.json").read_text())["versions"] == here.result["versions"]
