"""The inspector page: what it makes of findings (the models are faked), and the whole page in a real browser."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_cli import complaint, iadr1

from iadr1_lib.course import inspector
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation.inspection import Finding

TAGGED = (
    "<think>I look. A scratch lies at the top left. The right is torn <b>. So the item is normal.</think>"
    "<location>top left</location><type>scratch</type><answer>Yes</answer>"
)


class Stand:
    """In place of an Inspector: one finding for every picture."""

    def __init__(self, finding: Finding) -> None:
        self.finding, self.references = finding, [Image.new("RGB", (9, 9))]

    def judge(self, pictures: list[Image.Image]) -> list[Finding]:
        return [self.finding] * len(pictures)


def stages(heat: Any = None, remark: str | None = None) -> list[inspector.Stage]:
    base = Finding("Yes frame <wood>", False, 0.3, heat, remark)
    tuned = Finding(TAGGED, True, 0.8, heat, remark)
    return [inspector.Stage(name, Stand(one)) for name, one in zip(inspector.ABOUT, (base, tuned, tuned), strict=True)]  # type: ignore[arg-type]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "part.png"
    Image.new("I;16", (1500, 900), 700).save(path)
    return path


def test_each_stage_has_a_card_with_verdict_place_and_claims(picture: Path) -> None:
    shown = inspector.judge(stages(), picture)
    page = inspector.answers_html(shown, 0.5)
    assert page.count("<article") == 3 == page.count(">Defective<") and "Heat map" not in page
    assert page.count("scratch at the top left") == 2 and page.count("marked: top left") == 2
    assert "Yes frame &lt;wood&gt;" in page and "torn &lt;b&gt;" in page
    assert '<span class="agrees">✓&nbsp;A scratch lies at the top left.' in page
    assert '<span class="contradicts">✗&nbsp;So the item is normal.' in page
    assert '<span class="">I look.' in page and page.count("limit of length") == 2
    assert shown.findings[0][0].inspector.references == []  # those of the last question are gone


def test_the_threshold_decides_on_p_yes_alone(picture: Path) -> None:
    shown = inspector.judge(stages(), picture)
    counts = [inspector.answers_html(shown, limit).count("above the threshold") for limit in (0.0, 0.5, 0.9)]
    assert counts == [3, 2, 0] and inspector.answers_html(shown, 0.9).count(">Defective<") == 3


def test_a_good_picture_is_handed_on_and_the_heat_map_stands_once(picture: Path) -> None:
    asked = stages(np.eye(18), "the reference shows something else")
    shown = inspector.judge(asked, picture, picture)
    assert all(len(stage.inspector.references) == 1 for stage in asked)
    page = inspector.answers_html(shown, 0.5)
    assert page.count("Heat map</p>") == 1 == page.count("shows something else") and "unlike the good picture" in page


def test_a_file_that_is_no_picture_gives_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no")
    with pytest.raises(UserError, match=r"x\.png"):
        inspector.judge(stages(), tmp_path / "x.png")


def test_only_what_was_dropped_on_the_page_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    dropped = tmp_path / "uploads" / "x.png"
    assert inspector._path({"path": str(dropped)}) == dropped.resolve()
    for outside in (tmp_path / "x.png", tmp_path / "uploads" / ".." / "x.png"):
        with pytest.raises(UserError, match="was not dropped"):
            inspector._path({"path": str(outside)})


def test_samples_are_drawn_with_what_they_show(tmp_path: Path) -> None:
    samples = inspector.draw_samples(tmp_path)
    assert len(samples) == len(inspector.SAMPLES) and any("no defect" in name for name in samples)
    assert all(Path(path).exists() for paths in samples.values() for path in paths)


def test_what_the_command_needs_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "requirements-app.txt" in complaint(iadr1("app"))
    monkeypatch.setattr(inspector, "require_gradio", lambda: None)
    assert "run.json" in complaint(iadr1("app", "--run", tmp_path))


# ------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture
def address() -> Iterator[str]:
    """Of the page that `iadr1 app` opens; at the end it is stopped as a user would, and leaves in peace."""
    pytest.importorskip("gradio", reason="Gradio is missing: pip install --no-deps -r requirements-app.txt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "iadr1_lib.cli", "app", "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        try:
            assert f"http://127.0.0.1:{port}" in line, line
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.mark.slow
def test_the_page_answers_in_a_browser(address: str, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on the path: apt-get install chromium")
    [(drawn, good), *_] = inspector.draw_samples(tmp_path).values()
    faults: list[str] = []
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        local = (address, "data:", "blob:")
        page.on("request", lambda asked: None if asked.url.startswith(local) else faults.append(asked.url))
        page.goto(address)
        page.locator("#picture input[type=file]").set_input_files(drawn)
        page.get_by_text("unlike the rest of the same picture").wait_for()
        assert page.locator("[data-stage]").count() == 3 and page.locator(".verdict").count() == 4
        page.locator("#good input[type=file]").set_input_files(good)
        page.get_by_text("unlike the good picture").wait_for()

        threshold = page.get_by_role("spinbutton")
        for value, words in (("1", "within the threshold: good"), ("0", "above the threshold: defective")):
            threshold.fill(value)
            threshold.press("Enter")
            page.locator(".limit", has_text=words).nth(2).wait_for()
        page.set_viewport_size({"width": 390, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390  # nothing sticks out on a phone
        page.set_viewport_size({"width": 1280, "height": 900})
        page.get_by_text("no defect").click()
        page.wait_for_function("document.querySelectorAll('[data-stage] .good').length > 0")
        (tmp_path / "bad.png").write_text("no picture")
        page.locator("#picture button").first.click()  # the cross
        page.locator("#picture input[type=file]").set_input_files(tmp_path / "bad.png")
        page.get_by_text("bad.png is not a picture that can be read").wait_for()
        if target := os.environ.get("IADR1_SCREENSHOT"):  # docs/inspector.jpg is made so
            threshold.fill("0.5")
            page.get_by_text(": abrasion").first.click()
            page.wait_for_timeout(5000)
            page.screenshot(path=target, full_page=True)
        browser.close()
    assert not faults
