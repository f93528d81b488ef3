"""The command line: exit statuses and one sentence for each bad input. Models are faked."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import read_json
from PIL import Image
from typer.testing import CliRunner, Result

from iadr1_lib import world
from iadr1_lib.cli import options
from iadr1_lib.cli.app import app
from iadr1_lib.course import batch, doctor, sources
from iadr1_lib.data import Problem, Table, elpv, load_mvtec, open_image
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import prediction_row
from iadr1_lib.files import Journal, json_lines, write_text
from iadr1_lib.records import Sample

YES = "<think>A dark line.</think><location>top left</location><type>scratch</type><answer>Yes</answer>"
NO = "<think>Nothing.</think><answer>No</answer>"
COMMANDS = {
    *("run", "train", "ablate", "report", "kit", "doctor", "expert-ad"),
    *("evaluate", "sanity", "score", "inspect", "app", "plan", "fetch", "check-vllm"),
}


def iadr1(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def complaint(result: Result, status: int = 1) -> str:
    """The one line a failed command leaves on stderr."""
    assert result.exit_code == status, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("iadr1: "), result.stderr
    assert "Traceback" not in result.output
    return lines[0]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for `evaluation.prediction`: answers Yes to pictures with a dark pixel."""
    fake = ModuleType("iadr1_lib.evaluation.prediction")

    def text(image: Image.Image) -> str:
        return YES if np.asarray(image.convert("L")).min() < 50 else NO

    def predict(model: Path, samples: list[Any], out: Path, **said: Any) -> Path:
        origin = {"prompt": said["prompt"], "protocol": said["protocol"], "model": str(model), "seed": 0}
        for sample in samples:
            reference = {"reference": str(said["references"][sample.image][0])} if "references" in said else {}
            Journal(out).append(prediction_row(sample, text(open_image(sample.image)), 0.5, origin) | reference)
        return out

    fake.predict = predict  # type: ignore[attr-defined]
    fake.grid_of = lambda model: 3  # type: ignore[attr-defined]
    monkeypatch.setattr("iadr1_lib.models.require_weights", Path)
    monkeypatch.setitem(sys.modules, "iadr1_lib.evaluation.prediction", fake)
    monkeypatch.setattr("iadr1_lib.evaluation.prediction", fake, raising=False)
    return fake


