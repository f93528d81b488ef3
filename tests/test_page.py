"""The report page: the tagged cells of the executed notebook 10, in one file that needs no other."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import ROOT
from typer.testing import CliRunner

from iadr1_lib.cli.app import app
from iadr1_lib.course import batch
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import interval_text
from iadr1_lib.reporting import agreement, build_page, measured, recorded
from iadr1_lib.runs import Run, record_metrics

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="


def write_notebook(folder: Path, executed: bool = True) -> None:
    """notebooks/10_report.ipynb with one tagged code cell that shows a picture, and one that is not tagged."""
    v4 = nbformat.v4
    shown = v4.new_output("display_data", {"image/png": PIXEL, "text/plain": "a figure"})
    printed = v4.new_output("stream", text="<b>chip</b>\n")
    count = 1 if executed else None
    tagged = {"metadata": {"tags": ["report"]}}
    cells = [
        v4.new_markdown_cell("## The run\n\nof **today**", **tagged),
        v4.new_code_cell(
            "secret_code()", outputs=[shown, printed] if executed else [], execution_count=count, **tagged
        ),
        v4.new_code_cell("more", outputs=[v4.new_output("stream", text="an exercise")], execution_count=2),
    ]
    (folder / "notebooks").mkdir(exist_ok=True)
    nbformat.write(v4.new_notebook(cells=cells), folder / "notebooks" / "10_report.ipynb")


@pytest.fixture
def run(finished_runs: list[Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_runs[0], tmp_path / "smoke-s0"))


def test_page_shows_tagged_cells_without_their_code_and_stands_alone(run: Path) -> None:
    write_notebook(run)
    assert build_page(run) == run / "report.html"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "profile smoke, seed 0" in page and "<strong>today</strong>" in page and PIXEL in page
    assert "secret_code" not in page and "an exercise" not in page
    assert "&lt;b&gt;chip" in page and "<b>chip" not in page
    assert "<script" not in page and "@import" not in page and "@media print" in page
    assert re.findall(r'(?:src|href)="(?!data:|https://|#)[^"]*"', page) == []


def test_what_is_missing_is_said_with_the_notebook_to_run(run: Path, tmp_path: Path) -> None:
    empty = Run("smoke", 0, tmp_path / "empty")
    with pytest.raises(UserError, match="08_evaluation"):
        build_page(empty.folder)
    record_metrics(empty, "01_the_problem", [{"name": "x", "value": 1}])
    with pytest.raises(UserError, match="08_evaluation"):
        build_page(empty.folder)
    with pytest.raises(UserError, match="10_report"):
        build_page(run)
    write_notebook(run, executed=False)
    with pytest.raises(UserError, match="--only 10"):
        build_page(run)


def test_command_writes_the_page_of_one_run(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(run)])
    assert done.exit_code == 0 and "no page" in done.output and not (run / "report.html").exists()
    elsewhere = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(run), "--page", str(elsewhere)]).exit_code == 1
    write_notebook(run)
    done = CliRunner().invoke(app, ["report", str(run)])
    assert done.exit_code == 0 and (run / "report.html").exists(), done.output
    assert CliRunner().invoke(app, ["report", str(run), "--page", str(elsewhere)]).exit_code == 0
    assert elsewhere.read_text() == (run / "report.html").read_text()
    several = CliRunner().invoke(app, ["report", str(run), str(run), "--page", str(elsewhere)])
    assert several.exit_code == 2 and "one run" in several.stderr


def test_notebook_10_makes_the_page_of_a_run_and_repeats_its_numbers(run: Path) -> None:
    (notebook,) = (one for one in batch.find_notebooks() if one.name == "10_report")
    assert batch.execute(notebook, Run("smoke", 0, run)) is None
    page = BeautifulSoup((run / "report.html").read_text(encoding="utf-8"), "html.parser")
    first = [element.name for element in page.body.find_all(["img", "b", "h2"])][:4]
    assert first == ["img", "img", "b", "h2"], "a picture, a chart and one sentence come first"
    assert not page.select("script") and all(len(str(picture["alt"])) > 40 for picture in page.select("img"))
    links = [str(link["href"]) for link in page.select("a")]
    assert len(set(links)) >= 15 and all(page.select_one(link) for link in links), "claims lead to rows of this page"
    text = " ".join(page.get_text(" ").split())
    rows = {row["name"]: row for row in recorded(run)["rows"]}
    for stage in ("base", "pa_sft", "sc_grpo", "control"):
        assert interval_text(rows[f"{stage}/balanced_accuracy/mean"]) in text
    claims = agreement(measured(recorded(run)))
    assert all(claim in text for claim in claims["claim"]) and f"Of {len(claims)} claims" in text
    assert "learning_rate" in text and "processor" in text, "the profile and the machine"
    reasons = [
        line.split("|")[1].strip() for line in (ROOT / "docs" / "deviations.md").read_text().splitlines() if "|" in line
    ]
    assert reasons[-1].replace("`", "")[:40] in text
