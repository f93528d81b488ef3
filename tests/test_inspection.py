"""The command `inspect`: what it prints and writes, its threshold, a sentence for bad input. The model is faked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_cli import NO, YES, complaint, iadr1

from iadr1_lib.answer import parse_answer
from iadr1_lib.evaluation.inspection import Finding

Say = Callable[..., list[int]]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Say:
    """Has a stand-in for the model give one text to every picture; P(Yes) is the mean brightness."""
    asked: list[int] = []

    class Stand:
        text, heat, odd = NO, None, ()

        def __init__(self, model_dir: Path, prompt: str, references: Sequence[Image.Image]) -> None:
            self.references = references

        def judge(self, pictures: Sequence[Image.Image]) -> list[Finding]:
            asked.append(len(pictures))
            return [Finding(Stand.text, False, p, Stand.heat, None) for p in self.p_yes(pictures)]

        def p_yes(self, pictures: Sequence[Image.Image]) -> list[float]:
            return [float(np.asarray(picture.convert("L")).mean() / 255) for picture in pictures]

        def threshold(self, good: Sequence[Image.Image], false_alarms: float) -> float:
            return float(np.quantile(self.p_yes(good), 1 - false_alarms, method="higher"))

        def odd_references(self) -> Sequence[int]:
            return Stand.odd

    def say(text: str, heat: Any = None, odd: Sequence[int] = ()) -> list[int]:
        Stand.text, Stand.heat, Stand.odd = text, heat, tuple(odd)  # type: ignore[assignment]
        return asked

    monkeypatch.setattr("iadr1_lib.evaluation.inspection.Inspector", Stand)
    return say


def grey(path: Path, level: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (50, 40), level).save(path)
    return path


def test_it_prints_the_answer_and_marks_the_picture(answering: Say, tmp_path: Path) -> None:
    answering(YES, np.eye(18))
    path = tmp_path / "picture.png"
    Image.new("I;16", (50, 50)).save(path)
    result = iadr1("inspect", "--model", "m", path, path, "--save-marked", tmp_path / "marked")
    assert result.exit_code == 0, result.output
    assert result.output.count(str(path)) == 2
    for word in ("yes", "scratch", "top left", "A dark line.", "P(Yes)"):
        assert word in result.output
    [marked] = (tmp_path / "marked").iterdir()
    sheet = Image.open(marked)
    assert sheet.width == 2 * 400 and sheet.height >= 400  # beside it the heat map
    for text in ("<answer>No</answer> Wait. <answer>Yes</answer>", "Maybe"):
        answering(text)
        shown = iadr1("inspect", "--model", "m", path).stdout
        expected = parse_answer(text).answer or f"none that can be read; the model wrote: {text!r}"
        assert f"  answer    {expected}" in shown


def test_it_goes_on_after_a_bad_picture_and_marks_each_in_a_file_of_its_own(answering: Say, tmp_path: Path) -> None:
    asked = answering(NO)
    paths = [grey(tmp_path / place, 9) for place in ("a/x/1.png", "b/x/1.png", "a/x/1.jpg", "a/x/2.png")]
    (tmp_path / "bad.png").write_text("no picture")
    more = [tmp_path / "bad.png", tmp_path / "gone.png"] + 70 * [paths[-1]]
    result = iadr1("inspect", "--model", "m", *paths, *more, "--save-marked", tmp_path / "marked")
    said = complaint(result)
    assert "2 of 76" in said and "bad.png" in said and "gone.png" in said
    assert result.stdout.count("answer    no") == 74
    assert max(asked) <= 32 and len(list((tmp_path / "marked").iterdir())) == 4


def test_good_pictures_set_a_threshold_and_a_defective_one_among_them_is_named(answering: Say, tmp_path: Path) -> None:
    answering(NO)
    for number, level in enumerate([100, 110, 120, 130, 140, 150, 160, 170, 180, 250]):
        grey(tmp_path / "good" / f"{number}.png", level)
    words = ("inspect", "--model", "m", "--good", tmp_path / "good", "--false-alarms", 0.2)
    result = iadr1(*words, grey(tmp_path / "x.png", 120), grey(tmp_path / "y.png", 240))
    assert result.exit_code == 0, result.output
    assert result.stdout.count("within the threshold") == 1 and result.stdout.count("above the threshold") == 1
    assert "9.png looks defective" in result.stdout and "10 good pictures" in result.stdout
    (tmp_path / "empty").mkdir()
    assert "no pictures" in complaint(iadr1("inspect", tmp_path / "x.png", "--good", tmp_path / "empty"))


def test_an_odd_reference_is_named(answering: Say, tmp_path: Path) -> None:
    answering(NO, odd=[1])
    references = [grey(tmp_path / f"r{number}.png", 90 + number) for number in range(3)]
    words = [word for path in references for word in ("--reference", path)]
    result = iadr1("inspect", "--model", "m", *words, references[0])
    assert result.exit_code == 0 and "r1.png looks defective" in result.stdout
    assert "r0.png looks" not in result.stdout
