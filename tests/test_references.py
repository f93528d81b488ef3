"""One-shot: which picture stands before the one in question, and what is said where there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iadr1_lib.data import load_samples
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import lending, references
from iadr1_lib.evaluation.one_shot import require_references
from iadr1_lib.records import Sample


def draw(path: Path) -> None:
    """A picture of noise, which its path decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(str(path).encode()))
    Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two categories in MVTec-AD's layout with six training pictures each."""
    root = tmp_path / "plant"
    for category in ("bolt", "nut"):
        for kind, count in (("train/good", 6), ("test/good", 4), ("test/bent", 4)):
            for number in range(count):
                draw(root / category / kind / f"{number:03}.png")
    return root


def index(root: Path, templates: dict[str, list[str]]) -> Path:
    """An index of DTD's form; `templates` holds image -> names of its reference pictures."""
    question = {"Answer": "B", "Options": {"A": "Yes.", "B": "No."}}
    entries = {
        image: {"image_path": image, "conversation": [question], "similar_templates": names, "random_templates": names}
        for image, names in templates.items()
    }
    (root / "index.json").write_text(json.dumps(entries))
    return root / "index.json"


def asked(table: list[Sample]) -> list[Sample]:
    return [sample for sample in table if sample.split == "test"]


@pytest.mark.parametrize("kind", ["similar", "random"])
def test_every_test_picture_gets_a_normal_training_picture_of_its_category(tree: Path, kind: str) -> None:
    table = load_samples(tree)
    result = references(asked(table), table, kind=kind, seed=3)
    assert set(result) == {sample.image for sample in asked(table)}
    for sample in asked(table):
        assert [path.parent for path in result[sample.image]] == [tree / sample.category / "train" / "good"]
    assert result == references(asked(table), table, kind=kind, seed=3)
    require_references(asked(table), result)
    result.popitem()  # it must not be asked zero-shot among others
    with pytest.raises(UserError, match="1 pictures have no reference"):
        require_references(asked(table), result)


def test_random_references_depend_on_the_seed_and_not_on_the_folder_s_place(tree: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(tree, tmp_path / "elsewhere" / "plant")
    chosen = []
    for root, seed in ((tree, 0), (moved, 0), (tree, 1)):
        table = load_samples(root)
        result = references(asked(table), table, kind="random", seed=seed)
        chosen.append({Path(image).relative_to(root): path.relative_to(root) for image, [path] in result.items()})
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(set(chosen[0].values())) > 4  # not the same one for all


def test_the_similar_reference_is_the_most_similar(tree: Path) -> None:
    """A training picture that was saved again, a little darker, is chosen for its original."""
    query, like = (tree / "nut" / name / "good" / "002.png" for name in ("test", "train"))
    Image.open(query).point(lambda value: value * 0.8).save(like)
    table = load_samples(tree)
    assert references(asked(table), table, kind="similar")[str(query)] == [like]


@pytest.mark.parametrize("kind", ["similar", "random"])
def test_a_reference_is_never_the_picture_itself(tree: Path, kind: str) -> None:
    """Copied into training, a test picture would be its own answer."""
    query, training = tree / "bolt" / "test" / "good" / "001.png", tree / "bolt" / "train" / "good"
    for number in range(5):
        shutil.copy(query, training / f"{number:03}.png")
    table = load_samples(tree)
    assert references(asked(table), table, kind=kind)[str(query)] == [training / "005.png"]
    shutil.copy(query, training / "005.png")
    with pytest.raises(UserError, match="1 of 16 pictures have no reference.*bolt"):
        references(asked(table), table, kind=kind)
    left = references(asked(table), table, kind=kind, partial=True)
    assert set(left) == {sample.image for sample in asked(table)} - {str(query)}


def test_an_index_s_templates_count_by_kind_and_must_be_on_disk(tmp_path: Path) -> None:
    image = "DTD/Woven_001/test/good/000.png"
    names = [f"DTD/Woven_001/template/{number}.png" for number in range(3)]
    for name in (image, *names):
        draw(tmp_path / name)
    table = load_samples(index(tmp_path, {image: names}))
    query = str(tmp_path / image)
    assert references(table, templates=table.templates) == {query: [tmp_path / names[0]]}
    random = [references(table, templates=table.templates, kind="random", seed=s)[query][0].name for s in range(20)]
    assert set(random) == {"0.png", "1.png", "2.png"}
    (tmp_path / names[1]).unlink()
    with pytest.raises(UserError, match=r"1 of the 3 reference pictures .*template/1\.png"):
        references(table, templates=table.templates)
    with pytest.raises(UserError, match="no paths below"):
        load_samples(index(tmp_path, {image: ["../elsewhere.png"]}))


def test_where_the_index_names_none_training_pictures_serve_or_it_is_not_possible(tree: Path) -> None:
    images = ["nut/test/bent/000.png", "nut/test/bent/001.png", "bolt/test/good/000.png"]
    table = load_samples(index(tree, {f"../plant/{name}": [] for name in images}), root=tree, benchmark="plant")
    named = [sample for sample in load_samples(tree) if Path(sample.image).relative_to(tree).as_posix() in images]
    with pytest.raises(UserError, match="not possible: 3 of 3.*bolt, nut"):
        references(named, templates=table.templates)  # the one good picture among them is of no other's category
    nut = load_samples(tree / "nut")
    assert len(references(named, nut + load_samples(tree / "bolt"), templates=table.templates)) == 3
    with pytest.raises(UserError, match="1 of 3 .*are bolt.*only of nut"):
        references(named, nut)
    # One category on both sides needs no common name: the released index calls KolektorSDD's SDD.
    result = references(asked(load_samples(tree / "bolt")), nut)
    assert all(path.parts[-4] == "nut" for paths in result.values() for path in paths)


def test_missing_pictures_and_unknown_kinds_are_reported(tree: Path) -> None:
    table = load_samples(tree)
    with pytest.raises(UserError, match="similar, random"):
        references(asked(table), table, kind="nice")
    for path in list((tree / "nut" / "test" / "bent").iterdir())[:2]:
        path.unlink()
    with pytest.raises(UserError, match="2 of 16 pictures cannot be reached"):
        references(asked(table), table)


@pytest.mark.parametrize("kind", ["similar", "random"])
@pytest.mark.parametrize("shots", [1, 4])
def test_several_references_come_in_order_and_all_or_none(tree: Path, kind: str, shots: int) -> None:
    table = load_samples(tree)
    result = references(asked(table), table, kind=kind, shots=shots)
    assert all(len(set(paths)) == shots for paths in result.values())
    first = references(asked(table), table, kind=kind)
    assert {image: paths[:1] for image, paths in result.items()} == first
    assert lending(asked(table), result) == []
    with pytest.raises(UserError, match="16 of 16 pictures have fewer than 7 references"):
        references(asked(table), table, kind=kind, shots=7)


@pytest.mark.parametrize("kind", ["similar", "random"])
def test_where_there_is_no_training_picture_good_test_pictures_serve_for_the_others(tree: Path, kind: str) -> None:
    shutil.rmtree(tree / "nut" / "train")
    table = load_samples(tree)
    result = references(asked(table), table, kind=kind, shots=3)
    for sample in asked(table):
        folder = tree / sample.category / ("test" if sample.category == "nut" else "train") / "good"
        assert {path.parent for path in result[sample.image]} == {folder}
        assert Path(sample.image) not in result[sample.image]
    assert lending(asked(table), result) == ["nut"]
    with pytest.raises(UserError, match="4 of 16 pictures have fewer than 4 references.*are nut"):
        references(asked(table), table, kind=kind, shots=4)  # a good one has three others, a bent one four
