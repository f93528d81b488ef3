"""The chain of steps, with the smoke profile: what each reads, writes, and asks for when it is not there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from pictures import draw

from iadr1_lib import world as synthetic
from iadr1_lib.course import sources
from iadr1_lib.course import steps as course
from iadr1_lib.data import content_hash, leakage
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import references
from iadr1_lib.files import Journal
from iadr1_lib.records import Sample, read_rows
from iadr1_lib.runs import Run, base_model_dir, data_hash

PARTS = ("pa_sft", "sc_grpo", "dev")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run of the smoke profile whose training world and Expert-AD are there, and no model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IADR1_RUNS", str(tmp_path_factory.mktemp("runs")))
        made = Run("smoke", 0)
        sources.draw_training_world(made)
        course.build_expert_ad(made)
        yield made


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of the smoke profile in which nothing has been done."""
    monkeypatch.setenv("IADR1_RUNS", str(tmp_path))
    return Run("smoke", 0)


@pytest.fixture(scope="module")
def opened(run: Run) -> list[Sample]:
    return sources.benchmark_samples(run, "a look at the numbers")


def hashes(samples: list[Sample]) -> list[str]:
    return [content_hash(s.image) for s in samples]


# ---------------------------------------------------------------------------------------------- the world


def test_the_profile_s_numbers_of_pictures_are_drawn(run: Run) -> None:
    world = sources.world_settings(run)
    wanted = {"pa_sft": world.pa_sft_images, "sc_grpo": world.sc_grpo_images, "dev": world.dev_images}
    for part, count in wanted.items():
        samples = sources.training_samples(run, part)
        assert len(samples) == count
        assert [s.label for s in samples] == ["no", "yes"] * (count // 2)
        assert {s.benchmark for s in samples} == {part}
    families = {part: {s.category for s in sources.training_samples(run, part)} for part in PARTS}
    assert len(families["pa_sft"]) == world.pa_sft_families
    assert len(families["sc_grpo"]) == world.sc_grpo_families


def test_no_picture_and_no_family_is_in_two_parts(run: Run, opened: list[Sample]) -> None:
    parts = {part: sources.training_samples(run, part) for part in PARTS} | {"test": opened}
    for samples in parts.values():
        assert len(set(hashes(samples))) == len(samples)
    for one, other in combinations(parts.values(), 2):
        assert leakage(one, other) == {}
        assert not {s.category for s in one} & {s.category for s in other}


def test_another_seed_draws_other_training_pictures_and_the_same_dev_set(run: Run) -> None:
    other = Run("smoke", 1)
    sources.draw_training_world(other)
    assert other.folder != run.folder
    for part in ("pa_sft", "sc_grpo"):
        assert not set(hashes(sources.training_samples(run, part))) & set(hashes(sources.training_samples(other, part)))
    assert hashes(sources.training_samples(run, "dev")) == hashes(sources.training_samples(other, "dev"))


def test_each_benchmark_picture_has_a_reference_of_its_family_that_is_in_no_set(run: Run, opened: list[Sample]) -> None:
    before = data_hash([run.path("world")])
    table = sources.benchmark_table(run, "test")
    assert [s for s in table if s.split == "test"] == opened
    found = references(opened, table, kind="random")
    assert set(found) == {s.image for s in opened}
    assert all([path.parts[-4] for path in found[s.image]] == [s.category] for s in opened)
    assert data_hash([run.path("world")]) == before  # they lie apart from the world
    parts = [*opened, *(s for part in PARTS for s in sources.training_samples(run, part))]
    assert not {content_hash(path) for [path] in found.values()} & set(hashes(parts))


# ---------------------------------------------------------------------------------------------- the test set


def test_the_six_benchmarks_are_drawn_with_both_labels(run: Run, opened: list[Sample]) -> None:
    count = sources.world_settings(run).test_images
    by_label = Counter((s.benchmark, s.label) for s in opened)
    assert {name for name, _ in by_label} == set(synthetic.test_families())
    assert set(by_label.values()) == {count // 2}


def test_drawing_the_training_world_does_not_open_the_test_set(fresh: Run) -> None:
    sources.draw_training_world(fresh)
    course.build_expert_ad(fresh)
    assert not fresh.path("world", "test").exists()
    assert not fresh.path("test_openings.jsonl").exists()


def test_each_opening_of_the_test_set_is_noted_with_its_reason(fresh: Run) -> None:
    reasons = ["final numbers of PA-SFT", "final numbers of SC-GRPO"]
    first, again = (sources.benchmark_samples(fresh, why) for why in reasons)
    assert first == again
    openings = Journal(fresh.path("test_openings.jsonl")).rows()
    assert [opening["why"] for opening in openings] == reasons
    assert all(opening["time"] and opening["commit"] for opening in openings)


# ---------------------------------------------------------------------------------------------- Expert-AD


def test_expert_ad_covers_both_sets_and_the_control(run: Run) -> None:
    sft, grpo, control = (read_rows(run.path("expert_ad", f"{n}.json")) for n in ("pa_sft", "sc_grpo", "control"))
    assert [r["images"] for r in sft] == [s.image for s in sources.training_samples(run, "pa_sft")]
    assert [r["image"] for r in grpo] == [s.image for s in sources.training_samples(run, "sc_grpo")]
    assert [r["images"] for r in control] == [r["image"] for r in grpo]
    for row, question in zip(control, grpo, strict=True):
        assert row["messages"][1]["content"].endswith("</think>" + question["solution"])
    digests = [{content_hash(r[key]) for r in rows} for rows, key in ((sft, "images"), (grpo, "image"))]
    assert not digests[0] & digests[1]


def test_expert_ad_is_the_same_when_built_again(run: Run) -> None:
    folder = run.path("expert_ad")
    before = {p: p.read_bytes() for p in folder.rglob("*.json*")}
    assert course.build_expert_ad(run) == folder
    assert {p: p.read_bytes() for p in folder.rglob("*.json*")} == before


# ---------------------------------------------------------------------------------------------- what is missing


def test_what_is_missing_names_the_notebook_that_makes_it(fresh: Run) -> None:
    for part in PARTS:
        with pytest.raises(UserError, match="02_data"):
            sources.training_samples(fresh, part)
    with pytest.raises(UserError, match="02_data"):
        course.build_expert_ad(fresh)
    for stage, maker in (("pa_sft", "04_pa_sft"), ("sc_grpo", "07_"), ("control", "07_")):
        with pytest.raises(UserError, match="03_expert_ad"):
            course.train_stage(fresh, stage)
        with pytest.raises(UserError, match=maker):
            course.stage_model(fresh, stage)
        with pytest.raises(UserError, match=maker):
            course.predict_stage(fresh, stage, [])


def test_the_base_model_needs_no_notebook(fresh: Run) -> None:
    assert course.stage_model(fresh, "base").name == "mini_base"


@pytest.mark.parametrize("stage", ["sc_grpo", "control"])
def test_a_later_stage_before_pa_sft_names_the_notebook(run: Run, stage: str) -> None:
    with pytest.raises(UserError, match="04_pa_sft"):
        course.train_stage(run, stage)


# ---------------------------------------------------------------------------------------------- the dev score


def test_the_dev_score_is_balanced_accuracy_on_dev_pictures_in_percent(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from iadr1_lib.evaluation import prediction

    seen: list[Any] = []

    def always_yes(model: Any, processor: Any, batch: list[Any], **_: Any) -> list[prediction.Generated]:
        seen.extend(batch)
        text = "<think>x</think><location>top</location><type>hole</type><answer>Yes</answer>"
        return [prediction.Generated(text, 0.9, None) for _ in batch]

    monkeypatch.setattr(prediction, "generate", always_yes)
    assert course.dev_check(run)(None, None) == pytest.approx(50)
    assert len(seen) == course.evaluation_settings(run).dev_check_images
    seen.clear()
    course.dev_check(run, count=6)(None, None)
    assert len(seen) == 6


def test_a_run_folder_with_records_and_no_dev_pictures_trains_without_a_dev_check(
    fresh: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from iadr1_lib.training import trainers

    def train(
        start: Any, records: Any, out: Path, settings: Any, seed: int, check: Any, model: Any, force: bool
    ) -> Path:
        assert check is None
        return out

    monkeypatch.setattr(trainers, "train_pa_sft", train)
    fresh.path("expert_ad").mkdir(parents=True)
    monkeypatch.setattr(course, "_require_fitting", lambda run, records: None)
    fresh.path("expert_ad", "pa_sft.json").write_text("[]")
    assert course.train_stage(fresh, "pa_sft") == fresh.path("pa_sft")
    assert "no dev pictures" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- a stage's fingerprint


def test_a_stage_is_made_from_its_pictures_and_not_from_where_it_reports_to(tmp_path: Path) -> None:
    from iadr1_lib.models import ModelSettings
    from iadr1_lib.training import PaSftSettings, stages

    settings = Run("smoke", 0, tmp_path).profile.settings("pa_sft", PaSftSettings)
    records, rows = tmp_path / "pa_sft.json", []
    for name in ("used.png", "unused.png", "beside.png"):
        draw(tmp_path / name)
        rows.append({"images": name if name == "beside.png" else [str(tmp_path / name)], "messages": []})
    records.write_text(json.dumps([rows[0], rows[2]]))

    def fingerprint(**changed: Any) -> str:
        given = {"settings": settings, "model": ModelSettings(), "seed": 0} | changed
        return stages.fingerprint(stages.Inputs(base_model_dir(), records, **given))

    seen = [fingerprint()]
    draw(tmp_path / "unused.png", (9, 9))
    assert fingerprint() == seen[0] == fingerprint(settings=replace(settings, report_to="tensorboard"))
    assert len({seen[0], fingerprint(seed=1), fingerprint(settings=replace(settings, learning_rate=1.0))}) == 3
    for name in ("used.png", "beside.png"):
        draw(tmp_path / name, (9, 9))
        seen.append(fingerprint())
    (tmp_path / "used.png").unlink()
    assert len({*seen, fingerprint()}) == 4


def test_a_stage_of_a_run_that_was_copied_is_made_from_the_same(tmp_path: Path) -> None:
    from iadr1_lib.models import ModelSettings
    from iadr1_lib.training import PaSftSettings, stages

    settings = Run("smoke", 0, tmp_path).profile.settings("pa_sft", PaSftSettings)
    seen = set()
    for folder in (tmp_path / "here", tmp_path / "there"):
        folder.mkdir()
        (folder / "one.png").write_bytes(draw(tmp_path / "one.png").read_bytes())
        records = folder / "pa_sft.json"
        records.write_text(json.dumps([{"images": str(folder / "one.png"), "messages": []}]))
        seen.add(stages.fingerprint(stages.Inputs(base_model_dir(), records, settings, ModelSettings(), 0)))
    assert len(seen) == 1
