"""Ablations: every variant from every seed's start, measured on the same pictures, and taken up where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_vlm
from conftest import read_json
from typer.testing import CliRunner

from iadr1_lib import world
from iadr1_lib.answer import build_answer, cell_names
from iadr1_lib.cli.app import app
from iadr1_lib.course import ablations, sources
from iadr1_lib.course import steps as course
from iadr1_lib.data import load_mvtec
from iadr1_lib.errors import UserError, WrongUse
from iadr1_lib.evaluation import PAIRED, judge, read_predictions
from iadr1_lib.files import write_json
from iadr1_lib.reporting import BASELINE, STUDIES, shipped_study, study_named, study_table
from iadr1_lib.runs import Run

VARIANTS = list(STUDIES["rewards"].variants)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two runs of smoke that have a (tiny, untaught) PA-SFT model and records."""
    folder = tmp_path_factory.mktemp("runs")
    made = [Run("smoke", seed, folder / f"smoke-s{seed}") for seed in (0, 1)]
    for run in made:
        tiny_vlm.save(run.path("pa_sft", "model"))
        run.path("expert_ad").mkdir()
        tiny_vlm.write_records(tiny_vlm.draw_samples(run.path("pictures")), run.path("expert_ad"))
    return made


def no_check(run: Run, **options: object):  # type: ignore[no-untyped-def]
    """In place of course.dev_check, which wants drawn worlds."""
    return lambda model, processor: 50.0


