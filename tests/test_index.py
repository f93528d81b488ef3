"""Files that name pictures: the released test index to its scores, meta.json, Real-IAD's indexes."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from pictures import draw, draw_mask, one_sentence, problem_kinds
from pictures import index_entry as entry

from iadr1_lib.answer import DEFECT_TYPES
from iadr1_lib.data import load_samples
from iadr1_lib.data.index import REAL_IAD_TYPES, read_index
from iadr1_lib.evaluation import read_predictions, references, score
from iadr1_lib.files import write_json
from iadr1_lib.records import Sample

# name: entries, normal ones, categories
RELEASED = {"DAGM": (8050, 6996, 10), "DTD": (1304, 357, 12), "MPDD": (458, 176, 6), "SDD": (340, 286, 1)}


def released(shared: Path, name: str) -> Path:
    return shared / "reference" / "benchmark_index" / f"test_{name}_format.json"


def write_index(folder: Path, answers: dict[str, str]) -> Path:
    return write_json(folder / "index.json", {name: entry(name, answer) for name, answer in answers.items()})


def says_yes(image: str) -> bool:
    """The stub's answer from the end of the path: right for most pictures of the first kind, random for the rest."""
    tail = "/".join(Path(image).parts[-3:])
    return (zlib.crc32(tail.encode()) % 10 < 3) == ("good" in tail)


def write_answers(samples: list[Sample], path: Path) -> Path:
    """predictions.jsonl as `evaluation` writes it."""
    keys = ("image", "category", "benchmark", "label", "location", "type")
    protocol = {"p_yes": None, "prompt": "bare", "protocol": "fair", "model": "stub", "seed": 0}
    with path.open("w") as file:
        for sample in samples:
            raw = f"<think>So.</think><answer>{'Yes' if says_yes(sample.image) else 'No'}</answer>"
            file.write(json.dumps({**{key: getattr(sample, key) for key in keys}, "raw": raw, **protocol}) + "\n")
    return path


@pytest.mark.parametrize("name", RELEASED)
def test_the_pooled_figure_is_that_of_five_lines(shared: Path, tmp_path: Path, name: str) -> None:
    """No picture is opened: with strict=False an index needs none on disk."""
    index = released(shared, name)
    entries, normal, categories = RELEASED[name]
    samples = load_samples(index, root=tmp_path, strict=False)
    assert Counter(s.label for s in samples) == {"no": normal, "yes": entries - normal} and not samples.passed_over
    assert {s.benchmark for s in samples} == {name} and len({s.category for s in samples}) == categories
    assert list(read_index(index)) == [Path(s.image).relative_to(tmp_path).as_posix() for s in samples]
    table = score(read_predictions(write_answers(samples, tmp_path / "p.jsonl")))
    scored = table[table["benchmark"] == name].set_index("metric")["value"]

    right: dict[str, list[bool]] = {"A": [], "B": []}  # A is Yes, B is No
    for path, row in json.loads(index.read_text()).items():
        truth = row["conversation"][0]["Answer"]
        right[truth].append(says_yes(path) == (truth == "A"))
    pooled = 100 * sum(sum(hits) / len(hits) for hits in right.values()) / 2

    assert scored["balanced_accuracy"] == pytest.approx(pooled, abs=1e-9)
    assert 55 < pooled < 85  # the stub is neither perfect nor blind, or the comparison would say little
    assert scored["tp"] + scored["fn"] == len(right["A"]) and scored["tn"] + scored["fp"] == len(right["B"])


@pytest.fixture
def mpdd(shared: Path, tmp_path: Path) -> Path:
    """All pictures of the released MPDD index as tiny files, and a copy of the index beside them."""
    index = tmp_path / "test_MPDD_format.json"
    index.write_bytes(released(shared, "MPDD").read_bytes())
    for name in json.loads(index.read_text()):
        draw(tmp_path / name, size=(9, 8))
    return index


