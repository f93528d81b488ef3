"""What the project stands on: dependencies, the make verbs, hooks, and rules for every file and notebook."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

COURSE = [*range(12)]
LONGEST_CELL = 25
TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".ipynb", ".json", ".csv", ".jsonl", ".cfg", ".html", ""}
NOTEBOOKS = sorted(path for path in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def pyproject() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


GPU_EXTRAS = {"gpu", "vllm"}


def requirements() -> list[Requirement]:
    project = pyproject()
    extras = [line for lines in project.get("optional-dependencies", {}).values() for line in lines]
    return [Requirement(line) for line in [*project["dependencies"], *extras]]


def pins(file: str = "constraints.txt") -> dict[str, str]:
    lines = [line.split(";")[0] for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "constraints are exact and without paths"
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}


# --------------------------------------------------------------------------------------- dependencies


def test_each_requirement_has_a_tested_version_that_satisfies_it() -> None:
    tested, project = pins() | pins("requirements-app.txt"), pyproject()
    resolved = pins("constraints-gpu.txt")
    for extra, lines in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        for requirement in map(Requirement, lines):
            version = (resolved if extra in GPU_EXTRAS else tested)[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), requirement


def test_what_decides_a_number_is_the_same_with_the_gpu_extras() -> None:
    tested, resolved = pins(), pins("constraints-gpu.txt")
    assert {name for name in tested.keys() & resolved.keys() if tested[name] != resolved[name]} == {"numpy", "lark"}
    for requirement in map(Requirement, pyproject()["dependencies"]):
        assert requirement.specifier.contains(resolved[canonicalize_name(requirement.name)]), requirement


def test_the_page_moves_no_tested_version() -> None:
    assert not pins().keys() & pins("requirements-app.txt").keys()


def test_imports_are_asked_for() -> None:
    names = metadata.packages_distributions()
    asked = {canonicalize_name(requirement.name) for requirement in requirements()}
    for path in (ROOT / "iadr1_lib").rglob("*.py"):
        for name in imported(ast.parse(path.read_text())):
            if name not in sys.stdlib_module_names and name != "iadr1_lib":
                given_by = {canonicalize_name(one) for one in names.get(name, [name])}  # optional ones may be missing
                assert given_by & asked, f"{path.name} imports {name}: {given_by} is not in pyproject.toml"


def imported(tree: ast.AST) -> set[str]:
    """Top-level names that a module imports from outside."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_heavy_packages_are_imported_in_their_rooms_only() -> None:
    """So that notebooks on data and rewards start at once, and so does the command line (see test_runs)."""
    heavy = {"torch", "transformers", "trl", "peft", "accelerate"}
    rooms = ("models/", "training/", "evaluation/", "runs/environment.py", "runs/run.py")
    for path in (ROOT / "iadr1_lib").rglob("*.py"):
        name = path.relative_to(ROOT / "iadr1_lib").as_posix()
        assert name.startswith(rooms) or not imported(ast.parse(path.read_text())) & heavy, name


def conda(file: str = "environment.yml") -> tuple[list[str], list[str]]:
    """The conda part and the pip part of an environment file."""
    asked = yaml.safe_load((ROOT / file).read_text())["dependencies"]
    pip = [entry["pip"] for entry in asked if isinstance(entry, dict)]
    assert len(pip) == 1
    return [entry for entry in asked if isinstance(entry, str)], pip[0]


def test_conda_environment_asks_for_python_pip_and_this_project() -> None:
    python = pyproject()["requires-python"].removeprefix(">=")
    for name, extras in (("", "dev"), ("-gpu", "dev,gpu")):
        packages, pip = conda(f"environment{name}.yml")
        assert "pip" in packages and f"python={python}" in packages
        assert pip == [f"-c constraints{name}.txt", f"-e .[{extras}]"]


@pytest.mark.slow
def test_conda_environments_pip_part_resolves(tmp_path: Path) -> None:
    _, pip = conda()
    file = tmp_path / "requirements.txt"
    file.write_text("\n".join(line.replace("-c ", f"-c {ROOT}/").replace("-e .", f"-e {ROOT}") for line in pip))
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "-r", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "torch-2.13.0" in done.stdout


