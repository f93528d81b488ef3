"""The course as a site: it needs no network, says what its figures show, and can be searched from the file system."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from conftest import ROOT

from iadr1_lib.course import batch
from iadr1_lib.runs import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("material"), reason='the extra `site` is missing: pip install -e ".[site]"'),
]


def build(run: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(ROOT / "docs" / "site" / "mkdocs.yml")]
    environment = os.environ | {"IADR1_SITE": str(site), "IADR1_SITE_RUN": str(run)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(finished_runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the course's notebooks, of which the report was executed."""
    folder = tmp_path_factory.mktemp("site")
    run = Path(shutil.copytree(finished_runs[0], folder / "smoke-s0"))
    (run / "notebooks").mkdir(exist_ok=True)
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        shutil.copy(path, run / "notebooks")
    (report,) = (one for one in batch.find_notebooks() if one.name == "10_report")
    assert batch.execute(report, Run("smoke", 0, run)) is None
    done = build(run, folder / "site")
    assert done.returncode == 0, done.stderr
    return folder / "site"


def pages(site: Path) -> Iterator[tuple[Path, BeautifulSoup]]:
    for path in sorted(site.rglob("*.html")):
        if path.name != "404.html":  # its paths begin at the root of a server
            yield path, BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def test_all_notebooks_and_docs_are_there_and_nothing_of_the_machine(site: Path) -> None:
    for source in [*(ROOT / "notebooks").glob("[0-9]*.ipynb"), *(ROOT / "docs").glob("*.md")]:
        assert (site / source.relative_to(ROOT).with_suffix(".html")).exists(), source
    for path, _ in pages(site):
        assert str(site.parent) not in path.read_text(encoding="utf-8"), path


def test_nothing_is_loaded_from_the_network(site: Path) -> None:
    for path, page in pages(site):
        loaded = [tag.get("src") for tag in page.select("[src]")] + [tag["href"] for tag in page.select("link[href]")]
        assert not [url for url in loaded if str(url).startswith(("http", "//"))], path
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", path.read_text(encoding="utf-8")), path


def test_every_figure_says_what_it_shows(site: Path) -> None:
    for path, page in pages(site):
        assert all(str(picture.get("alt", "")).strip() for picture in page.select("img")), path
    report = BeautifulSoup((site / "notebooks" / "10_report.html").read_text(encoding="utf-8"), "html.parser")
    figures = [str(picture["alt"]) for picture in report.select(".output img")]
    assert len(figures) >= 3 and any("balanced accuracy" in text for text in figures)


def test_links_lead_to_pages_and_places_of_the_site(site: Path) -> None:
    names = {path: {tag["id"] for tag in page.select("[id]")} for path, page in pages(site)}
    for path, page in pages(site):
        for link in page.select("a[href]"):
            url = urlsplit(str(link["href"]))
            if url.scheme:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{path.name} links to {link['href']}"
            if url.fragment and not url.fragment.startswith("__"):
                assert unquote(url.fragment) in names[target], f"{path.name} links to {link['href']}"


def test_formulas_are_drawn_by_the_browser_itself(site: Path) -> None:
    page = BeautifulSoup((site / "notebooks" / "06_grpo_by_hand.html").read_text(encoding="utf-8"), "html.parser")
    assert len(page.select("math")) > 20 and page.select('math[display="block"] mfrac')
    for code in page.select("code, pre"):
        code.decompose()
    assert not re.search(r"\$\S+\$|\\frac|\\\(", page.article.get_text())


def test_the_search_knows_every_notebook(site: Path) -> None:
    script = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    found = {entry["location"].split("#")[0] for entry in json.loads(script.removeprefix("var __index = "))["docs"]}
    assert {f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")} <= found
    assert "docs/glossary.html" in found


def test_a_browser_opens_a_page_offline_and_searches(site: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium on the path: apt-get install chromium")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=20000"]
    url = (site / "notebooks" / "06_grpo_by_hand.html").as_uri() + "?q=advantage"
    done = subprocess.run([chromium, *options, url], capture_output=True, text=True, timeout=300)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line], done.stderr
    assert "md-search-result__item" in done.stdout, "the search found nothing"


def test_a_run_without_notebooks_is_refused_in_one_sentence(tmp_path: Path) -> None:
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1 and "has no executed notebooks" in done.stderr and "Traceback" not in done.stderr
