"""What a run does otherwise than its profile: settings, run.json, folders' names, and `iadr1 run` with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import read_json
from test_cli import complaint, iadr1

from iadr1_lib import world
from iadr1_lib.course import batch, sources
from iadr1_lib.errors import UserError, WrongUse
from iadr1_lib.runs import Choices, Run, load_profile, noted_run, parse_settings, read_choices, write_choices

CHOSEN = Choices(("/a/parts",), (), ("bolt", "nut"), {"pa_sft.learning_rate": 1e-4, "source.dev_images": None})


# ------------------------------------------------------------------------------------- choices and their file


def test_settings_are_read_as_in_a_profile() -> None:
    given = ["a.b=1e-4", "a.c=off", "a.d=true", "a.e=null", "a.f=[1, x]", "a.g=a=b", " a.h = 3", "a.i=3"]
    values = {"a.b": 1e-4, "a.c": "off", "a.d": True, "a.e": None, "a.f": [1, "x"], "a.g": "a=b", "a.h": 3, "a.i": 3}
    assert parse_settings(given) == values
    assert parse_settings(["a.b=1", "a.b=2"]) == {"a.b": 2}
    for wrong in ("a.b", "a=1", "a.=1", ".b=1", "a.b=", "a.b=[1"):
        with pytest.raises(WrongUse) as caught:
            parse_settings([wrong])
        assert wrong in str(caught.value) and "\n" not in str(caught.value)


def test_choices_are_kept_in_the_run_folder_and_stand_in_the_profile(tmp_path: Path) -> None:
    write_choices(tmp_path, "smoke", 0, CHOSEN)
    run = Run("smoke", 0, tmp_path)
    assert run.choices == read_choices(tmp_path) == CHOSEN
    assert run.profile.section("pa_sft")["learning_rate"] == 1e-4
    assert {run.profile.sources[name] for name in CHOSEN.settings} == {"command line"}
    assert load_profile("smoke").section("pa_sft")["learning_rate"] == 1e-3  # the profile itself stays
    assert Run("smoke", 0, tmp_path, Choices()).choices == Choices()
    write_choices(tmp_path, "mini", 3, Choices())
    assert read_choices(tmp_path) == Choices() and noted_run(tmp_path) == ("mini", 3)
    assert noted_run(tmp_path / "nowhere") is None


@pytest.mark.parametrize("text", ["{", "[1]", '"x"', '{"data": 5}', '{"data": [1]}', '{"settings": []}'])
def test_a_damaged_run_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError) as caught:
        Run("smoke", 0, tmp_path)
    assert str(tmp_path / "run.json") in str(caught.value) and "\n" not in str(caught.value)


def test_run_folders_are_named_after_model_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IADR1_RUNS", str(tmp_path / "out"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)

    def name(*data: str, **settings: Any) -> str:
        run = Run("smoke", 2, choices=Choices(data, settings={f"model.{key}": v for key, v in settings.items()}))
        assert run.folder.parent == (tmp_path / "out").resolve()
        return run.folder.name

    assert name() == name(dtype="float32") == "smoke-s2"
    assert name("a/parts", str(tmp_path / "b" / "nuts")) == "smoke-s2-parts-nuts"
    assert name(".") == f"smoke-s2-{tmp_path.name}"
    assert name("a/parts", name="owner/net") == "smoke-s2-owner--net-parts"
    assert name(name=str(tmp_path / "models" / "mine")) == "smoke-s2-models-mine"


# ------------------------------------------------------------------------------------- iadr1 run


@pytest.fixture
def smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """`iadr1 run` without notebooks: the runs that it would execute them for."""
    seen: list[Run] = []
    monkeypatch.setenv("IADR1_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(batch, "run_notebooks", lambda run, *_, **__: seen.append(run) or [])
    return seen


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("nothing.x=1", "no section nothing"),
        ("pa_sft.learnin_rate=1", "learnin_rate"),
        ("sc_grpo.num_generations=four", "num_generations is wrong"),
        ("source.dev_images=many", "dev_images is wrong"),
        ("world.families=3", "unknown key families"),
        ("evaluation.batch=many", "batch is wrong"),
        ("attack.rekords=3", "unknown key rekords"),
        ("ablations.max_stepz=3", "unknown key max_stepz"),
        ("carrier-pigeon", "pip install carrier-pigeon"),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_nothing_is_made(
    smoke: list[Run], tmp_path: Path, setting: str, told: str
) -> None:
    option = ("--report-to",) if "=" not in setting else ("--set",)
    for command in (("run",), ("train", "--stage", "pa-sft")):
        assert told in complaint(iadr1(*command, "--profile", "smoke", *option, setting))
    assert not (tmp_path / "runs").exists() and not smoke


@pytest.mark.parametrize(
    "words",
    [
        ("--test", "parts"),
        ("--hold-out", "bolt"),
        ("--data", "parts", "--test", "parts", "--hold-out", "bolt"),
        ("--set", "pa_sft.learning_rate"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_use(smoke: list[Run], tmp_path: Path, words: tuple[str]) -> None:
    complaint(iadr1("run", "--profile", "smoke", *words), 2)
    assert not (tmp_path / "runs").exists()


def test_a_profile_for_gpus_may_be_tried_without_one_when_that_is_said(smoke: list[Run], tmp_path: Path) -> None:
    words = ("--set", f"data.expert_ad={tmp_path / 'none'}", "--set", "engine.gpu_gib=0")
    assert str(tmp_path / "none") in complaint(iadr1("run", "--profile", "gpu", *words))
    assert not (tmp_path / "runs").exists()


def test_run_with_own_pictures_splits_them_and_keeps_the_choices(
    smoke: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iadr1_lib.data.splitting.near_duplicates", lambda *_: [])
    world.write_world(tmp_path / "parts", world.train_families(3), 72, seed=0)
    held = world.train_families(3)[1].name
    monkeypatch.chdir(tmp_path)
    words = ("run", "--profile", "smoke", "--data", "parts", "--set", "source.dev_images=4")
    result = iadr1(*words, "--hold-out", held)
    assert result.exit_code == 0 and held in result.output, result.output
    folder = tmp_path / "runs" / "smoke-s0-parts"
    (run,) = smoke
    assert run.folder == folder.resolve() and run.choices == read_choices(folder)
    assert run.choices == Choices((str(tmp_path / "parts"),), (), (held,), {"source.dev_images": 4})
    assert {s.category for s in sources.benchmark_samples(run, "a test")} == {held}
    assert iadr1("run", "--folder", folder).exit_code == 0  # goes on with what is stored
    assert smoke[1].choices == run.choices and smoke[1].source == "folders" and smoke[1].profile.name == "smoke"
    other = iadr1("run", "--folder", folder, "--set", "pa_sft.warmup_steps=2")  # a setting that splits nothing
    assert other.exit_code == 0 and "anew" not in other.output
    assert smoke[2].choices.settings == {"source.dev_images": 4, "pa_sft.warmup_steps": 2}
    assert smoke[2].choices.data == run.choices.data and smoke[2].choices.hold_out == (held,)
    for words_ in (("--profile", "mini"), ("--seed", "1"), ("--model", "owner/net")):
        assert "another --folder" in complaint(iadr1("run", "--folder", folder, *words_), 2)
    assert "another --folder" in complaint(iadr1("run", "--folder", folder, "--data", "elsewhere"))
    (tmp_path / "other" / "parts").mkdir(parents=True)
    assert "another --folder" in complaint(iadr1("run", "--profile", "smoke", "--data", "other/parts"), 2)
    assert "99" in complaint(iadr1("run", "--folder", folder, "--hold-out", "x", "--only", "99"), 2)
    assert iadr1(*words, "--hold-out", held).exit_code == 0
    before = (folder / "source" / "source.json").read_bytes()
    assert "such category" in complaint(iadr1(*words, "--hold-out", "cupboard"))
    assert read_choices(folder) == run.choices and (folder / "source" / "source.json").read_bytes() == before
    assert "nowhere" in complaint(iadr1("run", "--profile", "smoke", "--data", "nowhere"))
    assert not (tmp_path / "runs" / "smoke-s0-nowhere").exists()


def test_copies_of_the_hub_s_sets_are_found_from_any_folder(
    smoke: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "prepare", lambda run: [])
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ("--set", "data.expert_ad=copy", "--set", "data.benchmarks=owner/set", "--set", "engine.gpu_gib=0")
    assert iadr1("run", "--profile", "gpu", *words).exit_code == 0
    assert smoke[0].profile.section("data") == {"expert_ad": str(tmp_path / "copy"), "benchmarks": "owner/set"}


def test_a_plain_run_forgets_earlier_settings_and_is_executed_anew(course: Callable[..., Path]) -> None:
    project = course(**{"00_a": "print(6 * 7)"})
    folder = project / "out" / "tiny-s0"
    plain: tuple[str, ...] = ("run", "--profile", "tiny")
    assert "done" in iadr1(*plain, "--set", "training.steps=5").output
    assert read_json(folder / "run.json")["settings"] == {"training.steps": 5}
    assert "up to date" in iadr1(*plain, "--set", "training.steps=5").output
    assert "up to date" in iadr1(*plain, "--folder", folder).output
    assert "done" in iadr1(*plain).output and read_json(folder / "run.json")["settings"] == {}
    assert "up to date" in iadr1(*plain).output


def test_train_keeps_the_choices_of_its_folder(smoke: list[Run], tmp_path: Path) -> None:
    write_choices(tmp_path, "smoke", 0, Choices(("/a/parts",), settings={"pa_sft.warmup_steps": 3}))
    words = ("train", "--stage", "pa-sft", "--folder", tmp_path)
    complaint(iadr1(*words, "--set", "pa_sft.weight_decay=0.2"))  # there are no records yet
    kept = {"pa_sft.warmup_steps": 3, "pa_sft.weight_decay": 0.2}
    assert read_choices(tmp_path) == Choices(("/a/parts",), settings=kept)
