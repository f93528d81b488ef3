"""README and docs say what is true: numbers, commands, files."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import typer
from conftest import ROOT
from typer.testing import CliRunner

from iadr1_lib.cli.app import app
from iadr1_lib.reporting import PAPER_SETS, documents, paper_table

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
FOLDERS = ("docs", "data", "notebooks")
PAPERS = sorted([*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))])
PAPERS = [path for path in PAPERS if path.parent.name != "templates"]  # these become docs/results.md
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def in_code(text: str) -> list[str]:
    """Lines of code blocks, and what stands between backticks in running text."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return lines + [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", rest)]


def test_results_are_those_of_the_shipped_metrics() -> None:
    before, start, rest = README.partition(documents.MARKS[0])
    block, end, after = rest.partition(documents.MARKS[1])
    assert start and end, "the lines that mark the results are gone"
    assert block.strip() == documents.readme_block(), "renew it: iadr1 report --readme"
    assert DOCS["results"] == documents.results_page(), "renew it: iadr1 report --readme"
    # Numbers with a decimal point outside the marks would be results that nothing checks.
    prose = before + after + "".join(DOCS[name] for name in ("evaluation", "rewards", "limits", "expert-ad"))
    assert re.findall(r"(?<![\d.])\d+\.\d+ ?(?:%|points|GiB|min)", prose) == []


def test_the_readme_is_read_in_minutes() -> None:
    assert len(README.splitlines()) <= 120


def test_notebooks_hold_no_result_that_nothing_checks() -> None:
    """Results in a notebook's prose would grow old: cells compute them. What is left is checked here, one by one."""
    stages = paper_table(4)
    stages["mean"] = stages[PAPER_SETS].mean(axis=1)
    means = stages.pivot(index=["model", "parameters"], columns="stage", values="mean")
    added = means["SC-GRPO"] - means["PA-SFT"]
    known = {
        "0.8 %": ("03_expert_ad", True),  # where a small defect ends, by definition
        "6.7 points": ("07_sc_grpo", round(added.max(), 1) == 6.7 and 0.15 < added.min() < 0.35),
    }
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        for number in re.findall(r"(?<![\d.])\d+\.\d+ ?(?:%|points|GiB|min\b)", prose):
            where, holds = known.get(number, ("", False))
            assert where == path.stem and holds, f"{path.name}: {number} is a result that nothing checks"


def test_what_is_said_of_the_reading_is_what_the_sheet_holds() -> None:
    sheet = pd.read_csv(ROOT / "data" / "reference" / "expert_ad" / "reading_sheet.csv")
    words = " ".join(DOCS["expert-ad"].split())
    normal, defective = (sheet["label"] == "no").sum(), (sheet["label"] == "yes").sum()
    assert f"{len(sheet)} of the records, sampled at random ({normal} normal, {defective} defective)" in words
    assert f"{(sheet['untrue'] == 0).sum()} are true in every statement" in words
    assert "in the mean; the three others" in words and (sheet["untrue"] > 0).sum() == 3
    assert f"they have {sheet['statements'].mean():.1f} in the mean" in words