def test_an_index_whose_pictures_lie_there_and_what_is_missing(mpdd: Path) -> None:
    samples = load_samples(mpdd)
    assert len(samples) == 458
    chosen = references(samples, kind="random", templates=samples.templates)
    good = {sample.image for sample in samples if sample.label == "no"}
    assert good >= {str(path) for [path] in chosen.values()}  # this index names no references, and has no training
    for sample in samples[5:8]:
        Path(sample.image).unlink()
    one_sentence(lambda: load_samples(mpdd), "3 of 458 pictures", samples[5].image)


def test_dtd_names_its_references(shared: Path, tmp_path: Path) -> None:
    samples = load_samples(released(shared, "DTD"), root=tmp_path, strict=False)
    assert len(samples.templates) == len(samples)
    assert all(len(kinds["similar"]) == len(kinds["random"]) == 1 for kinds in samples.templates.values())


def test_labels_of_an_index_are_its_own_not_the_folder_s(tmp_path: Path) -> None:
    """The word good in a path may stand there by accident, be missing, or be wrong."""
    answers = {"X/goodyear/test/ok/0.png": "B", "X/tyre/test/ok/1.png": "B", "X/tyre/test/good/2.png": "B",
               "X/tyre/test/good/3.png": "A"}  # fmt: skip
    for name in answers:
        draw(tmp_path / name)
    table = load_samples(write_index(tmp_path, answers))
    assert [s.label for s in table] == ["no", "no", "no", "yes"]
    assert {(s.benchmark, s.category) for s in table} == {("X", "goodyear"), ("X", "tyre")}
    assert problem_kinds(table) == {"good by accident": 1, "no good in path": 1, "good in path": 1,
                                    "defect without mask": 1}  # fmt: skip


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "a\0b.png", "link.png"])
def test_entries_of_an_index_that_lead_out(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "data"
    draw(folder / "good" / "a.png")
    (folder / "link.png").symlink_to(draw(tmp_path / "secret.png"))
    index = write_index(folder, {"good/a.png": "B", path: "B"})
    table = load_samples(index, strict=False)
    assert len(table) == 1 and problem_kinds(table) == {"outside": 1}
    one_sentence(lambda: load_samples(index), "lies outside")


@pytest.mark.parametrize(
    ("mask", "part"), [("gone.png", "gone.png"), ("../outside.png", "lies outside"), (3, "a.png has no question")]
)
def test_masks_of_an_index_that_cannot_be_read(tmp_path: Path, mask: object, part: str) -> None:
    draw(tmp_path / "data" / "a.png"), draw_mask(tmp_path / "outside.png")
    path = write_json(tmp_path / "data" / "index.json", {"a.png": entry("a.png", "A", mask_path=mask)})
    one_sentence(lambda: load_samples(path), part)


def test_the_question_with_yes_and_no_need_not_be_the_first(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    row = entry("a.png", "A")
    others = [{"Question": "What is shown?"}, {"Answer": "B", "Options": {"A": "hole", "B": "No.", "C": 3}}]
    row["conversation"] = [*others, *row["conversation"]]
    assert [s.label for s in load_samples(write_json(tmp_path / "index.json", {"a.png": row}))] == ["yes"]


WRITERS: dict[str, Callable[[str], bytes]] = {
    "plain": lambda text: text.encode(),
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "backslashes": lambda text: text.replace("/", "\\\\").encode(),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", ["index", "meta", "meta by split", "real-iad"])
def test_files_of_other_systems_say_the_same(tmp_path: Path, kind: str, writer: str) -> None:
    good, bad, mask = "X/part/test/good/0.png", "X/part/test/bent_leg/0.png", "X/part/ground_truth/bent/0.png"
    draw(tmp_path / good), draw(tmp_path / bad), draw_mask(tmp_path / mask)
    draw(tmp_path / "X/part/train/good/1.png")
    row = {"specie_name": "bent_leg", "anomaly": 1}
    meta = {"part": [{"img_path": good, "mask_path": "", "anomaly": 0}, {"img_path": bad, "mask_path": mask, **row}]}
    iad = [
        {"image_path": good, "anomaly_class": "OK", "category": "part"},
        {"image_path": bad, "mask_path": mask, "anomaly_class": "HS", "category": "part"},
    ]
    templates = ["X/part/train/good/1.png"]
    content = {
        "index": {good: entry(good, "B"), bad: entry(bad, "A", mask_path=mask, similar_templates=templates)},
        "meta": meta,
        "meta by split": {"test": meta},
        "real-iad": {"meta": {"prefix": "."}, "train": [], "test": iad},
    }[kind]
    (tmp_path / "file.json").write_bytes(WRITERS[writer](json.dumps(content)))
    table = load_samples(tmp_path if kind == "real-iad" else tmp_path / "file.json", layout="real-iad")
    word = "scratch" if kind == "real-iad" else "bent leg"
    assert [(s.label, s.image, s.mask, s.type, s.location, s.category, s.split) for s in table] == [
        ("no", str(tmp_path / good), None, None, None, "part", "test"),
        ("yes", str(tmp_path / bad), str(tmp_path / mask), word, "top left", "part", "test"),
    ]
    if kind == "index":
        assert table.templates[table[1].image]["similar"] == [tmp_path / "X/part/train/good/1.png"]


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("{", "no JSON"),
        ("[]", "neither an index nor a meta file"),
        ('{"nut": [{"img_path": "a.png"}]}', "row 0 of nut"),
        ('{"a.png": {"conversation": []}}', "entry a.png"),
        ('{"nut": 3}', "neither an index nor a meta file"),
        ('{"a": {"image_path": 5, "conversation": [{"Answer": "A", "Options": {"A": "Yes."}}]}}', "entry a "),
        ('{"a": {"image_path": "a", "conversation": [{"Answer": "A", "Options": {"A": 1}}]}}', "entry a "),
        ("[" * 100_000, "no JSON"),
        ('{"nut": []}', "lists no pictures"),
    ],
)
def test_files_of_another_kind_end_in_one_sentence(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "odd.json").write_text(content)
    one_sentence(lambda: load_samples(tmp_path / "odd.json"), complaint)
    (tmp_path / "index.json").write_text(json.dumps({"a.png": entry("a.png", "A")}), encoding="utf-16")
    one_sentence(lambda: load_samples(tmp_path / "index.json"), "index.json is UTF-16")


def real_iad(root: Path, image: str = "HS/S1/b.jpg", rows: tuple[object, ...] = ()) -> Path:
    draw(root / "bolt/OK/S1/a.jpg"), draw(root / "bolt/HS/S1/b.jpg"), draw_mask(root / "bolt/HS/S1/b.png")
    good = {"category": "bolt", "anomaly_class": "OK", "image_path": "OK/S1/a.jpg", "mask_path": None}
    bad = {"category": "bolt", "anomaly_class": "HS", "image_path": image, "mask_path": "HS/S1/b.png"}
    meta = {"normal_class": "OK", "prefix": "realiad_1024/bolt/"}
    write_json(root / "realiad_jsons" / "bolt.json", {"meta": meta, "train": [good], "test": [bad, *rows]})
    return root


def test_real_iad_follows_its_index(tmp_path: Path) -> None:
    first, second = load_samples(real_iad(tmp_path))
    assert (first.label, first.split, first.type) == ("no", "train", None)
    assert (second.label, second.type, second.location, second.category) == ("yes", "scratch", "top left", "bolt")
    assert set(REAL_IAD_TYPES.values()) == set(DEFECT_TYPES)


def test_real_iad_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    draw(tmp_path / "secret.jpg")
    root = real_iad(tmp_path / "data", image="../../secret.jpg")
    one_sentence(lambda: load_samples(root), "outside")
    table = load_samples(root, strict=False)
    assert [s.label for s in table] == ["no"] and problem_kinds(table) == {"outside": 1, "passed over": 1}


@pytest.mark.parametrize("row", [None, 3, {}, {"anomaly_class": "OK"}, {"anomaly_class": "OK", "image_path": 7}])
def test_broken_rows_of_real_iad(tmp_path: Path, row: object) -> None:
    table = load_samples(real_iad(tmp_path, rows=(row,)), strict=False)
    (problem,) = table.passed_over
    assert len(table) == 2 and problem.kind == "broken row" and "row 1 of test" in problem.message
