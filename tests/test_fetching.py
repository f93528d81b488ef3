"""Fetching models and data sets: sizes, disk, resumption, the recorded commit. The hub is a stand-in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled
from test_cli import complaint, iadr1

from iadr1_lib.data import hub
from iadr1_lib.models import fetching
from iadr1_lib.runs import load_profile

MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"
FILES = {"config.json": 30, "model-1.safetensors": 1000, "tokenizer.json": 50, "pytorch_model.bin": 5000, "a.png": 7}
FETCH = "fetch", "--profile", "big"


class Hub:
    """Answers for every name; `limit` breaks a download off after so many files."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self.online = True
        self.written: list[str] = []

    def info(self, name: str, files_metadata: bool = False, **options: Any) -> SimpleNamespace:
        if not self.online:
            raise httpx.ConnectError("no route")
        files = [SimpleNamespace(rfilename=f, size=n if files_metadata else None) for f, n in FILES.items()]
        return SimpleNamespace(sha="c" * 40, siblings=files)

    def download(self, name: str, *, revision: str, local_dir: Path, **options: Any) -> None:
        if not self.online:
            raise OfflineModeIsEnabled("offline")
        local_dir.mkdir(parents=True, exist_ok=True)
        patterns = options.get("allow_patterns")
        kept = list(huggingface_hub.utils.filter_repo_objects(FILES, allow_patterns=patterns))
        for number, file in enumerate(kept):
            if self.limit is not None and number == self.limit:
                raise httpx.ReadTimeout("timed out")
            if not (local_dir / file).exists():
                (local_dir / file).write_bytes(b" " * FILES[file])
                self.written.append(f"{name}/{file}")


@pytest.fixture
def stand_in(big: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    here = Hub()
    for ask in ("dataset_info", "model_info", "repo_info"):
        monkeypatch.setattr(huggingface_hub.HfApi, ask, here.info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", here.download)
    return here


def test_a_dry_run_fetches_nothing(big: Path, stand_in: Hub) -> None:
    done = iadr1(*FETCH, "--dry-run")
    assert done.exit_code == 0 and "GB are free" in done.output
    named = {line.split("│")[1].strip() for line in done.output.splitlines() if line.count("│") > 3}
    assert named == {MODEL, fetching.EXPERT_AD, fetching.BENCHMARKS}
    assert not stand_in.written and not (big / "runs").exists()
    stand_in.online = False
    done = iadr1(*FETCH, "--dry-run")
    assert done.exit_code == 0 and done.output.count("unknown, no network") == 6
    assert "check the network" in complaint(iadr1(*FETCH))


def test_fetched_once_and_used_offline_also_after_a_download_that_broke_off(stand_in: Hub) -> None:
    stand_in.limit = 2
    assert "call again" in complaint(iadr1(*FETCH))
    assert hub.recorded_folder(MODEL) is None
    (model, *_) = fetching.items(load_profile("big"))
    assert (model.size, model.missing) == (1080, 50)
    stand_in.limit = None
    assert iadr1(*FETCH).exit_code == 0
    folder = hub.recorded_folder(MODEL)
    assert folder is not None and folder.name == "c" * 40
    assert {path.name for path in folder.iterdir()} == {"config.json", "model-1.safetensors", "tokenizer.json"}
    assert stand_in.written.count(f"{MODEL}/config.json") == 1
    count = len(stand_in.written)
    stand_in.online = False
    assert iadr1(*FETCH).exit_code == 0 and len(stand_in.written) == count
    assert {item.missing for item in fetching.items(load_profile("big"))} == {0}


def test_a_small_disk_is_refused_before_anything(stand_in: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "free_bytes", lambda: 1100)
    assert "free" in complaint(iadr1(*FETCH)) and not stand_in.written


@pytest.mark.parametrize(("model", "part"), [("gpt", "choose from"), ("mini", "ships with the project")])
def test_models_that_cannot_be_fetched(stand_in: Hub, model: str, part: str) -> None:
    assert part in complaint(iadr1(*FETCH, "--model", model))