def test_what_is_said_of_the_real_pictures_is_what_was_measured() -> None:
    def shipped_rows(name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads((ROOT / "data" / "reference" / "mini" / name).read_text())["rows"]
        return rows

    def measured(name: str) -> dict[str, dict[str, Any]]:
        return {row["name"].split("/")[1]: row for row in shipped_rows(name)}

    words = " ".join(DOCS["evaluation"].split())
    small = ("screw", "metal_plate", "capsules", "kolektor", "magnetic_tile")
    found = {(name, stage): measured(f"real_{name}_{stage}.json") for name in small for stage in ("pa_sft", "sc_grpo")}

    def above(stage: str) -> set[str]:
        return {name for name in small if found[name, stage]["balanced_accuracy"]["low"] > 50}

    assert above("sc_grpo") == {"metal_plate"} and "of SC-GRPO lies above 50 on the metal plates alone" in words
    assert above("pa_sft") == {"magnetic_tile"} and "that of PA-SFT on the magnetic tiles alone" in words
    for name in ("screw", "capsules"):
        assert all(found[name, stage]["accuracy_normal"]["value"] == 0 for stage in ("pa_sft", "sc_grpo"))
    dagm = measured("real_dagm_sc_grpo.json")["accuracy_defective"]
    assert "Of seven defective pictures of DAGM" in words and "SC-GRPO finds two" in words
    assert (dagm["n"], round(dagm["n"] * dagm["value"] / 100)) == (7, 2)
    assert found["kolektor", "sc_grpo"]["accuracy_defective"]["value"] == 0
    assert "place is rarely right" in words and all(one["location"]["value"] < 25 for one in found.values())
    (size,) = [row for row in shipped_rows("sanity_metal_plate.json") if "/file_size/" in row["name"]]
    assert size["value"] >= found["metal_plate", "sc_grpo"]["balanced_accuracy"]["value"]

    cells = {stage: measured(f"real_elpv_{stage}.json")["balanced_accuracy"] for stage in ("base", "pa_sft", "sc_grpo")}
    assert "with intervals above 50" in words and all(one["low"] > 50 and one["value"] < 60 for one in cells.values())
    assert "SC-GRPO no higher than PA-SFT" in words and cells["sc_grpo"]["value"] <= cells["pa_sft"]["value"]
    assert "2,072 of them" in words and all(one["n"] == 2072 for one in cells.values())
    simple = shipped_rows("sanity_elpv.json")
    for predictor in ("file_size", "mean_brightness"):
        reached = [row["value"] for row in simple if predictor in row["name"]]
        assert reached and min(reached) > max(one["value"] for one in cells.values())


def test_what_is_said_of_one_shot_is_what_was_measured() -> None:
    def measured(shots: str, stage: str, metric: str) -> float:
        path = ROOT / "data" / "reference" / "mini" / f"mini_{shots}_shot_{stage}.json"
        rows = json.loads(path.read_text())["rows"]
        return float(next(row["value"] for row in rows if row["name"].endswith(f"/{metric}/mean")))

    words = " ".join(DOCS["limits"].split())
    assert "answers worse in every stage and names types much worse" in words
    for stage in ("base", "pa_sft", "sc_grpo"):
        assert measured("one", stage, "balanced_accuracy") < measured("zero", stage, "balanced_accuracy")
    for stage in ("pa_sft", "sc_grpo"):
        assert measured("one", stage, "type") < measured("zero", stage, "type") - 20


def test_make_verbs_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    verbs = {match for path in PAPERS for match in re.findall(r"`make ([\w-]+)", path.read_text("utf-8"))}
    verbs |= {line.split()[1] for line in in_code(README) if line.startswith("make ")}
    assert {"reproduce", "test", "help"} <= verbs
    for verb in verbs:
        assert re.search(rf"^{verb}:", makefile, re.MULTILINE), f"make {verb} does not exist"


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_options_that_are_named_exist(path: Path) -> None:
    for line in in_code(path.read_text(encoding="utf-8")):
        words = shlex.split(line) if line.startswith("iadr1 ") else []
        if words:
            assert words[1] in COMMANDS, f"{line}: there is no such command"
            known = {
                option
                for parameter in COMMANDS[words[1]].params
                for option in (*parameter.opts, *parameter.secondary_opts)
            }
            unknown = {word for word in words[2:] if word.startswith("--")} - known
            assert not unknown, f"{line}: unknown {unknown}"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_commands_explain_themselves_and_are_named_in_the_docs(name: str) -> None:
    done = CliRunner().invoke(app, [name, "--help"])
    assert done.exit_code == 0 and "Usage" in done.output
    assert any(f"iadr1 {name}" in text for text in (README, *DOCS.values()))


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_linked_exist(path: Path) -> None:
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{path.name} links {target}"


def first_column(heading: str) -> list[str]:
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [re.sub(r"[\[`]|\].*", "", row.split("|")[1]).strip() for row in rows]


def test_the_readme_lists_all_notebooks_and_profiles() -> None:
    notebooks = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
    assert first_column("Notebooks") == notebooks
    assert all(f"`{path.stem}`" in README for path in (ROOT / "data" / "profiles").glob("*.yaml"))


def test_each_word_of_the_glossary_stands_in_the_notebooks_that_it_names() -> None:
    cells = {
        path.stem[:2]: nbformat.read(path, as_version=4).cells for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")
    }
    texts = {number: "\n".join(cell.source for cell in own).lower() for number, own in cells.items()}
    rows = [line.strip("|").split("|") for line in DOCS["glossary"].splitlines() if line.startswith("| ")][1:]
    for word, _, notebooks in rows:
        for plain in word.partition("(")[0].strip().lower().split(", "):
            assert all(plain in texts[number] for number in notebooks.strip().split(", ")), f"{plain}: {notebooks}"
    assert all("(../docs/glossary.md)" in text for text in texts.values())


def test_each_deviation_has_a_reason_and_a_place() -> None:
    lines = [line for line in DOCS["deviations"].splitlines() if line.startswith("|")]
    profile = (ROOT / "data" / "profiles" / "mini.yaml").read_text()
    modules = {path.stem for folder in ("iadr1_lib", "data") for path in (ROOT / folder).rglob("*")}
    for line in lines[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == 5 and all(cells[:4]), line
        for name in re.findall(r"`(\w+)[^`]*`", cells[4]):
            known = name in modules or re.search(rf"^{name}:", profile, re.MULTILINE)
            assert known, f"{cells[0]}: there is no {name}"


def test_first_folders_of_data_have_a_readme_and_a_row() -> None:
    said = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for folder in sorted(path for path in (ROOT / "data").iterdir() if path.is_dir()):
        assert f"`{folder.name}/`" in said
