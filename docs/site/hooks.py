"""The pages of the site: README.md, docs/*.md and the executed notebooks of a run, made for MkDocs in memory.

`IADR1_SITE_RUN` names the folder of the run (by default runs/mini-s0). Nothing is loaded from the network by a reader:
figures become files, formulas MathML.
"""

from __future__ import annotations

import base64
import html
import os
import posixpath
import re
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
RUN = Path(os.environ.get("IADR1_SITE_RUN") or ROOT / "runs" / "mini-s0").resolve()
ROOMS, GLOSSARY = ("notebooks/", "docs/"), "docs/glossary.md"
HIDDEN = "injected-parameters"  # papermill's cell: paths of the machine
FENCE = re.compile(r"(^(`{3,}).*?^\2`*$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures. Raises PluginError where the run has no executed notebooks."""
    notebooks = sorted((RUN / "notebooks").glob("[0-9]*.ipynb"))
    if not notebooks:
        raise PluginError(f"{RUN} has no executed notebooks: make them with `iadr1 run`, or name another run with RUN=")
    docs = [path for path in sorted((ROOT / "docs").iterdir()) if path.suffix in (".md", ".png", ".jpg")]
    pages = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in (ROOT / "README.md", *docs)}
    for path in notebooks:
        pages |= notebook_pages(nbformat.read(path, as_version=4), path.stem)
    if (RUN / "report.html").exists():
        pages["report.html"] = (RUN / "report.html").read_bytes()
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    course, more = ([name for name in pages if name.startswith(room) and name.endswith(".md")] for room in ROOMS)
    config.nav = [{"Start": "README.md"}, {"Notebooks": course}, {"Glossary": GLOSSARY}]
    config.nav.append({"Reference": [name for name in more if name != GLOSSARY]})
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """What Jupyter and GitHub read, as MkDocs reads it; links to files that are not on the site become their words."""

    def link(found: re.Match[str]) -> str:
        mark, words, target, anchor = found.groups()
        target = re.sub(r"\.ipynb$", ".md", target)
        place = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), target))
        return f"{mark}[{words}]({target}{anchor or ''})" if files.get_file_from_path(place) else words

    parts = FENCE.split(text)  # text, a block of code, its fence, text …
    for index in range(0, len(parts), 3):
        part = parts[index].replace("<details>", '<details markdown="1">')
        part = re.sub(
            r"(?m)^(?![-*|>#\s]|\d+\. )(.+)\n(?=(?:[-*]|1\.) )", r"\1\n\n", part
        )  # a list needs an empty line
        parts[index] = LINK.sub(link, part)
    if page.file.src_uri == "README.md" and files.get_file_from_path("report.html"):
        parts[-1] += "\n\n[The report of this run](report.html)\n"
    return "".join(part for index, part in enumerate(parts) if index % 3 != 2)


def on_page_content(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas become MathML, which browsers draw by themselves."""

    def formula(found: re.Match[str]) -> str:
        kind = "inline" if found[1] == "span" else "block"
        return str(convert(html.unescape(found[2]), display=kind))

    return FORMULA.sub(formula, text)


# ------------------------------------------------------------------------------------------------ notebooks


def notebook_pages(notebook: NotebookNode, stem: str) -> dict[str, bytes]:
    """Path on the site -> content: the page of a notebook in Markdown, and its pictures."""
    pictures: dict[str, bytes] = {}
    parts, heading = [], stem
    for cell in CoalesceStreamsPreprocessor().preprocess(notebook, {})[0].cells:
        if cell.cell_type == "markdown":
            heading = ([*re.findall(r"^#+ (.*)", cell.source, re.MULTILINE)] or [heading])[-1]
            parts.append(cell.source)
        elif cell.cell_type == "code" and HIDDEN not in cell.metadata.get("tags", ()):
            parts.append(f"```python\n{cell.source}\n```")
            shown = [_shown(output, pictures, stem, heading) for output in cell.outputs]
            if any(shown):
                parts.append('<div class="output" markdown="1">\n\n' + "\n\n".join(filter(None, shown)) + "\n\n</div>")
    return {f"notebooks/{stem}.md": "\n\n".join(parts).encode()} | pictures


def _shown(output: NotebookNode, pictures: dict[str, bytes], stem: str, heading: str) -> str:
    """An output in Markdown; a picture is added to `pictures`."""
    if output.output_type == "stream":
        return _printed(output.text) if output.name == "stdout" else ""
    data: dict[str, Any] = output.get("data", {})
    if "image/png" in data:
        name = f"{stem}_{len(pictures)}.png"
        pictures[f"notebooks/{name}"] = base64.b64decode(data["image/png"])
        described = output.metadata.get("image/png", {}).get("alt") or f"figure in the section {heading}"
        return f"![{re.sub(r'[][`$<>]', '', described)}]({name})"
    if "text/html" in data:
        lines = [line for line in _local(data["text/html"]).splitlines() if line.strip()]  # an empty one ends the block
        return "\n".join(lines)
    return _local(data["text/markdown"]) if "text/markdown" in data else _printed(data.get("text/plain", ""))


def _printed(text: str) -> str:
    return f"````text\n{_local(text).rstrip()}\n````" if text.strip() else ""


def _local(text: str) -> str:
    """Without the folders of the machine that the run was made on."""
    return text.replace(f"{RUN.parent}/", "runs/").replace(f"{ROOT}/", "")
