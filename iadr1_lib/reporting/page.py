"""The report: one HTML page of the cells of notebook 10 that are tagged `report`, as they were executed.

The page needs no other file and no network: figures are inside, code is left out, there is no script.
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
    from nbconvert import HTMLExporter

    block = recorded(folder)["provenance"]
    executed = require(folder / "notebooks" / f"{REPORT}.ipynb", REPORT)
    notebook = nbformat.read(executed, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if TAG in cell.metadata.get("tags", ())]
    if not all(cell.get("execution_count", 0) for cell in notebook.cells if cell.cell_type == "code"):
        raise UserError(f"{executed} was not executed to its end: run it again (iadr1 run --only 10)")
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
        embed_images=True,
    )
    body, _ = exporter.from_notebook_node(notebook)
    title = f"IAD-R1 in miniature: profile {block['parameters']['profile']}, seed {block['seed']}"
    template = Template(read_text(project_root() / "data" / "templates" / "report.html"))
    page = template.substitute(title=escape(title), body=body)
    return write_text(path or folder / "report.html", page)
