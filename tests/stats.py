"""Print the size of library and tests: `make stats`. Lines with and without docstrings, comments and blanks."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORE = ("answer.py", "records.py", "rewards", "training", "models", "evaluation")


def code_lines(source: str) -> int:
    """Lines that hold code: neither docstring nor comment nor blank."""
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            lines -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def measure(paths: list[Path]) -> tuple[int, int, int]:
    """Number of files, lines, and lines of code."""
    sources = [path.read_text(encoding="utf-8") for path in paths]
    return len(paths), sum(len(source.splitlines()) for source in sources), sum(map(code_lines, sources))


def main() -> None:
    library = sorted((ROOT / "iadr1_lib").rglob("*.py"))
    tests = sorted((ROOT / "tests").rglob("*.py"))
    rooms = sorted({path.relative_to(ROOT / "iadr1_lib").parts[0] for path in library})
    parts = {
        room: [path for path in library if path.relative_to(ROOT / "iadr1_lib").parts[0] == room] for room in rooms
    }
    core = [path for path in library if path.relative_to(ROOT / "iadr1_lib").parts[0] in CORE]
    parts |= {"library": library, "of it the core": core, "tests": tests}
    print(f"{'':20}{'files':>7}{'lines':>8}{'code':>8}")
    for name, paths in parts.items():
        print("{:20}{:7}{:8}{:8}".format(name, *measure(paths)))
    for name, paths in (("library", library), ("tests", tests)):
        lines, longest = max((len(path.read_text(encoding="utf-8").splitlines()), path) for path in paths)
        print(f"longest file of the {name}: {longest.relative_to(ROOT)}, {lines} lines")


if __name__ == "__main__":
    main()
