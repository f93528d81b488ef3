"""Make notebooks/NN_*.ipynb from notebooks/solutions/NN_*.ipynb: the same cells, with stubs where answers stand.

    python notebooks/solutions/generate.py            write them
    python notebooks/solutions/generate.py --check    exit 1 if one differs from its source

In a source the answer to an exercise is a code cell tagged `solution`. Its stub keeps the signature and docstring of
each function and the name and comment of each assignment; everything else in the cell is left out.
"""

from __future__ import annotations

import argparse
import ast
import copy
from pathlib import Path

import nbformat

SOURCES = Path(__file__).parent


def stub(solution: str) -> str:
    """What a learner starts from. ValueError if a function has no docstring, or if there is nothing to answer."""
    lines, parts = solution.splitlines(), []
    for node in ast.parse(solution).body:
        if isinstance(node, ast.FunctionDef):
            if ast.get_docstring(node) is None:
                raise ValueError(f"{node.name} needs a docstring: it is what the learner reads")
            head = "\n".join(lines[node.lineno - 1 : node.body[0].end_lineno])
            parts.append(f"{head}\n    return None  # your code here")
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            comment = lines[node.lineno - 1].partition("  # ")[2] or "your answer"
            parts.append(f"{node.targets[0].id} = None  # {comment}")
    if not parts:
        raise ValueError("a cell tagged solution defines a function or a name")
    return ("\n\n\n" if any(part.startswith("def ") for part in parts) else "\n").join(parts)


def without_solutions(source: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy of a source, with a stub in place of each solution."""
    made = copy.deepcopy(source)
    made.metadata.setdefault("iadr1", {})["generated"] = "from the notebook of this name in solutions/"
    for cell in made.cells:
        if "solution" in cell.metadata.get("tags", ()):
            cell.source = stub(cell.source)
            cell.metadata["tags"] = ["exercise"]
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the notebooks from their sources, which hold the solutions.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a notebook is not up to date")
    parser.add_argument("--folder", type=Path, default=SOURCES, help="the sources; notebooks go into its parent folder")
    given = parser.parse_args()
    stale = []
    for path in sorted(given.folder.glob("[0-9]*.ipynb")):
        made, target = without_solutions(nbformat.read(path, as_version=4)), given.folder.parent / path.name
        if not target.exists() or nbformat.read(target, as_version=4) != made:
            stale.append(path.name)
            if not given.check:
                nbformat.write(made, target)
    said = "not made from solutions/ as it is now: run make generate" if given.check else "written"
    print("\n".join(f"{name}: {said}" for name in stale) or "all notebooks are up to date")
    return int(given.check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
