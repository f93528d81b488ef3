"""HTML pages that need no other file and no network: figures are inside, there is no script, and they print well.

The report is one, of the cells of notebook 10 that are tagged `report`, as they were executed, without their code.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template

import nbformat

from iadr1_lib.errors import UserError
from iadr1_lib.files import read_text, write_text
from iadr1_lib.reporting.results import REPORT, recorded
from iadr1_lib.runs import project_root, require

TAG = "report"


def build_page(folder: Path, path: Path | None = None) -> Path:
    """Write the page of a run, made from its executed notebook 10, by default as report.html into the run's folder.

    Raises UserError where the evaluation or the notebook has not been executed.
    """
    block = recorded(folder)["provenance"]
    executed = require(folder / "notebooks" / f"{REPORT}.ipynb", REPORT)
    notebook = nbformat.read(executed, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if TAG in cell.metadata.get("tags", ())]
    if not all(cell.get("execution_count", 0) for cell in notebook.cells if cell.cell_type == "code"):
        raise UserError(f"{executed} was not executed to its end: run it again (iadr1 run --only 10)")
    title = f"IAD-R1 in miniature: profile {block['parameters']['profile']}, seed {block['seed']}"
    return write_text(path or folder / "report.html", page_of(notebook, title, exclude_input=True, embed_images=True))


def page_of(notebook: nbformat.NotebookNode, title: str, **options: bool) -> str:
    """A notebook's cells and outputs as one page; `options` are those of nbconvert's TemplateExporter."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name="basic",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
        **options,
    )
    body, _ = exporter.from_notebook_node(notebook)
    template = Template(read_text(project_root() / "data" / "templates" / "report.html"))
    return template.substitute(title=escape(title), body=body)
