"""Where a run's pictures come from: data sets of one's own, and the paper's of the hub, with the smoke profile."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from conftest import read_json
from httpx import Request, Response
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from pictures import draw, one_sentence, released_records, released_tests
from PIL import Image

from iadr1_lib import world
from iadr1_lib.answer import CELLS, DEFECT_TYPES
from iadr1_lib.course import sources, steps
from iadr1_lib.data import content_hash, near_duplicates
from iadr1_lib.files import Journal
from iadr1_lib.records import Sample, read_rows
from iadr1_lib.runs import Choices, Run

Make = Callable[..., Run]
STAGES = (("pa_sft", "pa_sft", "images"), ("sc_grpo", "sc_grpo", "image"), ("control", "sc_grpo", "images"))
TRAINED = ("pa_sft", "sc_grpo", "dev")
FAMILIES = world.train_families(7)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four categories with 24 pictures each; a mask is missing, one is empty, a picture cannot be read."""
    root = tmp_path_factory.mktemp("drawn") / "factory"
    world.write_world(root, FAMILIES[:4], 96, seed=0)
    masks = sorted(root.rglob("*_mask.png"))
    masks[0].unlink()
    Image.new("L", Image.open(masks[1]).size).save(masks[1])
    sorted(root.rglob("good/*.png"))[0].write_text("no picture")
    kind = next(path for path in sorted(root.glob("*/test/*")) if path.name != "good")
    for folder in (kind, kind.parents[1] / "ground_truth" / kind.name):  # a name that no table knows
        folder.rename(folder.with_name("oddity"))
    return root


@pytest.fixture
def data(drawn: Path, tmp_path: Path) -> Path:
    """A copy of those that a test may change."""
    return Path(shutil.copytree(drawn, tmp_path / "factory"))


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def run(*data: Path, test: Path | None = None, profile: str = "smoke", folder: str = "run", **choices: Any) -> Run:
        chosen = Choices(tuple(map(str, data)), (str(test),) if test else (), **choices)
        return Run(profile, 0, tmp_path / folder, chosen)

    return run