# --------------------------------------------------------------------------------------- make, hooks, CI


def make(*words: str) -> str:
    return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_each_make_verb_has_an_equivalent_in_help() -> None:
    verbs = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert verbs is not None
    told = make("help")
    for verb in set(verbs.group(1).split()) - {"help"}:
        line = re.search(rf"^make {verb} +(.+)$", told, re.MULTILINE)
        assert line is not None, f"make help does not tell {verb}"
        assert re.search(r"iadr1|pip|pytest|ruff|python (tests|notebooks)|rm -rf|make lint", line.group(1)), verb
    assert "iadr1 run --profile mini" in make("-n", "reproduce")


def test_hooks_are_local_and_their_tools_are_installed_with_dev() -> None:
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    dev = {Requirement(line).name for line in pyproject()["optional-dependencies"]["dev"]}
    tools = {hook["entry"].split()[0] for hook in repos[0]["hooks"]}
    assert tools == {"ruff", "mypy", "nbstripout", "python"} and tools - {"python"} <= dev


def test_ci_runs_both_suites_and_stops_at_the_first_failure() -> None:
    path = ROOT / ".ci" / "run"
    lines = path.read_text().splitlines()
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in lines
    assert lines.index("make test") < lines.index("make test-all")


# --------------------------------------------------------------------------------------- every file


def project_files() -> list[Path]:
    """All files that are, or are about to be, part of the project."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to the project")
    return [path for name in done.stdout.splitlines() if (path := ROOT / name).is_file()]


def test_no_file_names_a_place_on_one_machine() -> None:
    place = re.compile(r"(?<![\w.~-])/(work|root|home|Users|mnt)/\w")
    for path in project_files():
        if path.suffix in TEXT:
            found = place.search(path.read_text(encoding="utf-8", errors="replace"))
            assert found is None, f"{path.relative_to(ROOT)} names {found.group()}" if found else ""


def test_what_runs_leave_is_ignored() -> None:
    ignored = ("runs/mini-s0/metrics.json", ".venv/x", "iadr1_lib/__pycache__/x", "notebooks/.ipynb_checkpoints/x")
    for name, status in [*((name, 0) for name in ignored), ("iadr1_lib/runs/new.py", 1)]:
        done = subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", name])
        if done.returncode == 128:
            pytest.skip("not a git checkout")
        assert done.returncode == status, name


# --------------------------------------------------------------------------------------- every notebook


def test_the_course_is_complete() -> None:
    numbers = [int(path.stem[:2]) for path in NOTEBOOKS if path.parent.name == "notebooks"]
    assert numbers == COURSE


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, "outputs are stored: make format"
            assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source
            forbidden = re.search(r"pip install|^\s*[!%]|chdir\(|login\(|push_to_hub\(", cell.source, re.MULTILINE)
            assert forbidden is None, cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_takes_from_the_library_is_there(path: Path) -> None:
    """In a second instead of the minutes until the cell is reached."""
    cells = nbformat.read(path, as_version=4).cells
    tree = ast.parse("\n".join(cell.source for cell in cells if cell.cell_type == "code"))
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "iadr1_lib":
            exec(ast.unparse(node), names)  # raises ImportError for what is not there
    for node in ast.walk(tree):
        module = names.get(node.value.id) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) else 0
        assert not inspect.ismodule(module) or hasattr(module, node.attr), ast.unparse(node)


@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.parent.name == "notebooks"], ids=lambda path: path.stem
)
def test_parameters_are_commented_literals(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1, "one cell is tagged parameters"
    names = []
    for statement in ast.parse(tagged[0].source).body:
        assert isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        ast.literal_eval(statement.value)  # raises for anything but a literal
        names.append(statement.targets[0].id)
        assert "#" in tagged[0].source.splitlines()[statement.lineno - 1], f"{names[-1]} lacks its comment"
    assert {"profile", "seed", "run_folder", "force"} <= set(names)
