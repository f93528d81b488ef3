"""The report: one HTML page of the cells of notebook 10 that are tagged `report`, as they were executed.

The page needs no other file and no network: figures are inside, code is left out, there is no script.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

import nbformat

from iadr1_lib.errors import UserError
from iadr1_lib.files import write_text
from iadr1_lib.reporting.results import REPORT, recorded
from iadr1_lib.runs import require

TAG = "report"
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }}
h3 {{ font-size: 1rem; margin-top: 1.6rem; }} .anchor-link, .prompt {{ display: none; }}
img {{ max-width: 100%; height: auto; }} pre {{ white-space: pre-wrap; }} .jp-OutputArea-output {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: .6rem 0; font-size: .84rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .2rem .5rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }}
@media print {{
  @page {{ size: A4; margin: 14mm; }} body {{ font-size: 10pt; margin: 0; max-width: none; padding: 0; }}
  table {{ font-size: 7pt; }} th, td {{ padding: .08rem .2rem; }} .jp-OutputArea-output {{ overflow: visible; }}
  h2, h3 {{ break-after: avoid; }} thead {{ display: table-header-group; }} img, tr {{ break-inside: avoid; }}
}}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


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
        template_name="basic", exclude_input=True, exclude_anchor_links=True, embed_images=True, sanitize_html=False
    )
    body, _ = exporter.from_notebook_node(notebook)
    title = f"IAD-R1 in miniature: profile {block['parameters']['profile']}, seed {block['seed']}"
    return write_text(path or folder / "report.html", _PAGE.format(title=escape(title), body=body))