@pytest.fixture
def nothing_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the look for near duplicates."""
    monkeypatch.setattr("iadr1_lib.data.splitting.near_duplicates", lambda *_: [])


def parts_of(run: Run) -> dict[str, list[Sample]]:
    parts = {part: sources.training_samples(run, part) for part in TRAINED}
    return parts | {"test": sources.benchmark_samples(run, "a test")}


def left_out(run: Run) -> dict[str, str]:
    return {row["image"]: row["reason"] for row in Journal(run.path("source", "left_out.jsonl")).rows()}


# ---------------------------------------------------------------------------------------------- own data sets


def test_a_data_set_becomes_the_four_parts_of_a_run(drawn: Path, make: Make) -> None:
    run = make(drawn)
    assert run.source == "folders"
    sentences = sources.prepare(run)
    parts = parts_of(run)
    for one, other in combinations(parts.values(), 2):
        assert not {content_hash(s.image) for s in one} & {content_hash(s.image) for s in other}
    assert near_duplicates([*parts["pa_sft"], *parts["sc_grpo"]], parts["test"]) == []
    limits = run.profile.settings("source", sources.SourceSettings)
    for part, samples in parts.items():
        assert 0 < len(samples) <= getattr(limits, f"{part}_images")
        assert {s.benchmark for s in samples} == {"factory" if part == "test" else part}
        assert set(Counter(s.label for s in samples)) == {"no", "yes"}
        assert all(Path(s.image).is_absolute() and Path(s.image).is_file() for s in samples)
    assert [s.label for s in parts["pa_sft"]] == ["no", "yes"] * (len(parts["pa_sft"]) // 2)
    defects = [s for samples in parts.values() for s in samples if s.label == "yes"]
    assert {s.type for s in defects} <= {*DEFECT_TYPES, "other"} and {s.location for s in defects} <= set(CELLS)
    (held,) = {s.category for s in parts["test"]}
    assert held not in {s.category for part in TRAINED for s in parts[part]} and held in " ".join(sentences)
    reasons = Counter(left_out(run).values())
    assert all(reasons[reason] == 1 for reason in ("defect without mask", "empty mask", "unreadable"))
    note = read_json(run.path("source", "source.json"))
    assert note["sentences"] == sentences and note["left out"] == len(left_out(run))
    assert note["pictures"] == {part: dict(Counter(s.label for s in samples)) for part, samples in parts.items()}
    assert [row["why"] for row in Journal(run.path("test_openings.jsonl")).rows()] == ["a test"]


def test_what_is_there_is_read_and_a_change_splits_anew(
    data: Path, make: Make, nothing_alike: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits: list[int] = []
    honest = sources.split_samples

    def counted(pool: list[Sample], *more: Any) -> Any:
        splits.append(len(pool))
        return honest(pool, *more)

    monkeypatch.setattr(sources, "split_samples", counted)
    first = sources.prepare(make(data))
    before = parts_of(make(data))
    assert sources.prepare(make(data)) == first and len(splits) == 1 and parts_of(make(data)) == before
    draw(Path(before["pa_sft"][0].image), (96, 96))
    assert "anew" in sources.prepare(make(data))[0] and len(splits) == 2
    assert sources.prepare(make(data)) == first and len(splits) == 2  # said once
    make(data).path("source", "dev.jsonl").unlink()
    sources.prepare(make(data))
    assert len(splits) == 3 and parts_of(make(data))["dev"]
    held = before["pa_sft"][0].category
    assert "anew" in sources.prepare(make(data, hold_out=(held,)))[0]
    assert {s.category for s in parts_of(make(data))["test"]} == {held}


def test_the_pictures_to_test_on_may_be_given(data: Path, tmp_path: Path, make: Make) -> None:
    test = tmp_path / "customer"
    world.write_world(test, FAMILIES[4:6], 24, seed=1)
    world.write_references(test, FAMILIES[4:6], 2)
    shutil.rmtree(next(test.glob("*/ground_truth")))  # a label is enough for a test
    given = sorted(str(path) for path in test.glob("*/test/*/*.png"))
    category = sorted(path for path in data.iterdir() if path.is_dir())[0]
    copy = category / "test" / "good" / "copy.jpg"
    Image.open(next(path for path in given if "good" in path)).save(copy, quality=90)
    run = make(data, test=test)
    sources.prepare(run)
    parts = parts_of(run)
    assert sorted(s.image for s in parts["test"]) == given
    assert "nearly the same" in left_out(run)[str(copy)]
    assert str(copy) not in {s.image for part in TRAINED for s in parts[part]}
    assert len({s.category for part in TRAINED for s in parts[part]}) == 4  # none is held out
    for path in test.glob("*/test/good/*.png"):
        path.unlink()
    one_sentence(lambda: sources.prepare(make(data, test=test)), "no good pictures", "customer", "--test")
    assert sources.prepare(make(data))  # and what was there has not been replaced by half a split


def test_data_that_cannot_be_trained_on_say_so_and_what_can_be_done(data: Path, make: Make, tmp_path: Path) -> None:
    few = tmp_path / "few"
    world.write_world(few, FAMILIES[:2], 24, seed=3)
    one_sentence(lambda: sources.prepare(make(few)), few, "12 defective", "20 at least", "iadr1 evaluate")
    no_good = Path(shutil.copytree(data, tmp_path / "no good"))
    for folder in no_good.glob("*/test/good"):
        shutil.rmtree(folder)
    one_sentence(lambda: sources.prepare(make(no_good)), "no good pictures", "empty mask 1", "iadr1 evaluate")
    for folder in data.glob("*/ground_truth"):
        shutil.rmtree(folder)
    one_sentence(lambda: sources.prepare(make(data)), data, "mask", "docs/expert-ad.md", "iadr1 inspect")
    one_sentence(lambda: sources.prepare(make(tmp_path / "nowhere")), "nowhere")
    assert not make(data).folder.exists()


def test_several_data_sets_are_one_pool(tmp_path: Path, make: Make, nothing_alike: None) -> None:
    for number, name in enumerate(("a", "b")):
        world.write_world(tmp_path / name, FAMILIES[number : number + 1], 48, seed=number)
    run = make(tmp_path / "a", tmp_path / "b")
    sources.prepare(run)
    (tested,), (trained,) = ({s.category for s in parts_of(run)[part]} for part in ("test", "pa_sft"))
    assert {tested, trained} == {family.name for family in FAMILIES[:2]}


def test_limits_hold_with_even_labels_and_records_are_of_the_run_s_parts(
    drawn: Path, make: Make, nothing_alike: None
) -> None:
    sizes = {"pa_sft": 8, "sc_grpo": 6, "dev": 4, "test": 8}
    run = make(drawn, settings={f"source.{part}_images": size for part, size in sizes.items()})
    sources.prepare(run)
    parts = parts_of(run)
    for part, size in sizes.items():
        assert Counter(s.label for s in parts[part]) == {"no": size // 2, "yes": size // 2}
    folder = steps.build_expert_ad(run)
    for stage, part, key in STAGES:
        assert sorted(row[key] for row in read_rows(folder / f"{stage}.json")) == sorted(s.image for s in parts[part])


# ---------------------------------------------------------------------------------------------- the hub


@pytest.mark.parametrize("profile", ["gpu", "paper"])
def test_copies_of_the_paper_s_sets_become_the_parts(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    released_records(tmp_path / "Expert-AD", each=8)
    released_tests(tmp_path / "tests", ("DAGM", "SDD"), each=6)
    monkeypatch.chdir(tmp_path)  # copies may be named from where one stands
    names = {"data.expert_ad": "Expert-AD", "data.benchmarks": "tests"}
    run = make(profile=profile, settings=names | {"source.dev_images": 2})
    assert run.source == "hub"
    first = sources.prepare(run)
    parts = parts_of(run)
    assert {part: len(samples) for part, samples in parts.items()} == {"pa_sft": 8, "sc_grpo": 6, "dev": 2, "test": 12}
    assert not {s.image for s in parts["dev"]} & {s.image for s in (*parts["pa_sft"], *parts["sc_grpo"])}
    assert {s.benchmark for s in parts["test"]} == {"DAGM", "SDD"}
    assert {s.label for s in parts["dev"]} == {"no", "yes"}
    monkeypatch.setattr(sources, "_hub_table", lambda name: pytest.fail("read again"))
    assert sources.prepare(run) == first
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    folder = steps.build_expert_ad(run)
    assert [len(read_rows(folder / f"{stage}.json")) for stage in ("pa_sft", "sc_grpo")] == [8, 6]
    run = make(profile=profile, settings=names | {"source.dev_images": 4, "source.test_images": 2})
    sources.prepare(run)
    assert [len(parts_of(run)[part]) for part in ("sc_grpo", "dev", "test")] == [4, 4, 4]


def test_a_picture_of_both_stages_is_no_dev_picture(tmp_path: Path, make: Make) -> None:
    copy = released_records(tmp_path / "Expert-AD", each=8)
    text = (copy / "sc_grpo.json").read_text()
    (copy / "sc_grpo.json").write_text(text.replace("second/bolt", "first/bolt", 6))
    names = {"data.expert_ad": str(copy), "data.benchmarks": str(released_tests(tmp_path / "tests", ["SDD"]))}
    run = make(profile="gpu", settings=names)
    sources.prepare(run)
    assert not {s.image for s in parts_of(run)["dev"]} & {s.image for s in parts_of(run)["pa_sft"]}
    (copy / "pa_sft.json").unlink()
    one_sentence(lambda: sources.prepare(make(profile="gpu", folder="other", settings=names)), copy, "pa-sft")


@pytest.mark.parametrize("error", [GatedRepoError, RepositoryNotFoundError])
def test_sets_that_are_not_given_out_say_what_to_do(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error("no", response=Response(403, request=Request("GET", "http://hub")))  # type: ignore[call-arg]

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    monkeypatch.setattr("iadr1_lib.data.hub.project_root", lambda: tmp_path)
    one_sentence(lambda: sources.prepare(make(profile="gpu")), "yanhui01/Expert-AD", "hf auth login", "iadr1 expert-ad")
    assert not make(profile="gpu").folder.exists()
