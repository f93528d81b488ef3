"""The exercises of the notebooks: one form, made from sources that hold the solutions."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from conftest import ROOT, read_json
from nbformat import v4

from iadr1_lib.course import answered

SCRIPT = ROOT / "notebooks" / "solutions" / "generate.py"
SOURCES = sorted(SCRIPT.parent.glob("[0-9]*.ipynb"))
TASK = re.compile(r"### Exercise (\d+) · .+\n\n\*(\d+) minutes, (?:easy|medium|hard)\.\* \S")
FOLDED = "<details><summary>"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tagged(cell: nbformat.NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", ())


# ---------------------------------------------------------------------------------------------- from source to stub


def test_a_stub_keeps_signatures_names_and_comments(generate: ModuleType) -> None:
    solution = '''
import math

wanted = math.sqrt(
    2
)
step = 1 / 54  # in points
step += 1


def area(radius: float) -> float:
    """Of a circle."""
    half = radius / 2

    return 4 * math.pi * half**2
'''
    made = generate.stub(solution)
    assert made == (
        "wanted = None  # your answer\n\n\nstep = None  # in points\n\n\n"
        'def area(radius: float) -> float:\n    """Of a circle."""\n    return None  # your code here'
    )
    names: dict[str, object] = {}
    exec(made, names)
    assert names["wanted"] is None and names["area"](1.0) is None  # type: ignore[operator]


@pytest.mark.parametrize("solution", ["def f():\n    return 1", "print(1)"])
def test_a_solution_without_a_stub_is_refused(generate: ModuleType, solution: str) -> None:
    with pytest.raises(ValueError):
        generate.stub(solution)


def test_drift_between_source_and_notebook_is_found_and_repaired(tmp_path: Path) -> None:
    sources = tmp_path / "solutions"
    sources.mkdir()
    cells = [v4.new_markdown_cell("text"), v4.new_code_cell("x = 1", metadata={"tags": ["solution"]})]
    nbformat.write(v4.new_notebook(cells=cells), sources / "00_a.ipynb")

    def run(*words: str) -> int:
        command = [sys.executable, str(SCRIPT), "--folder", str(sources), *words]
        return subprocess.run(command, capture_output=True).returncode

    assert run("--check") == 1 and not (tmp_path / "00_a.ipynb").exists()
    assert run() == 0 and run("--check") == 0
    made = nbformat.read(tmp_path / "00_a.ipynb", as_version=4)
    assert [cell.source for cell in made.cells] == ["text", "x = None  # your answer"]
    made.cells[0].source = "changed by hand"
    nbformat.write(made, tmp_path / "00_a.ipynb")
    assert run("--check") == 1


def test_the_notebooks_are_made_from_their_sources() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# ---------------------------------------------------------------------------------------------- without an answer


def test_an_open_exercise_fails_for_a_learner_and_is_passed_over_by_the_batch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert answered(0, "", True) and answered([], "", False)
    with pytest.raises(AssertionError, match="not answered yet. Count the rows."):
        answered(None, "Count the rows.", True)
    assert not answered(None, "Count the rows.", False)
    assert "not answered" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- one form


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_exercises_have_one_form(path: Path) -> None:
    """Task, one to three hints, perhaps given cells, the solution, the check; minutes add up to the first cell's."""
    cells = nbformat.read(path, as_version=4).cells
    solutions = [place for place, cell in enumerate(cells) if tagged(cell, "solution")]
    minutes = 0
    for number, place in enumerate(solutions, start=1):
        task = next(cell for cell in reversed(cells[:place]) if cell.cell_type == "markdown")
        found = TASK.match(task.source)
        assert found and int(found[1]) == number, task.source
        assert 1 <= task.source.count(FOLDED) <= 3, task.source
        minutes += int(found[2])
        check = cells[place + 1]
        assert tagged(check, "check"), check.source
        assert re.search(r"^if answered\(.+?\bexercises,?\s*\):\n", check.source, re.DOTALL | re.MULTILINE), (
            check.source
        )
        assert "\nassert" not in f"\n{check.source}", "what is asserted needs an answer"
    assert solutions and f"exercises take {minutes} minutes" in " ".join(cells[0].source.split())
    assert sum(tagged(cell, "check") for cell in cells) == len(solutions)


def test_notebooks_07_and_06_have_one_grpo_step() -> None:
    cells = [cell.source for path in SOURCES for cell in nbformat.read(path, as_version=4).cells]
    steps = [source for source in cells if "def grpo_step(" in source]
    assert len(steps) == 2 and steps[0] == steps[1]


def test_minutes_of_long_cells_are_those_of_the_shipped_run() -> None:
    rows = {row["name"]: row for row in read_json(ROOT / "data" / "reference" / "mini" / "metrics.json")["rows"]}
    minutes = {stage: round(rows[f"{stage}/seconds"]["seeds"]["0"] / 60) for stage in ("pa_sft", "sc_grpo", "control")}
    texts = {path.stem[:2]: " ".join(nbformat.read(path, as_version=4).cells[0].source.split()) for path in SOURCES}
    assert f"{minutes['pa_sft']} minutes on two cores for seed 0" in texts["04"]
    assert f"SC-GRPO took {minutes['sc_grpo']} minutes and the control {minutes['control']} for seed 0" in texts["07"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_each_notebook_asks(path: Path) -> None:
    """Before cells whose output answers, and five times at its end."""
    texts = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    assert sum(text.count("**Predict, then run.**") for text in texts) >= 2
    (quiz,) = (text for text in texts if text.startswith("## Quiz"))
    assert quiz.count(FOLDED) == len(re.findall(r"^\*\*\d\.\*\* ", quiz, re.MULTILINE)) == 5
    assert "**May be skipped**" in texts[0]
