"""The teacher's kit and its page: what is in it, what is said to be missing, and runs that move to other machines."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import ROOT
from typer.testing import CliRunner

from iadr1_lib.cli.app import app
from iadr1_lib.course import checkpoints, kit
from iadr1_lib.errors import UserError, WrongUse

PAGE = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
TEXT = (
    "## Loss\n\nIt is $x^2$, see [words](../docs/glossary.md).\n\n$$L = \\frac{1}{n}$$\n\nMore.\n\n**Take-away.** Less."
)
DETAILS = "<details><summary>Hint</summary>\n\nthe hint\n\n</details>"


def notebook(code: str, **outputs: Any) -> nbformat.NotebookNode:
    v4 = nbformat.v4
    return v4.new_notebook(
        cells=[v4.new_markdown_cell(TEXT), v4.new_markdown_cell(DETAILS), v4.new_code_cell(code, **outputs)]
    )


@pytest.fixture
def project(course: Callable[..., Path]) -> Path:
    """A project with notebooks 02 and 04, solutions of 04, and the frames of pages."""
    root = course(**{"02_data": "pass", "04_pa_sft": "pass"})
    nbformat.write(notebook("return None"), root / "notebooks" / "04_pa_sft.ipynb")
    (root / "notebooks" / "solutions").mkdir()
    nbformat.write(notebook("return solved"), root / "notebooks" / "solutions" / "04_pa_sft.ipynb")
    (root / "data" / "templates").symlink_to(ROOT / "data" / "templates")
    (root / "docs").symlink_to(ROOT / "docs")
    return root


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with pictures, records, a model of PA-SFT and notebook 04 executed; its predictions are missing."""
    folder = tmp_path / "runs of a teacher" / "tiny-s0"
    picture = folder / "world" / "pa_sft" / "000.png"
    for path, text in {
        picture: "pixels",
        folder / "expert_ad" / "pa_sft.json": json.dumps([{"images": str(picture), "messages": []}]),
        folder / "pa_sft" / "model" / "model.safetensors": "weights",
        folder / "pa_sft" / "unfinished" / "checkpoints" / "big": "no",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "notebooks").mkdir()
    shown = nbformat.v4.new_output("display_data", {"image/png": PIXEL})
    nbformat.write(notebook("secret()", outputs=[shown]), folder / "notebooks" / "04_pa_sft.ipynb")
    batch = {"notebook": "batch", "name": "04_pa_sft seconds", "value": 61.4, "unit": "s"}
    (folder / "metrics.json").write_text(json.dumps({"rows": [batch], "provenance": {}}))
    return folder