def test_help_lists_every_command() -> None:
    result = iadr1("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command in result.output
        assert iadr1(command, "--help").exit_code == 0


@pytest.mark.parametrize(
    "words", ["dance", "evaluate --model m", "inspect --model m --prompt rude x.png", "inspect --false-alarms 2 x.png"]
)
def test_wrong_use_is_status_2(words: str) -> None:
    result = iadr1(*words.split())
    assert result.exit_code == 2 and "Traceback" not in result.output


@pytest.mark.parametrize("words", ["--teacher replay", "--teacher api", "--pa-sft 4"])
def test_options_of_expert_ad_that_need_another_are_wrong_use(words: str) -> None:
    complaint(iadr1("expert-ad", "--data", "d", "--out", "o", *words.split()), 2)


def test_unknown_profile_and_notebook_are_wrong_use(course: Callable[..., Path]) -> None:
    course(**{"00_a": "pass"})
    assert "tiny" in complaint(iadr1("run", "--profile", "huge"), 2)
    assert "00_a" in complaint(iadr1("run", "--profile", "tiny", "--only", "9"), 2)


def test_run_ends_with_a_table_and_a_status(course: Callable[..., Path]) -> None:
    project = course(**{"00_a": "print(6 * 7)", "01_b": "1 / 0"})
    result = iadr1("run", "--profile", "tiny", "--seed", "2", "--only", "00", "--verbose")
    assert result.exit_code == 0 and "00_a" in result.output and "42" in result.output
    assert (project / "out" / "tiny-s2" / "notebooks" / "00_a.ipynb").exists()
    result = iadr1("run", "--profile", "tiny", "--seed", "2")
    assert result.exit_code == 1
    assert "up to date" in result.output and "failed" in result.output and "ZeroDivisionError" in result.output


def test_notebook_run_before_its_predecessors_names_them(course: Callable[..., Path], root: Path) -> None:
    code = f"""
    import sys
    sys.path.insert(0, {str(root)!r})
    sys.modules.pop("iadr1_lib", None)
    from iadr1_lib.runs import Run
    Run(profile, seed, run_folder).require("pa_sft/model", "04_pa_sft")
    """
    course(**{"07_sc_grpo": code})
    result = iadr1("run", "--profile", "tiny", "--only", "07")
    assert result.exit_code == 1
    assert "run notebook 04_pa_sft first (iadr1 run --profile tiny --seed 0 --only 04)" in " ".join(
        result.output.split()
    )


@pytest.mark.parametrize("stage", ["pa-sft", "sc-grpo"])
def test_training_before_its_data_names_the_notebook(course: Callable[..., Path], stage: str) -> None:
    course()
    assert "03_expert_ad" in complaint(iadr1("train", "--stage", stage, "--profile", "tiny"))


def test_errors_become_one_line_and_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(error: BaseException) -> Result:
        def examine() -> None:
            raise error

        monkeypatch.setattr(doctor, "examine", examine)
        return iadr1("doctor")

    assert complaint(told(UserError("no luck: try again"))) == "iadr1: no luck: try again"
    assert "full" in complaint(told(OSError(errno.ENOSPC, "No space left", "/big/file")))
    assert "go on" in complaint(told(KeyboardInterrupt()), 130)
    assert isinstance(told(ValueError("a fault of ours")).exception, ValueError)  # a bug keeps its traceback


def test_evaluate_scores_the_test_pictures(model: ModuleType, parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "metrics.json"
    out.parent.mkdir()
    for _ in range(2):  # a finished evaluation is made anew, not added to
        result = iadr1("evaluate", "--model", "m", "--data", parts, "--out", out)
        assert result.exit_code == 0, result.output
        assert len(out.with_suffix(".predictions.jsonl").read_text().splitlines()) == 8
    saved = read_json(out)
    values = {row["name"]: row["value"] for row in saved["rows"]}
    balanced = [value for name, value in values.items() if "balanced_accuracy" in name]
    assert balanced and set(balanced) == {100.0}
    assert saved["provenance"]["parameters"]["model"] == "m"
    assert "100.0" in result.output and str(out) in result.output


def test_evaluate_names_what_is_wrong_with_the_data(model: ModuleType, parts: Path, tmp_path: Path) -> None:
    def evaluate(folder: Path, *more: str, status: int = 1) -> str:
        out = tmp_path / "metrics.json"
        said = complaint(iadr1("evaluate", "--model", "m", "--data", folder, "--out", out, *more), status)
        assert not out.exists()
        return said

    assert "nowhere" in evaluate(tmp_path / "nowhere")
    assert "kind" in evaluate(parts, "--parser", "kind", status=2)
    image = parts / "bolt" / "test" / "scratch" / "000.png"
    picture = image.read_bytes()
    image.write_bytes(picture[: len(picture) // 2])
    assert str(image) in evaluate(parts)
    image.write_bytes(picture)

    for path in (parts / "bolt" / "test" / "good").iterdir():
        path.unlink()
    said = evaluate(parts)
    assert str(parts) in said and "--one-label" in said
    out = tmp_path / "one_label.json"
    result = iadr1("evaluate", "--model", "m", "--data", parts, "--out", out, "--one-label")
    assert result.exit_code == 0, result.output
    found = {row["name"].split("/")[1]: row["value"] for row in json.loads(out.read_text())["rows"]}
    assert found["balanced_accuracy"] is None and found["accuracy_defective"] is not None


@pytest.mark.parametrize("kind", ["similar", "random"])
def test_evaluate_one_shot(model: ModuleType, parts: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "metrics.json"
    words = ["evaluate", "--model", "m", "--data", parts, "--out", out, "--shots", 1, "--reference-kind", kind]
    lent = "bolt: no train/good pictures there"
    result = iadr1(*words)
    assert result.exit_code == 0 and lent not in result.output
    rows = [json.loads(line) for line in out.with_suffix(".predictions.jsonl").read_text().splitlines()]
    assert {row["reference"] for row in rows} == {str(parts / "bolt" / "train" / "good" / "000.png")}
    said = read_json(out)["provenance"]["parameters"]
    assert (said["shots"], said["reference_kind"]) == (1, kind)
    moved = tmp_path / "apart" / "bolt" / "train"
    moved.parent.mkdir(parents=True)
    (parts / "bolt" / "train").rename(moved)
    assert iadr1(*words).output.count(lent) == 1
    result = iadr1(*words, "--train", tmp_path / "apart")
    assert result.exit_code == 0 and lent not in result.output
    for path in sorted((parts / "bolt" / "test" / "good").iterdir())[1:]:
        path.unlink()
    assert "not possible: 1 of 5" in complaint(iadr1(*words))  # the only good one has no other


def test_evaluate_takes_an_index_with_its_root_and_the_solar_cells_by_name(
    model: ModuleType, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {}
    for path in sorted((parts / "bolt" / "test").rglob("*.png")):
        name = path.relative_to(parts.parent).as_posix()
        question = {"Answer": "B" if "good" in name else "A", "Options": {"A": "Yes.", "B": "No."}}
        entries[name] = {"image_path": name, "conversation": [question]}
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart" / "index.json").write_text(json.dumps(entries))
    words = ["evaluate", "--model", "m", "--out", tmp_path / "metrics.json", "--data"]
    result = iadr1(*words, tmp_path / "apart" / "index.json", "--root", parts.parent)
    assert result.exit_code == 0 and "100.0" in result.output
    assert "4 defective pictures have no mask" in result.output  # this index names none
    assert "8 of 8 pictures cannot be reached" in complaint(iadr1(*words, tmp_path / "apart" / "index.json"))

    monkeypatch.chdir(tmp_path)
    left_out = Problem("in between", "cell.png", "cell.png is unsure")
    monkeypatch.setattr(elpv, "load", lambda: Table(load_mvtec(parts), [left_out]))
    result = iadr1(*words, "elpv")
    assert result.exit_code == 0 and "in between" in result.output


def test_evaluate_asks_about_the_mini_benchmarks_beside_a_reference(
    model: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IADR1_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(sources, "WORD", "smoke")
    result = iadr1("evaluate", "--model", "m", "--data", "smoke", "--shots", 1, "--out", tmp_path / "metrics.json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "metrics.predictions.jsonl").read_text().splitlines()]
    assert {row["benchmark"] for row in rows} == set(world.test_families())
    assert all(Path(row["reference"]).parts[-4] == row["category"] for row in rows)
    assert "iadr1 evaluate --model m" in (tmp_path / "runs" / "smoke-s0" / "test_openings.jsonl").read_text()


def test_sanity_says_what_a_benchmark_measures(parts: Path, tmp_path: Path) -> None:
    train = tmp_path / "other"
    copy = train / "bolt" / "train" / "good" / "copy.png"
    copy.parent.mkdir(parents=True)
    copy.write_bytes((parts / "bolt" / "test" / "scratch" / "001.png").read_bytes())
    result = iadr1("sanity", "--data", parts, "--train", train, "--out", tmp_path / "sanity.json")
    assert result.exit_code == 0, result.output
    assert "always yes" in result.output and "parts" in result.output
    assert "1 pairs are the same file" in result.output
    names = {row["name"]: row["value"] for row in read_json(tmp_path / "sanity.json")["rows"]}
    assert names["sanity/always_no/parts"] == 50
    assert "nowhere" in complaint(iadr1("sanity", "--data", tmp_path / "nowhere"))


# ---------------------------------------------------------------------------------------------- doctor


def test_doctor_has_a_line_per_requirement_and_a_mend_per_failure(course: Callable[..., Path], root: Path) -> None:
    project = course(**{"00_a": "pass"})
    for name in ("pyproject.toml", "constraints.txt"):
        (project / name).write_text((root / name).read_text().replace("torch==2.13.0", "torch==2.12.9"))
    result = iadr1("doctor")
    lines = [line for line in result.output.splitlines() if line.startswith(("OK", "FAIL"))]
    failed = {line.split(":")[0].split()[-1] for line in lines if line.startswith("FAIL")}
    assert result.exit_code == 1 and "torch" in failed and "weights" in failed
    assert all(" -> " in line for line in lines if line.startswith("FAIL"))
    for word in (
        "python",
        "transformers",
        "cores",
        "memory",
        "disk",
        "runs folder",
        "notebooks",
        "jupyter kernel",
    ):
        assert any(word in line for line in lines), word


def test_doctor_checks_the_base_weights(tmp_path: Path) -> None:
    import hashlib

    weights = tmp_path / "model.safetensors"
    assert not doctor.check_base(tmp_path).ok
    weights.write_bytes(b"weights")
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(b'weights').hexdigest()}  model.safetensors\n")
    assert doctor.check_base(tmp_path).ok
    weights.write_bytes(b"others")
    assert not doctor.check_base(tmp_path).ok
    weights.unlink()
    assert "missing" in doctor.check_base(tmp_path).found


def test_doctor_finds_this_environment_in_order(root: Path) -> None:
    assert doctor.check_python().ok and doctor.check_kernel().ok
    wrong = [str(check) for check in doctor.check_packages(root) if not check.ok]
    assert not wrong
    assert {"torch", "trl", "transformers", "papermill"} <= set(doctor.tested_versions(root))


# ---------------------------------------------------------------------------------------------- expert-ad


def test_expert_ad_builds_a_set_and_a_second_call_finds_it_done(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    words = ("expert-ad", "--data", parts, "--out", out, "--workers", 1, "--seed", 3)
    first = iadr1(*words)
    assert first.exit_code == 0, first.output
    assert "4 records, 0 rejected, 4 questions" in first.stdout.replace("\n", " ")
    made = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {"pa_sft.json", "sc_grpo.json", "rejected.jsonl", "report.json", "README.md", "pa_sft.parquet"} <= set(made)
    assert iadr1(*words).exit_code == 0
    assert {name: (out / name).read_bytes() for name in made} == made
    assert "other settings" in complaint(iadr1(*words, "--tries", 1))
    assert "name another folder" in complaint(iadr1("expert-ad", "--data", parts, "--out", out / "report.json"))
    (out / "journal.jsonl").unlink()
    (tmp_path / "silent.jsonl").touch()
    silent = iadr1(*words, "--teacher", "replay", "--replay", tmp_path / "silent.jsonl")
    assert "no set was written" in complaint(silent)
    assert (out / "pa_sft.json").read_bytes() == made["pa_sft.json"]


def test_a_path_that_cannot_be_used_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    too_long = tmp_path / ("a" * 300 + ".html")
    assert "too long" in complaint(iadr1("report", "--out", too_long.with_suffix(".json")))
    assert "too long" in complaint(iadr1("sanity", "--data", too_long))

    def read_only(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    monkeypatch.setattr(Path, "write_text", read_only)
    monkeypatch.setenv("IADR1_RUNS", str(tmp_path / "runs"))
    for words in (("report", "--out", tmp_path / "rows.json"), ("run", "--profile", "smoke")):
        told = complaint(iadr1(*words))
        assert str(tmp_path) in told and "Read-only file system" in told


def test_expert_ad_lists_what_cannot_be_used(parts: Path, tmp_path: Path) -> None:
    (parts / "bolt" / "test" / "good" / "text.png").write_text("no picture")
    result = iadr1("expert-ad", "--data", parts, "--out", tmp_path / "set", "--workers", 1, "--no-parquet")
    (row,) = [json.loads(line) for line in (tmp_path / "set" / "rejected.jsonl").read_text().splitlines()]
    assert row["failed"] == {"drawing": "unreadable"} and "unreadable" in result.output


def test_expert_ad_records_a_teacher_and_plays_it_back(parts: Path, tmp_path: Path) -> None:
    tape = tmp_path / "tape.jsonl"
    common = ("expert-ad", "--data", parts, "--workers", 1, "--no-parquet")
    assert iadr1(*common, "--out", tmp_path / "a", "--record", tape).exit_code == 0
    assert iadr1(*common, "--out", tmp_path / "b", "--teacher", "replay", "--replay", tape).exit_code == 0
    assert (tmp_path / "a" / "pa_sft.json").read_bytes() == (tmp_path / "b" / "pa_sft.json").read_bytes()


def test_expert_ad_keeps_test_pictures_out(parts: Path, tmp_path: Path) -> None:
    result = iadr1("expert-ad", "--data", parts, "--test", parts, "--out", tmp_path / "set")
    assert "were turned away (in a test set" in complaint(result)


@pytest.mark.parametrize("missing", ["data", "tape"])
def test_expert_ad_names_what_is_missing(parts: Path, tmp_path: Path, missing: str) -> None:
    data = tmp_path / "nowhere" if missing == "data" else parts
    replay = () if missing == "data" else ("--teacher", "replay", "--replay", tmp_path / "nowhere.jsonl")
    assert "nowhere" in complaint(iadr1("expert-ad", "--data", data, "--out", tmp_path / "set", *replay))


def test_magnetic_tiles_become_a_set_by_one_command(shared: Path, tmp_path: Path) -> None:
    tiles = shared / "samples" / "MagneticTile"
    result = iadr1("expert-ad", "--data", tiles, "--out", tmp_path, "--no-parquet", "--pa-sft", 60, "--sc-grpo", 40)
    assert result.exit_code == 0, result.output
    report = read_json(tmp_path / "report.json")
    assert (report["records"], report["rejected"], report["label"]) == (60, 0, {"no": 30, "yes": 30})
    assert report["SC-GRPO"]["label"] == {"no": 20, "yes": 20}
    assert report["turned away"] == {"empty mask": 4}
    assert set(report["type"]) <= {"hole", "damage", "abrasion"}
    assert "none stated" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("profile", ["gpu", "paper"])
def test_a_profile_for_gpus_wants_one_before_anything_is_drawn(profile: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert "GPU" in complaint(iadr1("run", "--profile", profile, "--folder", folder))
    assert not folder.exists()


# --- score ----------------------------------------------------------------------------------------------


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Saved answers to eight pictures, all right."""
    asked = {"prompt": "bare", "protocol": "course", "model": "m", "seed": 0}
    rows = []
    for number in range(8):
        truth = ("yes", None, "scratch", "top left") if number % 2 else ("no", None, None, None)
        sample = Sample(f"{number}.png", *truth, "bolt", "parts", "test", "drawn")  # type: ignore[arg-type]
        rows.append(prediction_row(sample, YES if number % 2 else NO, 0.5, asked))
    return write_text(tmp_path / "answers.jsonl", json_lines(rows))


def test_score_needs_no_model_and_writes_metrics(answers: Path, tmp_path: Path) -> None:
    out = tmp_path / "metrics.json"
    result = iadr1("score", "--predictions", answers, "--parser", "all", "--out", out)
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row["value"] for row in read_json(out)["rows"]}
    right = [f"{parser}/balanced_accuracy/parts" for parser in ("fair", "strict", "released-tagged")]
    assert {rows[name] for name in right} == {100.0}
    assert rows["released-free-text/balanced_accuracy/parts"] < 100
    assert rows["fair/reasoning_agrees/parts"] is not None and rows["p_yes/auroc/parts"] == 50
    assert read_json(out)["provenance"]["parameters"]["protocol"] == "course"


def test_score_names_file_and_line_and_keeps_earlier_metrics(answers: Path, tmp_path: Path) -> None:
    out = tmp_path / "metrics.json"
    iadr1("score", "--predictions", answers, "--out", out)
    before = out.read_bytes()
    *lines, last = answers.read_text().splitlines()
    for damaged, place in ((last[:50], "line 8"), (json.dumps(json.loads(last) | {"protocol": "fair"}), "protocols")):
        answers.write_text("\n".join([*lines, damaged]))
        said = complaint(iadr1("score", "--predictions", answers, "--out", out))
        assert "answers.jsonl" in said and place in said
    assert out.read_bytes() == before


def test_score_of_nothing_and_by_an_unknown_parser(answers: Path, tmp_path: Path) -> None:
    assert "none.jsonl" in complaint(iadr1("score", "--predictions", tmp_path / "none.jsonl"))
    assert "released-tagged" in complaint(iadr1("score", "--predictions", answers, "--parser", "kind"), 2)


# --- protocols ------------------------------------------------------------------------------------------


def test_evaluate_by_a_protocol_asks_and_reads_by_it(model: Any, parts: Path, tmp_path: Path) -> None:
    asked: list[Any] = []
    honest = model.predict

    def noted(folder: Path, samples: list[Any], out: Path, **said: Any) -> Path:
        asked.append(said["protocol"])
        return honest(folder, samples, out, **said | {"protocol": said["protocol"].name})  # type: ignore[no-any-return]

    model.predict = noted
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "llava_next"}))
    words = ("evaluate", "--model", tmp_path / "m", "--data", parts, "--out", tmp_path / "e.json")
    result = iadr1(*words, "--protocol", "released", "--kind", "base")
    assert result.exit_code == 0, result.output
    assert (asked[0].family, asked[0].kind, asked[0].name) == ("llava-1.6", "base", "released")
    said = read_json(tmp_path / "e.json")["provenance"]["parameters"]
    assert said["parser"] == "released-tagged" and said["protocol"] == "released"


def test_a_protocol_needs_a_model_whose_family_is_known(parts: Path, tmp_path: Path) -> None:
    words = ("evaluate", "--data", parts, "--protocol", "fair", "--model")
    assert "no model folder" in complaint(iadr1(*words, tmp_path / "none"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "bert" in complaint(iadr1(*words, tmp_path))


# --- what lies there already, and odd names ---------------------------------------------------------------


def test_a_finished_evaluation_stays_until_the_new_one_is_finished(
    model: ModuleType, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, answer = tmp_path / "qwen2.5-vl-3b", model.predict
    words = ("evaluate", "--model", "m", "--data", parts, "--out", out)
    assert iadr1(*words).exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert {path.name for path in before} == {"qwen2.5-vl-3b.json", "qwen2.5-vl-3b.predictions.jsonl"}

    def unchanged(*more: object, status: int = 1) -> str:
        said = complaint(iadr1(*words, *more), status)
        assert {path: path.read_bytes() for path in before} == before
        return said

    def gone(folder: Path) -> Path:
        raise UserError(f"there is no model folder {folder}")

    unchanged("--parser", "kind", status=2)
    unchanged("--data", tmp_path / "nowhere")
    monkeypatch.setattr("iadr1_lib.models.require_weights", gone)
    assert "no model folder" in unchanged()
    monkeypatch.setattr("iadr1_lib.models.require_weights", Path)

    def interrupted(model: Path, samples: list[Any], out: Path, **said: Any) -> Path:
        answer(model, samples[:3], out, **said)
        raise UserError("The disk is full: free some space.")

    monkeypatch.setattr(model, "predict", interrupted)
    assert "3 of 8 answers are kept" in unchanged()
    monkeypatch.setattr(model, "predict", lambda model, samples, out, **said: answer(model, samples[3:], out, **said))
    assert iadr1(*words).exit_code == 0  # goes on from the three
    assert len((tmp_path / "qwen2.5-vl-3b.predictions.jsonl").read_text().splitlines()) == 8
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {path.name for path in before}


def test_no_evaluation_takes_the_name_of_another(
    model: ModuleType, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other" / parts.name
    other.parent.mkdir()
    other.symlink_to(parts)
    copied = tmp_path / "copied" / parts.name
    shutil.copytree(parts, copied)
    for place in ("a/sc_grpo/model", "b/sc_grpo/model"):
        (tmp_path / place).mkdir(parents=True)
        for data in (parts, copied):
            for more in ((), ("--prompt", "yes-no")):
                assert iadr1("evaluate", "--model", place, "--data", data, *more).exit_code == 0
    assert len(list(tmp_path.glob("evaluation_*.json"))) == 8
    assert len(list(tmp_path.glob("evaluation_*.predictions.jsonl"))) == 8
    assert iadr1("evaluate", "--model", tmp_path / "a/sc_grpo/model", "--data", other).exit_code == 0
    assert len(list(tmp_path.glob("evaluation_*.json"))) == 8  # the same places by other words
    for root in (parts, copied):  # an index says nothing of where its paths start
        iadr1("evaluate", "--model", "a/sc_grpo/model", "--data", parts, "--layout", "mvtec", "--root", root)
    assert len(list(tmp_path.glob("evaluation_*.json"))) == 10
    for name in ("qwen2.5-vl-3b", "qwen2.5-vl-7b"):
        assert iadr1("evaluate", "--model", "m", "--data", parts, "--out", name).exit_code == 0
    assert len(list(tmp_path.glob("qwen2.5-vl-?b.predictions.jsonl"))) == 2


def test_a_file_that_holds_no_metrics_is_not_overwritten(model: ModuleType, answers: Path, parts: Path) -> None:
    kept = answers.with_suffix(".json")
    kept.write_text("[1]")
    for words in (("score", "--predictions", answers), ("evaluate", "--model", "m", "--data", parts)):
        said = complaint(iadr1(*words, "--out", kept))
        assert "holds no metrics" in said and "delete" not in said
    assert kept.read_text() == "[1]"


@pytest.mark.parametrize("name", ["line [/v2]", "[red]line", ":bug: line"])
def test_names_that_look_like_markup_are_printed_as_they_are(answers: Path, name: str) -> None:
    rows = [json.loads(line) | {"benchmark": name} for line in answers.read_text().splitlines()]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = iadr1("score", "--predictions", answers)
    assert result.exit_code == 0 and name in result.stdout
    options.print_table(pd.DataFrame({name: [name, None], "n": [1.5, float("nan")]}))
    outcomes = [batch.Outcome("00_a", batch.FAILED, 1.0, name), batch.Outcome("01_b", batch.UP_TO_DATE, note=name)]
    console = options.make_console()
    with console.capture() as shown:
        console.print(batch.outcome_table(outcomes))
    assert shown.get().count(name) == 2


@pytest.mark.parametrize("parser", ["fair", "all"])
def test_tables_show_what_is_not_defined_as_a_dash(answers: Path, tmp_path: Path, parser: str) -> None:
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    rows += [row | {"benchmark": "one-sided"} for row in rows if row["label"] == "yes"]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = iadr1("score", "--predictions", answers, "--parser", parser, "--out", tmp_path / "metrics.json")
    assert result.exit_code == 0, result.output
    assert "–" in result.stdout and "one-sided is not defined" in result.stdout
    values = {row["name"]: row["value"] for row in read_json(tmp_path / "metrics.json")["rows"]}
    assert values["fair/balanced_accuracy/mean"] is None


def test_answers_that_were_cut_are_told(answers: Path) -> None:
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    rows = [row | ({"cut": True} if number in (2, 3, 5) else {}) for number, row in enumerate(rows)]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = iadr1("score", "--predictions", answers).stdout
    assert "3 answers reached the limit" in said and "--max-new-tokens" in said
