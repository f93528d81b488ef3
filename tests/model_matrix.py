"""Run the matrix of families and write its results into docs/models.md: python tests/model_matrix.py"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- matrix -->", "<!-- /matrix -->"
TEST = "test_both_stages_prediction_and_scoring"


def results(report: Path) -> dict[tuple[str, str], str]:
    """(family, case) -> what pytest's report says: passed or failed."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("name", "")
        if name.startswith(TEST) and case.find("skipped") is None:
            family, _, rest = name[len(TEST) + 1 : -1].partition("-")
            broken = case.find("failure") is not None or case.find("error") is not None
            found[family, rest] = "failed" if broken else "passed"
    return found


def table(found: dict[tuple[str, str], str]) -> str:
    """One row per family, one column per case (pictures, what is trained, precision of the weights)."""
    families = list(dict.fromkeys(family for family, _ in found))
    cases = list(dict.fromkeys(case for _, case in found))
    count = {"1": "1 picture", "2": "2 pictures"}
    titles = [", ".join([count[case[0]], *case.split("-")[1:]]) for case in cases]
    lines = [f"| class | {' | '.join(titles)} |", "|---" * (len(cases) + 1) + "|"]
    lines += [f"| `{f}` | {' | '.join(found.get((f, case), 'not run') for case in cases)} |" for f in families]
    return "\n".join(lines)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            f"--junitxml={report}",
            str(ROOT / "tests" / "test_families.py"),
        ]
        status = subprocess.run([*command, "-k", TEST], cwd=ROOT).returncode
        found = results(report)
    page = ROOT / "docs" / "models.md"
    said = page.read_text(encoding="utf-8")
    before, rest = said.split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
