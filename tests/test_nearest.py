"""The baseline of nearest neighbours, on pictures of a few cells with features that are their colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from iadr1_lib.data import load_samples
from iadr1_lib.evaluation import references
from iadr1_lib.evaluation.nearest import called, held_out, nearest, ranked
from iadr1_lib.evaluation.sanity import NORMAL_NEEDED
from iadr1_lib.records import Sample

RED, BLUE = (255, 0, 0), (0, 0, 255)


def colours(pictures: list[Image.Image]) -> NDArray[np.float64]:
    """Each pixel is a cell, its colour the channels."""
    return np.stack([np.asarray(picture, dtype=float).reshape(-1, 3) for picture in pictures])


def draw(path: Path, shade: int, blue: int = 0) -> None:
    """A red picture of 4 x 4 pixels with some blue ones; the shade makes files differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (4, 4), RED)
    picture.putpixel((0, 0), (255, shade, 0))
    for number in range(blue):
        picture.putpixel((3, number), BLUE)
    picture.save(path)


@pytest.fixture
def table(tmp_path: Path) -> list[Sample]:
    """Six good training pictures, three good and three defective test pictures."""
    for number in range(6):
        draw(tmp_path / "set" / "bolt" / "train" / "good" / f"{number}.png", shade=number)
    for number in range(3):
        draw(tmp_path / "set" / "bolt" / "test" / "good" / f"{number}.png", shade=number + 10)
        draw(tmp_path / "set" / "bolt" / "test" / "stain" / f"{number}.png", shade=number, blue=number + 1)
    return load_samples(tmp_path / "set")


def test_odd_cells_make_the_score_and_the_order(table: list[Sample]) -> None:
    asked = [sample for sample in table if sample.split == "test"]
    scored = nearest(asked, references(asked, table, shots=4), colours)
    assert scored["image"].tolist() == [sample.image for sample in asked]
    by_name = {Path(row["image"]).parts[-2:]: row["p_yes"] for row in scored.to_dict("records")}
    for number in range(3):  # blue against red: the cosine distance is 1, in one to three of the three oddest cells
        assert by_name["stain", f"{number}.png"] == pytest.approx((number + 1) / 3, abs=1e-4)
        assert by_name["good", f"{number}.png"] < 1e-3
    auroc = ranked(scored).query("metric == 'auroc' and benchmark == 'set/bolt'").iloc[0]
    assert (auroc["value"], auroc["n"]) == (100, 6)


def test_the_threshold_comes_from_good_pictures_held_out(table: list[Sample]) -> None:
    asked = [sample for sample in table if sample.split == "test"]
    scored = nearest(asked, references(asked, table), colours)
    good = held_out(table, colours)
    assert len(good) == 6 and set(good["label"]) == {"no"}
    answers = called(scored, good)
    assert answers[scored["label"] == "yes"].tolist() == [1, 1, 1]
    assert called(scored).isna().all()  # three good test pictures are too few
    few = [sample for sample in table if sample.split == "train"][: NORMAL_NEEDED - 1]
    assert held_out(few, colours).empty
    assert called(scored, held_out(few, colours)).isna().all()


def test_without_others_the_good_test_pictures_set_the_threshold() -> None:
    rows = [("s", "bolt", f"{n}.png", "no", n / 10) for n in range(10)] + [("s", "bolt", "x.png", "yes", 0.95)]
    scored = pd.DataFrame(rows, columns=["benchmark", "category", "image", "label", "p_yes"])
    assert called(scored).tolist() == [0] * 9 + [1, 1]
