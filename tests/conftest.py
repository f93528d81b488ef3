"""Fixtures that several test modules use."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from api_server import ApiServer
from PIL import Image

from iadr1_lib.course.sources import WorldSettings
from iadr1_lib.runs import load_profile

ROOT = Path(__file__).resolve().parents[1]

REQUIRED = [field for field in fields(WorldSettings) if field.default is MISSING]


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material and real samples that lies beside the project on some machines.

    Where it is missing the test is skipped; with IADR1_REQUIRE_SHARED=1 (make test-all) it fails.
    """
    folder = Path(os.environ.get("IADR1_SHARED", ROOT.parent / "shared")).expanduser()
    if not folder.is_absolute():
        folder = ROOT / folder
    if folder.is_dir():
        return folder
    reason = f"no reference material at {folder}: set IADR1_SHARED to its folder"
    if os.environ.get("IADR1_REQUIRE_SHARED") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def drawn_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The six mini benchmarks with a few pictures each."""
    from made_runs import draw_world

    return draw_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def finished_runs(drawn_world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of two finished runs, seeds 0 and 1."""
    from made_runs import write_run

    root = tmp_path_factory.mktemp("runs")
    return [write_run(root / f"smoke-s{seed}", drawn_world, seed).folder for seed in (0, 1)]


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's miniature (of transformers' real classes), made once."""
    import miniatures

    root = tmp_path_factory.mktemp("miniatures")
    return lambda family: root / family if (root / family).exists() else miniatures.save(family, root / family)


PROFILE = """
training:
  learning_rate: {value: 1e-4, source: "paper, section 4.1"}
  steps: {value: 3, source: "why: quick"}
world:
""" + "".join(f"  {field.name}: {{value: 4, source: 'why: small'}}\n" for field in REQUIRED)


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make a tiny project and point IADR1_ROOT and IADR1_RUNS at it.

    `course(**{"00_a": "print(1)", ...}, needs={"02_c": ["00_a"]})` writes those notebooks; each code is one
    cell after the parameters cell. Returns the project's folder; runs go to <folder>/out.
    """

    def make(
        needs: dict[str, list[str]] | None = None, makes: dict[str, list[str]] | None = None, **notebooks: str
    ) -> Path:
        project = tmp_path / "project"
        for folder in ("notebooks", "iadr1_lib", "data/profiles"):
            (project / folder).mkdir(parents=True, exist_ok=True)
        (project / "iadr1_lib" / "__init__.py").write_text("")
        (project / "data" / "profiles" / "tiny.yaml").write_text(PROFILE)
        for name, code in notebooks.items():
            given = {"needs": needs, "makes": makes}
            metadata = {key: by_name[name] for key, by_name in given.items() if by_name and name in by_name}
            write_notebook(project / "notebooks" / f"{name}.ipynb", code, metadata)
        monkeypatch.setenv("IADR1_ROOT", str(project))
        monkeypatch.setenv("IADR1_RUNS", str(project / "out"))
        return project

    return make


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """A local server that answers like Anthropic's and OpenAI's; the SDKs retry without long pauses."""
    for sdk in ("anthropic", "openai"):
        monkeypatch.setattr(f"{sdk}._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setenv("TEST_KEY", "secret")
    api = ApiServer()
    yield api
    api.close()


CHANGES: dict[str, dict[str, Any]] = {
    "model": {"name": "qwen2.5-vl-3b", "lora_rank": 8, "dtype": "float32"},
    "engine": {"config": "ddp", "processes": 2, "gpu_gib": 48},
    "pa_sft": {"max_pixels": 100_000, "num_train_epochs": 2.0},
    "sc_grpo": {
        **{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "per_device_step_size": None},
        **{"max_pixels": None},
        **{"beta": 0.0, "max_completion_length": 256, "max_steps": 9},
    },
}
SECTIONS = {name: load_profile("gpu").section(name) | change for name, change in CHANGES.items()}


@pytest.fixture
def big(course: Callable[..., Path]) -> Path:
    """A project with a profile `big`, which holds SECTIONS, and the table of sizes."""
    project = course()
    shown = {s: {k: {"value": v, "source": "why: a test"} for k, v in keys.items()} for s, keys in SECTIONS.items()}
    (project / "data" / "profiles" / "big.yaml").write_text(json.dumps(shown))
    (project / "data" / "model_sizes.json").write_text((ROOT / "data" / "model_sizes.json").read_text())
    return project


def write_notebook(path: Path, code: str, metadata: dict[str, list[str]] | None = None) -> None:
    """Write a notebook of a parameters cell and one code cell."""
    defaults = 'profile = "tiny"\nseed = 0\nrun_folder = None\nforce = False'
    parameters = nbformat.v4.new_code_cell(defaults, metadata={"tags": ["parameters"]})
    cells = [parameters, nbformat.v4.new_code_cell(textwrap.dedent(code))]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"iadr1": metadata} if metadata else {})
    nbformat.write(notebook, path)


def read_json(path: Path) -> dict:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A data set of one category: four normal test pictures, four with a scratch in the top left cell."""
    root = tmp_path / "parts"
    for folder in ("train/good", "test/good", "test/scratch", "ground_truth/scratch"):
        (root / "bolt" / folder).mkdir(parents=True)
    for number in range(4):
        normal = np.full((60, 60), 200 + number, np.uint8)
        marked = normal.copy()
        marked[5:12, 5:12] = 0
        Image.fromarray(normal).save(root / "bolt" / "test" / "good" / f"{number:03}.png")
        Image.fromarray(marked).save(root / "bolt" / "test" / "scratch" / f"{number:03}.png")
        mask = Image.fromarray(np.where(marked == 0, 255, 0).astype(np.uint8))
        mask.save(root / "bolt" / "ground_truth" / "scratch" / f"{number:03}_mask.png")
    Image.fromarray(np.full((60, 60), 190, np.uint8)).save(root / "bolt" / "train" / "good" / "000.png")
    return root
