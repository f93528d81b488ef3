"""The teacher's kit: slides, handout, solutions, checkpoints of a run, and packages for a room without network.

Handouts are made from notebooks/, solutions from notebooks/solutions/. Figures and checkpoints are those of a run.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from iadr1_lib.course import checkpoints
from iadr1_lib.course.batch import find_notebooks
from iadr1_lib.course.checkpoints import size_of
from iadr1_lib.errors import UserError, one_line
from iadr1_lib.files import read_text, write_text
from iadr1_lib.reporting import page_of
from iadr1_lib.runs import project_root, read_metrics_file

PACKAGES = ("pyreveal", "latex2mathml")
INSTALL = 'pip install -c constraints.txt -e ".[dev]"'
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$([^$\n]+?)\$(?!\d)", re.DOTALL)
SHOWN = ("$$", "1. ", "- ")  # blocks that a slide shows besides the first paragraph
LOCAL_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]*\)")


def make(out: Path, run: Path | None = None, wheels: bool = False, say: Callable[[str], None] = print) -> Path:
    """Write the kit to `out`, whole or not at all, and say what is in it and what is missing.

    Args:
        run: folder of a finished run, for figures, measured times and checkpoints.
        wheels: download all packages of the course, for this system and this Python.

    Raises:
        UserError: `out` is in use, the run cannot be packed, a package is missing, or the download failed.
    """
    _require(out, run)
    work = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        lines = list(_parts(work, run, wheels))
        index = "\n".join([*_contents(work, run), "", *(f"- {line}" for line in lines)])
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(index)])
        page = page_of(notebook, "IAD-R1 in miniature: the teacher's kit")
        write_text(work / "index.html", page)
        if out.exists():
            out.rmdir()
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for line in lines:
        say(line)
    return out


def _require(out: Path, run: Path | None) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there and not empty: name a new folder for --out")
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"the kit needs {' and '.join(missing)}: {INSTALL}")
    if run is not None:
        checkpoints.require_packable(run)


def _parts(out: Path, run: Path | None, wheels: bool) -> Iterator[str]:
    """Write one part of the kit after the other, and yield a line on each."""
    root = project_root()
    if wheels:
        yield download_wheels(out / "wheels", root)
    sources = [notebook.path for notebook in find_notebooks()]
    executed = [run / "notebooks" / path.name if run else path for path in sources]
    shown = [path if path.exists() else source for path, source in zip(executed, sources, strict=True)]
    yield _write_slides(out / "slides", shown)
    if run is None:
        yield "no figures on the slides, and no checkpoints: name a finished run (--run)"
    elif without := ",".join(path.stem[:2] for path, source in zip(shown, sources, strict=True) if path == source):
        yield f"no figures on the slides of {without}: not executed in the run (iadr1 run --only {without})"
    for path in sources:
        _write_page(out / "handout" / f"{path.stem}.html", path)
    yield f"handout/: {len(sources)} notebooks to print, with stubs and without outputs"
    if solved := sorted((root / "notebooks" / "solutions").glob("*.ipynb")):
        for path in solved:
            _write_page(out / "solutions" / f"{path.stem}.html", path, unfolded=True)
        yield f"solutions/: {len(solved)} notebooks with solutions, for you"
    else:
        yield "no solutions/: notebooks/solutions is missing, and solutions that stand in notebooks/ are in the handout"
    for name in ("teaching", "glossary"):
        text = read_text(root / "docs" / f"{name}.md")
        write_text(out / f"{name}.html", page_of(_text(text.partition("\n")[2]), text.partition("\n")[0].lstrip("# ")))
    yield "teaching.html: timetable, typical errors, questions; glossary.html: the words of the course"
    if run:
        yield from checkpoints.pack(run, out / "checkpoints")


def _contents(out: Path, run: Path | None) -> list[str]:
    """A table of the pages of each notebook, and of the seconds that it took in the run."""
    rows = read_metrics_file(run / "metrics.json", {"rows": []})["rows"] if run else []
    seconds = {row["name"].removesuffix(" seconds"): row["value"] for row in rows if row["notebook"] == "batch"}
    table = ["| notebook | | | | seconds, executed on the machine of the run |", "|---|---|---|---|---|"]
    for page in sorted((out / "slides").glob("*.html")):
        kinds = ("slides", "handout", "solutions")
        cells = [f"[{kind}]({kind}/{page.name})" if (out / kind / page.name).exists() else "–" for kind in kinds]
        cells.append(f"{seconds[page.stem]:.0f}" if page.stem in seconds else "–")
        table.append(f"| {page.stem} | {' | '.join(cells)} |")
    return [*table, "", "[Teaching the course](teaching.html), [glossary](glossary.html)"]


# ------------------------------------------------------------------------------------------------ pages


def with_formulas(text: str) -> str:
    """Markdown with its formulas as MathML, which browsers show without a network; code stays as it is."""
    from latex2mathml.converter import convert

    def mathml(found: re.Match[str]) -> str:
        return convert(found[1] or found[2], display="block" if found[1] else "inline")

    pieces = re.split(r"(```.*?```|`[^`]*`)", text, flags=re.DOTALL)
    return "".join(piece if number % 2 else FORMULA.sub(mathml, piece) for number, piece in enumerate(pieces))


def _text(text: str) -> NotebookNode:
    """A notebook of one Markdown cell; links to files that are not in the kit become plain words."""
    cell = nbformat.v4.new_markdown_cell(with_formulas(LOCAL_LINK.sub(r"\1", text)))
    return nbformat.v4.new_notebook(cells=[cell])


def _write_page(path: Path, source: Path, unfolded: bool = False) -> None:
    notebook, title = nbformat.read(source, as_version=4), source.stem
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_formulas(LOCAL_LINK.sub(r"\1", cell.source))
            cell.source = cell.source.replace("<details>", "<details open>") if unfolded else cell.source
    if notebook.cells[0].source.startswith("# "):  # the page shows its title itself
        title, _, notebook.cells[0].source = notebook.cells[0].source.removeprefix("# ").partition("\n")
    write_text(path, page_of(notebook, title, exclude_output=True))


def slides_of(notebook: NotebookNode, title: str) -> NotebookNode:
    """A slide for each heading with its first paragraph, lists and formulas, one for each take-away and each figure.

    The whole text of a Markdown cell stands in the speaker notes (key S). Without a heading there is only the title.
    """
    cells: list[NotebookNode] = []

    def add(source: str, kind: str) -> None:
        cell = nbformat.v4.new_markdown_cell(with_formulas(LOCAL_LINK.sub(r"\1", source)))
        cell.metadata["slideshow"] = {"slide_type": kind}
        cells.append(cell)

    lacks_paragraph = False
    for cell in notebook.cells:
        for block in re.split(r"\n\s*\n", cell.source.strip()) if cell.cell_type == "markdown" else ():
            if block.startswith("#"):
                add(block, "subslide" if block.startswith("###") and cells else "slide")
                lacks_paragraph = True
            elif block.startswith("**Take-away"):
                add(block, "subslide" if cells else "slide")
            elif cells and (block.startswith(SHOWN) or lacks_paragraph):
                add(block, "-")  # goes on with the slide
                lacks_paragraph = lacks_paragraph and block.startswith(SHOWN) or block.endswith(":")
        if cell.cell_type == "markdown" and cells:
            add(cell.source, "notes")
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}) and cells:
                figure = nbformat.v4.new_code_cell("", outputs=[output])
                figure.metadata["slideshow"] = {"slide_type": "subslide"}
                cells.append(figure)
    if not cells:
        add(f"# {title}", "slide")
    return nbformat.v4.new_notebook(cells=cells)


def _write_slides(out: Path, notebooks: Sequence[Path]) -> str:
    from nbconvert import SlidesExporter

    spec = importlib.util.find_spec("pyreveal")  # of this package only reveal.js is used
    reveal = Path(next(iter(spec.submodule_search_locations or ()))) / "revealjs" / "dist" if spec else Path()
    for name in ("reveal.js", "reveal.css", "plugin/notes.js", "theme/white.css"):
        target = out / "reveal" / ("dist" if name.endswith(".css") else "") / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(reveal / name, target)
    templates = [str(project_root() / "data" / "templates")]
    exporter = SlidesExporter(template_name="slides", extra_template_basedirs=templates, exclude_input=True)
    exporter.reveal_url_prefix, exporter.reveal_theme = "reveal", "white"
    for path in notebooks:
        shown = slides_of(nbformat.read(path, as_version=4), path.stem)
        page, _ = exporter.from_notebook_node(shown, {"metadata": {"name": path.stem}})
        write_text(out / f"{path.stem}.html", page)
    return f"slides/: {len(notebooks)} decks, to open in a browser without network; S shows the speaker notes"


# ------------------------------------------------------------------------------------------------ packages


def download_wheels(
    out: Path, root: Path, run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run
) -> str:
    """Download every package of the course for this system and this Python; returns a line with their size."""
    out.mkdir(parents=True)
    wanted = [f"{root}[dev]", "pip", "setuptools>=77"]  # setuptools builds the project itself
    command = [sys.executable, "-m", "pip", "download", "--quiet", "-c", str(root / "constraints.txt"), "-d", str(out)]
    done = run([*command, *wanted], capture_output=True, text=True)
    if done.returncode:
        reason = one_line((done.stderr.strip().splitlines() or ["pip said nothing"])[-1])
        raise UserError(f"pip could not download the packages ({reason}): check the network, or leave out --wheels")
    files = [path for path in out.iterdir() if path.is_file()]
    offline = INSTALL.replace("install", "install --no-index --find-links KIT/wheels")
    return f"wheels/: {len(files)} packages, {size_of(files)}; on each machine, in a copy of the project: {offline}"