@pytest.fixture
def benchmark(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen pictures stand for the six benchmarks."""
    samples = tiny_vlm.draw_samples(runs[0].path("test"))
    monkeypatch.setattr(sources, "benchmark_samples", lambda run, why: samples)


def test_a_study_measures_every_variant_and_goes_on_where_it_stopped(
    runs: list[Run], benchmark: None, tmp_path: Path
) -> None:
    found = ablations.run_study("rewards", runs, say=lambda line: None)
    rows = {row["name"]: row for row in found["rows"]}
    for variant in VARIANTS:
        row = rows[f"{variant}/balanced_accuracy/mean"]
        assert row["n"] == 2 and row["low"] <= row["value"] <= row["high"]
        assert {f"difference/{variant}/{BASELINE}/{metric}" for metric in PAIRED} <= set(rows)
        assert rows[f"{variant}/seconds per step"]["value"] > 0
    assert [one["seed"] for one in found["provenance"]["runs"]] == [0, 1]
    assert rows["difference/paper/strict/type"]["unit"] == "points"
    assert list(study_table(found["rows"]))[1:] == [BASELINE, *VARIANTS]

    stages = sorted(runs[0].path("ablations").rglob("stage.json"))
    times = [stage.stat().st_mtime_ns for stage in stages]
    assert len(stages) == len(VARIANTS)
    again = ablations.run_study("rewards", runs, say=lambda line: None)
    assert [stage.stat().st_mtime_ns for stage in stages] == times
    assert again["rows"] == found["rows"]
    assert read_json(write_json(tmp_path / "rows.json", found))["rows"] == found["rows"]


EVERY = {"consistency", "accuracy", "location", "type"}
PAID = {mode: (mode, EVERY) for mode in ("strict", "paper", "grounded")} | {
    "released": ("released", {"consistency", "accuracy"})
}
PAID |= {f"without {part}": ("strict", EVERY - {part}) for part in EVERY - {"accuracy"}}
PAID |= {"accuracy only": ("strict", {"accuracy"})}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_train_on_what_they_say(runs: list[Run], variant: str) -> None:
    mode, paid = PAID[variant]
    folder = ablations.train_variant(runs[0], "rewards", variant)
    log = tiny_vlm.read_csv(folder / "log.csv")
    assert {key for key in log[0] if key.endswith("_reward/mean")} == {f"rewards/{name}_reward/mean" for name in paid}
    settings = read_json(folder / "stage.json")["settings"]
    short = runs[0].profile.section("ablations")
    assert settings["rewards"] == mode and settings["max_steps"] == short["max_steps"]
    assert settings["taught_sentences"] == runs[0].profile.section("sc_grpo")["taught_sentences"]


def test_answers_only_learns_from_the_same_pictures_for_as_long_as_pa_sft(
    runs: list[Run], benchmark: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "dev_check", no_check)
    bare = runs[0].path("expert_ad", "variants", "pa_sft_answer_only.json")
    with pytest.raises(UserError, match="03_expert_ad"):
        ablations.train_variant(runs[0], "reasoning", "answers only")
    bare.parent.mkdir()
    bare.write_text(runs[0].path("expert_ad", "pa_sft.json").read_text().replace("I scan the whole image .", ""))
    found = ablations.run_study("reasoning", runs[:1], say=lambda line: None)
    stage = read_json(runs[0].path("ablations", "reasoning", "answers_only", "stage.json"))
    assert runs[0].profile.section("pa_sft").items() <= stage["settings"].items()
    assert list(study_table(found["rows"]))[1:] == [BASELINE, "answers only"]


@pytest.mark.parametrize("share", [20, 80])
def test_every_share_of_the_data_takes_as_many_steps(
    runs: list[Run], monkeypatch: pytest.MonkeyPatch, share: int
) -> None:
    monkeypatch.setattr(course, "dev_check", no_check)
    rows = read_json(runs[0].path("expert_ad", "pa_sft.json"))
    rows = (rows * 100)[: 5 * 16]
    write_json(runs[0].path("expert_ad", "variants", f"pa_sft_{share}.json"), rows[: len(rows) * share // 100])
    stage = read_json(ablations.train_variant(runs[0], "data", f"{share} %") / "stage.json")
    assert stage["steps"] == pytest.approx(len(rows) / 16, abs=2)  # one epoch of 16 records a step


def test_places_of_a_finer_grid_are_taught_and_judged_in_that_grid(
    runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "dev_check", no_check)
    world.write_world(runs[0].path("drawn"), world.train_families(3), 24, seed=1)
    samples = load_mvtec(runs[0].path("drawn"))
    monkeypatch.setattr(course, "training_samples", lambda run, part: samples)
    answers = ablations.answers_of_variant(runs[0], "grid", "5×5", samples)
    taught = runs[0].path("expert_ad", "variants", "pa_sft_grid_5.json").read_text()
    truths = set(answers["location"].dropna())
    assert truths <= set(cell_names(5)) and len(truths - set(cell_names(3))) > 0
    assert any(f"<location>{place}</location>" in taught for place in truths - set(cell_names(3)))
    defective = answers[answers["label"] == "yes"]
    right = [build_answer("", "yes", place, "hole") for place in defective["location"]]
    assert (judge(defective.assign(raw=right))["location_right"] == 1).all()


def test_places_on_another_grid_are_not_compared(runs: list[Run], benchmark: None) -> None:
    samples = sources.benchmark_samples(runs[0], "")
    before = read_predictions(course.predict_stage(runs[0], "pa_sft", samples))
    answers = {"PA-SFT": {0: before}, "5×5": {0: before.assign(grid=5)}}
    metrics = {row["name"].split("/")[-1] for row in ablations._differences("5×5", "PA-SFT", answers, "fair")}
    assert metrics == set(PAIRED) - {"location"}


@pytest.mark.parametrize("study", STUDIES)
def test_shipped_results_are_complete(study: str) -> None:
    shipped = shipped_study(study)
    lacking = {BASELINE, *STUDIES[study].variants} ^ set(list(study_table(shipped["rows"]))[1:])
    assert lacking <= {"grounded"}, "of which no study has been made yet"
    assert len(shipped["provenance"]["runs"]) == 3


def test_bad_input_is_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WrongUse, match="rewards"):
        study_named("weather")
    monkeypatch.setenv("IADR1_RUNS", str(tmp_path))
    with pytest.raises(UserError, match="04_pa_sft"):
        ablations.run_study("rewards", [Run("smoke", 0)])
    for words, status in ((["weather"], 2), (["rewards", "--seeds", "a,b"], 2), (["rewards", "--profile", "smoke"], 1)):
        result = CliRunner().invoke(app, ["ablate", *words])
        assert result.exit_code == status
        assert len(result.stderr.strip().splitlines()) == 1
