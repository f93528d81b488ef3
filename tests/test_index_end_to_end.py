"""The released index files from end to end: index, samples, rows of a stub whose answers are known, scores."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
from PIL import Image

from iadr1_lib.data import load_samples
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import read_predictions, references, score
from iadr1_lib.records import Sample

SIZES = {"DAGM": 8050, "DTD": 1304, "MPDD": 458, "SDD": 340}


def says_yes(image: str) -> bool:
    """The stub's answer from the end of the path: right for most pictures of the first kind, random for the rest."""
    tail = "/".join(Path(image).parts[-3:])
    return (zlib.crc32(tail.encode()) % 10 < 3) == ("good" in tail)


def write_answers(samples: list[Sample], path: Path) -> Path:
    """predictions.jsonl as `inference.predict` writes it."""
    keys = ("image", "category", "benchmark", "label", "location", "type")
    asked = {"p_yes": None, "prompt": "bare", "protocol": "fair", "model": "stub", "seed": 0}
    with path.open("w") as file:
        for sample in samples:
            raw = f"<think>So.</think><answer>{'Yes' if says_yes(sample.image) else 'No'}</answer>"
            file.write(json.dumps({**{key: getattr(sample, key) for key in keys}, "raw": raw, **asked}) + "\n")
    return path


@pytest.mark.parametrize("name", SIZES)
def test_the_pooled_figure_is_that_of_five_lines(shared: Path, tmp_path: Path, name: str) -> None:
    """No picture is opened: with strict=False an index needs none on disk."""
    index = shared / "reference" / "benchmark_index" / f"test_{name}_format.json"
    samples = load_samples(index, root=tmp_path, strict=False)
    assert len(samples) == SIZES[name] and not samples.passed_over
    table = score(read_predictions(write_answers(samples, tmp_path / "p.jsonl")))
    scored = table[table["benchmark"] == name].set_index("metric")["value"]

    right: dict[str, list[bool]] = {"A": [], "B": []}  # A is Yes, B is No
    for path, entry in json.loads(index.read_text()).items():
        truth = entry["conversation"][0]["Answer"]
        right[truth].append(says_yes(path) == (truth == "A"))
    pooled = 100 * sum(sum(found) / len(found) for found in right.values()) / 2

    assert scored["balanced_accuracy"] == pytest.approx(pooled, abs=1e-9)
    assert 55 < pooled < 85  # the stub is neither perfect nor blind, or the comparison would say little
    assert scored["tp"] + scored["fn"] == len(right["A"]) and scored["tn"] + scored["fp"] == len(right["B"])


@pytest.fixture
def mpdd(shared: Path, tmp_path: Path) -> Path:
    """All pictures of the released MPDD index as tiny files, and a copy of the index beside them."""
    index = tmp_path / "test_MPDD_format.json"
    index.write_bytes((shared / "reference" / "benchmark_index" / "test_MPDD_format.json").read_bytes())
    for number, name in enumerate(json.loads(index.read_text())):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 8), number % 250).save(path)
    return index


def test_an_index_whose_pictures_lie_there_and_what_is_missing(mpdd: Path) -> None:
    samples = load_samples(mpdd)
    assert len(samples) == 458
    with pytest.raises(UserError, match="not possible: 458 of 458"):  # the released index names no references
        references(samples, templates=samples.templates)
    for sample in samples[5:8]:
        Path(sample.image).unlink()
    with pytest.raises(UserError) as told:
        load_samples(mpdd)
    assert "3 of 458 pictures" in str(told.value) and samples[5].image in str(told.value)


def test_a_category_that_the_data_set_lacks_is_told(mpdd: Path) -> None:
    content = json.loads(mpdd.read_text())
    content["MPDD/bolts/test/good/0.png"] = {**next(iter(content.values())), "image_path": "MPDD/bolts/test/good/0.png"}
    mpdd.write_text(json.dumps(content))
    with pytest.raises(UserError, match="1 entries are of MPDD/bolts.*bracket_black"):
        load_samples(mpdd)
    assert [problem.kind for problem in load_samples(mpdd, strict=False).passed_over] == ["unknown category"]
    assert load_samples(mpdd, benchmark="mine", strict=False).passed_over == []  # the user's own set


def test_dtd_names_its_references(shared: Path, tmp_path: Path) -> None:
    samples = load_samples(
        shared / "reference" / "benchmark_index" / "test_DTD_format.json", root=tmp_path, strict=False
    )
    assert len(samples.templates) == len(samples)
    assert all(len(kinds["similar"]) == len(kinds["random"]) == 1 for kinds in samples.templates.values())
