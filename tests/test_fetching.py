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
from iadr1_lib.files import write_json
from iadr1_lib.models import configuration, fetching
from iadr1_lib.training import plan as planning

MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"
FILES = {"config.json": 30, "model-1.safetensors": 1000, "tokenizer.json": 50, "pytorch_model.bin": 5000, "a.png": 7}
ASKED = "--profile", "big"


class Hub:
    """Answers for every name; `limit` breaks a download off after so many files."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self.online = True
        self.written: list[str] = []

    def info(self, name: str, revision: str, files_metadata: bool = False) -> SimpleNamespace:
        if not self.online:
            raise httpx.ConnectError("no route")
        files = [SimpleNamespace(rfilename=f, size=n if files_metadata else None) for f, n in FILES.items()]
        return SimpleNamespace(sha="c" * 40, siblings=files)

    def download(self, name: str, *, revision: str, local_dir: Path, **said: Any) -> None:
        if not self.online:
            raise OfflineModeIsEnabled("offline")
        local_dir.mkdir(parents=True, exist_ok=True)
        patterns = said.get("allow_patterns")
        kept = list(huggingface_hub.utils.filter_repo_objects(FILES, allow_patterns=patterns))
        for number, file in enumerate(kept):
            if self.limit is not None and number == self.limit:
                raise httpx.ReadTimeout("timed out")
            if not (local_dir / file).exists():
                (local_dir / file).write_bytes(b" " * FILES[file])
                self.written.append(f"{name}/{file}")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Hub:
    here = Hub()
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", here.info)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", here.info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", here.download)
    return here


def rows(output: str) -> dict[str, str]:
    return {line.split("│")[1].strip(): line for line in output.splitlines() if line.count("│") > 3}


def test_a_dry_run_fetches_nothing(big: Path, stand_in: Hub) -> None:
    done = iadr1("fetch", *ASKED, "--dry-run")
    assert done.exit_code == 0 and "GB are free" in done.output
    assert set(rows(done.output)) == {MODEL, fetching.EXPERT_AD, fetching.BENCHMARKS}
    assert not stand_in.written and not (big / "runs").exists()
    stand_in.online = False
    done = iadr1("fetch", *ASKED, "--dry-run")
    assert done.exit_code == 0 and done.output.count("unknown, no network") == 6


def test_fetched_once_and_used_offline(big: Path, stand_in: Hub) -> None:
    assert fetching.fetched_folder(MODEL) is None
    assert iadr1("fetch", *ASKED).exit_code == 0
    folder = fetching.fetched_folder(MODEL)
    assert folder is not None and folder.name == "c" * 40
    assert {path.name for path in folder.iterdir()} == {"config.json", "model-1.safetensors", "tokenizer.json"}
    count = len(stand_in.written)
    stand_in.online = False
    assert iadr1("fetch", *ASKED).exit_code == 0 and len(stand_in.written) == count
    assert fetching.fetched_folder(MODEL) == folder
    assert {item.missing for item in fetching.items(fetching_profile())} == {0}


def fetching_profile() -> Any:
    from iadr1_lib.runs import load_profile

    return load_profile("big")


def test_a_download_that_broke_off_goes_on(big: Path, stand_in: Hub) -> None:
    stand_in.limit = 2
    assert "call again" in complaint(iadr1("fetch", *ASKED))
    assert fetching.fetched_folder(MODEL) is None
    (model, *_) = fetching.items(fetching_profile())
    assert (model.size, model.missing, model.there) == (1080, 50, False)
    stand_in.limit = None
    assert iadr1("fetch", *ASKED).exit_code == 0
    assert stand_in.written.count(f"{MODEL}/config.json") == 1 and fetching.fetched_folder(MODEL) is not None


def test_a_small_disk_is_refused_before_anything(
    big: Path,
    stand_in: Hub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetching, "free_bytes", lambda cache=None: 1100)
    assert "free" in complaint(iadr1("fetch", *ASKED)) and not stand_in.written


def test_without_a_network_fetch_fails_in_one_sentence(big: Path, stand_in: Hub) -> None:
    stand_in.online = False
    assert "check the network" in complaint(iadr1("fetch", *ASKED))


@pytest.mark.parametrize(("model", "part"), [("gpt", "choose from"), ("mini", "ships with the project")])
def test_models_that_cannot_be_fetched(big: Path, stand_in: Hub, model: str, part: str) -> None:
    assert part in complaint(iadr1("fetch", *ASKED, "--model", model))


def test_a_fetched_configuration_is_compared(big: Path, stand_in: Hub) -> None:
    config = configuration("qwen2-vl-2b")
    config.text_config.vocab_size += 1
    home = hub.hub_home("Qwen/Qwen2-VL-2B-Instruct")
    config.save_pretrained(home / ("d" * 40))
    write_json(home / "revision.json", {"revision": "d" * 40, "asked": {"main": "d" * 40}})
    found = planning.plan("qwen2-vl-2b", planning.PlanSettings())
    assert found.difference == "the configuration on the disk has other parameters: language model +1,536"
