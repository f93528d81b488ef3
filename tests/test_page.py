"""The report as one HTML page: it stands alone, repeats the recorded numbers, says what is missing, prints whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from bs4.element import Tag
from made_runs import SKILL, write_run
from PIL import ImageFont
from typer.testing import CliRunner

from iadr1_lib import runs
from iadr1_lib.answer import build_answer
from iadr1_lib.cli.app import app
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import scoring
from iadr1_lib.reporting import page, paper_tables, report

A4_POINTS = 595 - 2 * 14 * 72 / 25.4  # what the page's margins leave of A4
LETTERS = ImageFont.load_default(75)  # ten times the size of a table's letters in print
PADDING = 2 * 0.2 * 12 + 0.5  # of a table's cell in print, in points, and a little for its letters' own edges


@pytest.fixture(scope="module")
def one(finished_runs: list[Path]) -> str:
    return page.build_report(runs.Run("smoke", 0, finished_runs[0])).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def several(finished_runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return page.build_page(finished_runs, tmp_path_factory.mktemp("page") / "p.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page.build_page([], tmp_path_factory.mktemp("page") / "p.html").read_text(encoding="utf-8")


@pytest.fixture(params=["one", "several", "shipped"])
def text(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


def test_page_stands_alone(text: str) -> None:
    assert re.findall(r'(?:src|href)="(?!data:|https://|#)[^"]*"', text) == []
    assert "<script" not in text and "@import" not in text and "@media print" in text


def test_contents_lead_to_every_section(text: str) -> None:
    soup = BeautifulSoup(text, "html.parser")
    links = [str(link["href"]) for link in soup.select("nav a")]
    sections = [section for section in soup.select("section") if section.h2]
    assert links == [f"#{section['id']}" for section in sections] and len(set(links)) == len(links) == 9
    for section in sections:
        assert section.select(".source") or section["id"] == "answers-right-and-wrong", section["id"]


def test_page_of_a_run_repeats_its_recorded_numbers(one: str, finished_runs: list[Path]) -> None:
    recorded = {row["name"]: row for row in report.recorded(finished_runs[0])["rows"]}
    for stage in SKILL:
        assert scoring.level(recorded[f"{stage}/balanced_accuracy/mean"]) in one
    assert scoring.signed(recorded["difference/sc_grpo-pa_sft/balanced_accuracy"]) in one
    assert one.count("<figure>") >= 7


def test_page_of_several_seeds_repeats_the_pooled_numbers(several: str, finished_runs: list[Path]) -> None:
    rows = {row["name"]: row for row in report.pool_seeds(finished_runs)}
    assert scoring.level(rows["sc_grpo/balanced_accuracy/mean"]) in several
    for group in ("seed 0", "seed 1", "pooled"):
        assert scoring.signed(rows[f"difference/sc_grpo-pa_sft/balanced_accuracy/{group}"]) in several


def test_page_holds_all_five_tables_with_paper_and_ours_apart(text: str) -> None:
    soup = BeautifulSoup(text, "html.parser")
    section = soup.find(id="tables-1-to-5")
    assert isinstance(section, Tag)
    captions = [caption.get_text() for caption in section.select("caption")]
    assert len(captions) == 10 and captions[0::2] == ["The paper"] * 5 and len(set(captions[1::2])) == 1
    for table, caption in zip(section.select("table"), captions, strict=True):
        heads = {head.get_text() for head in table.select("thead th")}
        mini = {name for name in heads if name.startswith("mini-")}
        assert not (mini and caption == "The paper") and not (heads & set(paper_tables.PAPER_SETS) and mini)


def test_every_verdict_stands_on_the_page(shipped: str) -> None:
    found = paper_tables.agreement(paper_tables.measured(report.shipped_metrics()))
    section = BeautifulSoup(shipped, "html.parser").find(id="what-agrees-with-the-paper")
    assert isinstance(section, Tag)
    lines = [[cell.get_text() for cell in line.select("td")] for line in section.select("tbody tr")]
    assert [(line[0], line[-1]) for line in lines] == list(zip(found["claim"], found["verdict"], strict=True))


def test_no_table_is_cut_in_print(text: str) -> None:
    """A column is at least as wide as its longest word; all of them must fit between the margins of A4."""
    for table in BeautifulSoup(text, "html.parser").select("table"):
        widths: dict[int, float] = {}
        for line in table.select("tr"):
            for place, cell in enumerate(line.select("th, td")):
                for code in cell.select("code"):  # these break anywhere
                    code.decompose()
                words = re.split(r"\s+|(?<=-)", cell.get_text())
                widest = max(LETTERS.getlength(word) / 10 for word in words)
                widths[place] = max(widths.get(place, 0), widest + PADDING)
        assert sum(widths.values()) < A4_POINTS, list(table.stripped_strings)[:4]


def test_page_says_what_is_missing(drawn_world: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", drawn_world, 0, stages=("base", "pa_sft"), logs=False)
    text = page.build_report(run).read_text(encoding="utf-8")
    assert "Not in this run: SC-GRPO, control" in text


def test_page_escapes_what_models_and_machines_say(finished_runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = report.recorded(finished_runs[0])
    metrics["provenance"]["hardware"]["processor"] = "<b>chip</b>"
    monkeypatch.setattr(report, "recorded", lambda folder: metrics)
    monkeypatch.setattr(page, "figures", lambda subject, ours: {})
    text = page.build_report(runs.Run("smoke", 0, finished_runs[0])).read_text(encoding="utf-8")
    assert "&lt;b&gt;chip" in text and "<b>chip" not in text


def test_report_before_the_evaluation_names_the_notebook(tmp_path: Path) -> None:
    run = runs.Run("smoke", 0, tmp_path)
    with pytest.raises(UserError, match="08_evaluation"):
        page.build_report(run)
    runs.record_metrics(run, "01_the_problem", [{"name": "x", "value": 1}])
    with pytest.raises(UserError, match="08_evaluation"):
        page.build_report(run)


# -------------------------------------------------------------------------------------------------- gallery


def test_gallery_shows_each_kind_of_answer(finished_runs: list[Path]) -> None:
    answers = report.predictions(finished_runs[0])["sc_grpo"]
    judged = scoring.judge(answers)
    soup = BeautifulSoup(page.gallery(answers, each=2), "html.parser")
    heads = [head.get_text() for head in soup.select("h3")]
    counts = [int(re.findall(r"(\d+) of", head)[0]) for head in heads]
    assert len(heads) == 4 and sum(counts) == len(answers)
    assert counts[0] + counts[2] == judged["correct"].sum()
    assert len(soup.select(".card")) == sum(min(2, count) for count in counts)
    assert page.gallery(answers, each=2) == page.gallery(answers, each=2)


def test_long_reasoning_is_whole_and_harmless(finished_runs: list[Path]) -> None:
    answers = report.predictions(finished_runs[0])["sc_grpo"]
    row = answers[answers["label"] == "yes"].head(1).copy()
    long = "At the left the surface is <even> & plain. " * 60
    row["raw"] = [build_answer(long, "yes", "left", "hole")]
    html = page.gallery(row)
    assert " ".join(long.split()) in " ".join(BeautifulSoup(html, "html.parser").get_text().split())
    assert "<even>" not in html
    row["raw"] = ["I <cannot> tell."]
    html = page.gallery(row)
    assert "not readable" in html and "I &lt;cannot&gt; tell." in html


# -------------------------------------------------------------------------------------------------- command


def test_command_shows_the_verdicts_and_writes_the_page(finished_runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    done = CliRunner().invoke(app, ["report", *map(str, finished_runs), "--page", str(out)])
    assert done.exit_code == 0, done.output
    assert "SC-GRPO beats PA-SFT" in done.output and "claims" in done.output
    assert "Table 5" in out.read_text(encoding="utf-8")
