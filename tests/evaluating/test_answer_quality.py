"""Answer quality of one set against another: a random answer against the chosen side of pairs."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prefstage import diagnose, evaluate, load_candidates, load_pairs, win_rate
from prefstage.core.errors import DataError
from prefstage.evaluating import load_answers
from prefstage.judging import Judge
from prefstage.judging.base import Comparison, Judgment

PROMPTS = 80


class TextWorth(Judge):
    """Reads a text's worth, its number, and likes length too: a thousandth of a nat a character."""

    name = fingerprint = "worth"

    def __init__(self, *, taste: float) -> None:
        self.taste = taste
        self.fingerprint = f"worth {taste}"

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        gaps = (self.worth(each.a) - self.worth(each.b) for each in comparisons)
        return [Judgment(1 / (1 + math.exp(-gap))) for gap in gaps]

    def worth(self, text: str) -> float:
        return float(text.split(maxsplit=1)[0]) + self.taste * len(text)


def write_world(folder: Path, *, better: float, longer: int) -> tuple[str, str]:
    """Own answers, three a prompt, and pairs: two of every third prompt."""
    draw = random.Random(0)

    def text(worth: float, length: int) -> str:
        return f"{worth + draw.gauss(0, 0.3):.3f} ".ljust(length, "x")

    own, pairs = [], []
    for number in range(PROMPTS):
        prompt = f"question {number}"
        lengths = [draw.randint(40, 120) + longer for _ in range(3)]
        own.append({"prompt": prompt, "responses": [text(better, n) for n in lengths]})
        for _ in range(1 + (number % 3 == 0)):
            sides = text(0.0, draw.randint(40, 160)), text(-1.0, draw.randint(40, 120))
            pairs.append({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]})
    for name, rows in (("own", own), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(folder / "own.jsonl"), str(folder / "pairs.jsonl")


def quality(folder: Path, *, taste: float, **world: Any) -> tuple[dict[str, Any], list[str]]:
    """What a diagnosis says of own answers, and its warnings of them."""
    own, pairs = write_world(folder, **world)
    found = diagnose(load_pairs(pairs), judge=TextWorth(taste=taste), on_policy=own)
    warned = [w["figure"] for w in found.warnings if "chosen responses are worse" in w["what"]]
    return found.report["own_answers"], warned


def test_a_diagnosis_and_an_evaluation_have_the_same_figures(tmp_path: Path) -> None:
    found, _ = quality(tmp_path, taste=0.01, better=0.3, longer=30)
    own, pairs = tmp_path / "own.jsonl", tmp_path / "pairs.jsonl"
    rate = win_rate(f"{own}#random", f"{pairs}#chosen", judge=TextWorth(taste=0.01))
    assert rate.controlled is not None
    assert rate.controlled_interval is not None
    assert found["prompts"] == rate.rates.n_total == PROMPTS
    assert 100 * found["win_rate"] == pytest.approx(rate.rates.win_rate)
    assert [100 * end for end in found["interval"]] == pytest.approx([*rate.rates.interval])
    assert 100 * found["length_controlled_win_rate"] == pytest.approx(
        rate.controlled.length_controlled_win_rate
    )
    assert [100 * end for end in found["length_controlled_interval"]] == pytest.approx(
        [*rate.controlled_interval]
    )
    assert f"{PROMPTS} others" not in " ".join(rate.notes)
    assert any("160 others were not used" in note for note in rate.notes)  # two of three answers
    assert any("27 others were not used" in note for note in rate.notes)  # a second pair


def test_longer_answers_that_win_by_length_alone_are_no_warning(tmp_path: Path) -> None:
    found, warned = quality(tmp_path, taste=0.02, better=0.0, longer=60)
    assert found["interval"][0] > 0.5
    low, high = found["length_controlled_interval"]
    assert low < 0.5 < high
    assert warned == []


def test_better_answers_of_any_length_are_a_warning(tmp_path: Path) -> None:
    found, warned = quality(tmp_path, taste=0.02, better=1.0, longer=0)
    assert found["length_controlled_interval"][0] > 0.5
    assert len(warned) == 1
    assert "at equal lengths" in warned[0]


def test_short_answers_that_lose_by_length_alone_are_a_warning_too(tmp_path: Path) -> None:
    """The raw rate hides that they are better."""
    found, warned = quality(tmp_path, taste=0.02, better=0.8, longer=-30)
    assert found["interval"][0] < found["length_controlled_interval"][0]
    assert len(warned) == 1


def test_a_side_of_pairs_is_drawn_by_the_seed_alone(tmp_path: Path) -> None:
    _, pairs = write_world(tmp_path, better=0.0, longer=0)
    rows = list(load_pairs(pairs))
    turned = tmp_path / "turned.jsonl"
    turned.write_text("".join(f"{line}\n" for line in Path(pairs).read_text().splitlines()[::-1]))
    chosen = load_answers(f"{pairs}#chosen")
    assert (len(chosen), chosen.left_aside, chosen.name) == (PROMPTS, 27, "pairs#chosen")
    for key, answer in chosen.by_prompt.items():
        assert answer.text in [row.chosen[0]["content"] for row in rows if row.prompt_id == key]
    rejected = load_answers(f"{pairs}#rejected")
    for key, answer in rejected.by_prompt.items():
        # Of one and the same pair.
        assert (chosen.by_prompt[key].text, answer.text) in [
            (row.chosen[0]["content"], row.rejected[0]["content"]) for row in rows
        ]
    others = [load_answers(f"{pairs}#chosen", seed=seed) for seed in range(3)]
    assert others[0] == chosen
    assert len({tuple(a.text for a in some.by_prompt.values()) for some in others}) > 1
    again = load_answers(f"{turned}#chosen")
    single = [key for key in chosen.by_prompt if sum(r.prompt_id == key for r in rows) == 1]
    assert all(again.by_prompt[key] == chosen.by_prompt[key] for key in single)


def test_one_answer_of_several_is_drawn(tmp_path: Path) -> None:
    own, _ = write_world(tmp_path, better=0.0, longer=0)
    drawn = load_answers(f"{own}#random")
    assert (len(drawn), drawn.left_aside) == (PROMPTS, 2 * PROMPTS)
    for row in load_candidates(own):
        assert drawn.by_prompt[row.prompt_id].text in row.responses
    positions = {
        row.responses.index(drawn.by_prompt[row.prompt_id].text) for row in load_candidates(own)
    }
    assert positions == {0, 1, 2}


def test_a_writer_of_the_name_random_is_that_writer(tmp_path: Path) -> None:
    file = tmp_path / "two.jsonl"
    rows = [{"prompt": "Q", "responses": ["a", "b"], "sources": ["random", "other"]}]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert [a.text for a in load_answers(f"{file}#random").by_prompt.values()] == ["a"]


def test_several_answers_without_a_choice_name_the_cures(tmp_path: Path) -> None:
    own, pairs = write_world(tmp_path, better=0.0, longer=0)
    for file in (own, pairs):
        with pytest.raises(DataError, match=r"FILE#random; of pairs FILE#chosen"):
            load_answers(file)
    with pytest.raises(DataError):
        load_answers(f"{own}#chosen")  # candidates without scores are no pairs


def test_the_command_compares_a_set_with_the_chosen_side_of_pairs(tmp_path: Path) -> None:
    own, pairs = write_world(tmp_path, better=0.5, longer=0)
    done = evaluate(
        f"{own}#random",
        baseline=f"{pairs}#chosen",
        judge=TextWorth(taste=0.0),
        out=tmp_path / "run",
    )
    (result,) = done.result["results"].values()
    assert result["rates"]["win_rate"] > 50
    assert result["controlled_interval"][0] > 50
    assert "own#random over pairs#chosen by worth: 80 of 80 prompts" in done.summary
