"""Trainings by a launcher, and policies behind a server that is started on each."""

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from prefstage import align
from prefstage.aligning import load_recipe
from prefstage.aligning.steps import Build, Sample, Train, Workspace
from prefstage.core.errors import ConfigError, ServiceError
from prefstage.core.ledger import LEDGER, Ledger
from prefstage.judging import load_judge
from tests.aligning.tiny_world import JUDGE, settings

SERVER = "transformers serve {policy} --host 127.0.0.1 --port {port}"


def test_a_launched_training_ends_where_the_process_itself_ends(
    world: Path, tmp_path: Path
) -> None:
    given = settings(world, schedule="off", iterations=1, evaluate=None, measure=False)
    weights = []
    for name, launch in (("here", None), ("launched", "env OMP_NUM_THREADS=1")):
        done = align({**given, "launch": launch}, out=tmp_path / name)
        weights.append(load_file(Path(done.policy) / "model.safetensors"))
        assert [each.kind for each in done.steps] == ["build", "train"]
    here, launched = weights
    assert all((here[name] == launched[name]).all() for name in here)
    (step,) = (tmp_path / "launched" / "steps").glob("train-*")
    assert "train.log" in json.loads((step / "step.json").read_text())["files"]
    assert not list((tmp_path / "launched" / "steps").glob(".*"))


def test_a_training_that_fails_is_told_with_the_end_of_its_log(world: Path, tmp_path: Path) -> None:
    given = settings(world, schedule="off", iterations=1, evaluate=None, measure=False)
    launch = f"{sys.executable} -c 'import sys; sys.exit(\"no GPU to be had\")'"
    with pytest.raises(ServiceError, match=r"exit status 1.*no GPU to be had"):
        align({**given, "launch": launch}, out=tmp_path)
    assert align(given, out=tmp_path).result["stopped"] == "all iterations done"


def test_server_and_launcher_are_part_of_what_a_step_depends_on(
    world: Path, tmp_path: Path
) -> None:
    spaces = [
        Workspace(load_recipe(settings(world, **more)), load_judge(JUDGE), tmp_path)
        for more in ({}, {"server": SERVER}, {"launch": "accelerate launch"})
    ]
    start = spaces[0].policy("start", str(world / "policy"))
    plain, served, launched = (Sample(space, start).key for space in spaces)
    assert plain != served
    assert plain == launched
    built = Build.off_policy(spaces[0])
    plain, served, launched = (Train(space, start, built, reference=start).key for space in spaces)
    assert plain == served
    assert plain != launched


def test_what_is_served_is_the_folder_of_the_policy(world: Path) -> None:
    recipe = load_recipe(settings(world, server=SERVER))
    served = recipe.sampled_from(str(world / "policy"))
    assert served == f"serve:{SERVER.replace('{policy}', str(world / 'policy'))}"
    assert recipe.sampled_from("openai:big@http://there") == "openai:big@http://there"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"server": "serve --port {port}"}, "lacks {policy}"),
        ({"server": "serve {policy}"}, "lacks {port}"),
        ({"server": SERVER, "dtype": "bfloat16"}, "remove dtype"),
    ],
)
def test_wrong_servers_are_one_line(world: Path, given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_recipe(settings(world, **given))
    assert said in str(refused.value)


@pytest.mark.slow
def test_policies_are_served_one_after_the_other(world: Path, tmp_path: Path) -> None:
    given = settings(world, schedule="on", iterations=1, server=SERVER)
    done = align(given, out=tmp_path)
    assert done.result["costs"]["answers"] > 0
    with Ledger(tmp_path / LEDGER) as ledger:
        assert len(ledger.samplers()) == 2  # the start, and what was trained
    log = (tmp_path / "server.log").read_text()
    assert "Finished server process" in log
    again = align(given, out=tmp_path)
    assert {each.did for each in again.steps} == {"reused"}


@pytest.mark.slow
def test_two_processes_by_accelerate(world: Path, tmp_path: Path) -> None:
    given = settings(world, schedule="off", iterations=1, evaluate=None, measure=False)
    given["train"]["training"]["use_cpu"] = True
    two = json.loads(json.dumps(given))
    two["train"]["training"]["per_device_train_batch_size"] = 2
    launch = "accelerate launch --multi_gpu --num_processes 2 --num_machines 1"
    launch += " --mixed_precision no --dynamo_backend no --main_process_port 0"
    one = align(given, out=tmp_path / "one")
    done = align({**two, "launch": launch}, out=tmp_path / "two")
    here, there = (load_file(Path(each.policy) / "model.safetensors") for each in (one, done))
    assert max(float((here[name] - there[name]).abs().max()) for name in here) < 1e-5