def test_a_kit_has_slides_handout_and_solutions_that_need_no_network(project: Path, run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = kit.make(tmp_path / "kit", run, say=said.append)
    pages = {path.relative_to(out).as_posix(): path.read_text(encoding="utf-8") for path in out.rglob("*.html")}
    for name, page in pages.items():
        soup = BeautifulSoup(page, "html.parser")
        loaded = [str(one.get("src") or one.get("href")) for one in soup.select("script[src], link[href], img[src]")]
        assert all(one.startswith("data:") or (out / name).parent.joinpath(one).exists() for one in loaded), name
        assert not [host for host in ("@import", "cdnjs", "unpkg", "jsdelivr") if host in page]
    slides = BeautifulSoup(pages["slides/04_pa_sft.html"], "html.parser")
    notes = [aside.extract().get_text() for aside in slides.select("aside.notes")]
    shown = slides.select_one(".slides").get_text(" ")  # type: ignore[union-attr]
    assert (
        "Loss" in shown and "see words" in shown and "Less." in shown and "More." not in shown and "More." in notes[0]
    )
    assert len(slides.select("math")) >= 2 and slides.select(f'img[src*="{PIXEL}"]') and "secret" not in shown
    handout, solutions = pages["handout/04_pa_sft.html"], pages["solutions/04_pa_sft.html"]
    assert (
        "return" in handout and "solved" not in handout and "<details>" in handout and "details:not([open])" in handout
    )
    assert "solved" in solutions and "<details open" in solutions and "<msup><mi>x</mi><mn>2</mn></msup>" in handout
    assert (
        "61" in pages["index.html"]
        and "world/dev" in pages["index.html"]
        and "Typical errors" in pages["teaching.html"]
    )
    assert any("no figures on the slides of 02" in line for line in said)


def test_without_a_run_or_solutions_the_kit_says_what_is_missing(project: Path, tmp_path: Path) -> None:
    for path in (project / "notebooks" / "solutions").iterdir():
        path.unlink()
    said: list[str] = []
    (tmp_path / "kit").mkdir()
    out = kit.make(tmp_path / "kit", say=said.append)
    assert not (out / "checkpoints").exists() and not (out / "solutions").exists()
    assert any("--run" in line for line in said) and any("no solutions" in line for line in said)


def test_nothing_is_written_where_an_input_is_wrong(
    project: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="not empty"):
        kit.make(run)
    with pytest.raises(UserError, match="holds no run"):
        kit.make(tmp_path / "kit", tmp_path / "nowhere")
    elsewhere = project / "picture.png"
    elsewhere.write_text("pixels")
    before.append(elsewhere)
    (run / "expert_ad" / "sc_grpo.json").write_text(json.dumps([{"image": str(elsewhere)}]))
    before.append(run / "expert_ad" / "sc_grpo.json")
    with pytest.raises(UserError, match="outside the run folder"):
        kit.make(tmp_path / "kit", run)
    monkeypatch.setattr(kit, "PACKAGES", ("no_such_package",))
    with pytest.raises(UserError, match="no_such_package"):
        kit.make(tmp_path / "kit")
    assert sorted(tmp_path.rglob("*")) == sorted(before)


def test_checkpoints_put_a_run_where_a_learner_needs_it(project: Path, run: Path, tmp_path: Path) -> None:
    packed = tmp_path / "kit" / "checkpoints"
    (project / "notebooks" / "03_expert_ad.ipynb").write_bytes((project / "notebooks" / "04_pa_sft.ipynb").read_bytes())
    (project / "notebooks" / "07_sc_grpo.ipynb").write_bytes((project / "notebooks" / "04_pa_sft.ipynb").read_bytes())
    said = list(checkpoints.pack(run, packed))
    assert any("sc_grpo" in line and "--only 07" in line for line in said)
    learner = project / "out" / "tiny-s0"
    assert str(learner) in checkpoints.unpack(tmp_path / "kit", "04")
    (row,) = json.loads((learner / "expert_ad" / "pa_sft.json").read_text())
    assert row["images"] == str(learner / "world" / "pa_sft" / "000.png") and Path(row["images"]).is_file()
    assert not (learner / "pa_sft").exists(), "04 makes it"
    (learner / "expert_ad" / "pa_sft.json").write_text("mine")
    assert "2 files were there" in checkpoints.unpack(tmp_path / "kit", "07")
    assert (learner / "expert_ad" / "pa_sft.json").read_text() == "mine"
    assert (learner / "pa_sft" / "model" / "model.safetensors").exists() and not list(learner.rglob("unfinished"))


def test_checkpoints_that_cannot_be_used_are_refused(project: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoints"):
        checkpoints.unpack(tmp_path, "04")
    list(checkpoints.pack(run, tmp_path / "checkpoints"))
    with pytest.raises(WrongUse):
        checkpoints.unpack(tmp_path, "13")
    with pytest.raises(WrongUse, match="name one"):
        checkpoints.unpack(tmp_path, "02,04")
    with zipfile.ZipFile(tmp_path / "checkpoints" / "02_data.zip", "a") as archive:
        archive.writestr("tiny-s0/../../escaped.txt", "x")
    with pytest.raises(UserError, match="outside the run"):
        checkpoints.unpack(tmp_path, "04")
    (tmp_path / "checkpoints" / "02_data.zip").write_text("cut")
    with pytest.raises(UserError, match="copy the kit again"):
        checkpoints.unpack(tmp_path, "04")


def test_wheels_are_downloaded_by_one_command_and_their_size_is_said(tmp_path: Path) -> None:
    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert {"download", str(ROOT / "constraints.txt"), f"{ROOT}[dev]"} <= set(command)
        (Path(command[command.index("-d") + 1]) / "torch.whl").write_bytes(bytes(2_500_000))
        return subprocess.CompletedProcess(command, 0)

    line = kit.download_wheels(tmp_path / "wheels", ROOT, pip)
    assert "1 packages, 2.5 MB" in line and "--no-index --find-links KIT/wheels" in line
    failed = subprocess.CompletedProcess([], 1, "", "a\nERROR: no network")
    with pytest.raises(UserError, match="no network"):
        kit.download_wheels(tmp_path / "again", ROOT, lambda *_, **__: failed)


@pytest.mark.parametrize("words", ["", "--out x --unpack y", "--unpack y", "--out x --start 05"])
def test_options_that_do_not_belong_together_are_wrong_use(words: str) -> None:
    assert CliRunner().invoke(app, ["kit", *words.split()]).exit_code == 2


# ------------------------------------------------------------------------------------------------ docs/teaching.md


def table(heading: str) -> list[list[str]]:
    """The rows of the table below a heading."""
    section = PAGE.split(f" {heading}\n")[1].split("\n#")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.mark.parametrize(("path", "minutes"), [("three hours", 180), ("six hours", 360)])
def test_the_timetables_fill_their_hours(path: str, minutes: int) -> None:
    rows = table(f"Timetable, {path}")
    assert sum(int(row[0]) for row in rows) == minutes
    known = {path.name[:2] for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    assert {row[1] for row in rows} <= known | {"–"}
    assert {row[0] for row in table("Questions to discuss")} == known


def test_typical_errors_are_what_the_commands_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IADR1_ROOT", str(ROOT))
    monkeypatch.setenv("IADR1_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("iadr1_lib.training.launch.sees_gpu", lambda: False)
    Path("part.png").write_text("no picture")
    Path("full").mkdir()
    Path("full", "x").write_text("x")
    errors = [
        found
        for row in table("Typical errors, and what they look like")
        if (found := re.match(r"`iadr1 (.+?)`: (.+)", row[1]))
    ]
    assert len(errors) > 8
    for found in errors:
        done = CliRunner().invoke(app, shlex.split(found[1]))
        assert done.exit_code in (1, 2) and found[2] in " ".join(done.stderr.split()), f"{found[0]}\n{done.stderr}"


# ------------------------------------------------------------------------------------------------ ways to install


def test_all_ways_to_install_give_the_same_to_pip() -> None:
    def asked(line: str) -> list[str]:
        return [word for word in shlex.split(line.split("pip install")[1]) if word != "--no-cache-dir"]

    (readme,) = re.findall(r"^pip install .*", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    docker = (ROOT / ".devcontainer" / "Dockerfile").read_text(encoding="utf-8")
    (in_image,) = re.findall(r"^RUN (pip install .*)", docker, re.MULTILINE)
    given = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"][-1]["pip"]
    (wanted,) = re.findall(r"`(pip install -c [^`]*)`", (ROOT / "docs" / "install.md").read_text(encoding="utf-8"))
    assert asked(readme) == asked(in_image) == asked(kit.INSTALL) == asked(wanted) == " ".join(given).split()


def test_the_container_is_one_that_can_be_built() -> None:
    folder = ROOT / ".devcontainer"
    lines = [
        line for line in (folder / "Dockerfile").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"
    ]
    assert {line.split()[0] for line in lines} <= {"FROM", "RUN", "WORKDIR", "COPY", "USER", "EXPOSE", "CMD"}
    assert lines[0].startswith("FROM python:3.11") and json.loads(lines[-1].removeprefix("CMD "))[0] == "jupyter"
    settings = json.loads((folder / "devcontainer.json").read_text(encoding="utf-8"))
    assert (folder / settings["build"]["dockerfile"]).exists() and settings["build"]["context"] == ".."
    assert f"WORKDIR {settings['workspaceFolder']}" in lines and f"USER {settings['remoteUser']}" in lines
    assert settings["forwardPorts"] == [8888] and "EXPOSE 8888" in lines
