"""Measuring `photo` on real pictures (data/photo_model_measure.py): differences, order, places, and a whole run."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import test_comparison
import test_photographs

from iadr1_lib.evaluation import balanced_accuracy, judge, ranking, read_predictions
from iadr1_lib.world import kinds, write_photographs

sys.path.append(str(Path(__file__).parents[1] / "data"))
measure: Any = importlib.import_module("photo_model_measure")
textures, folder = test_photographs.textures, test_comparison.folder


def answered(seeds: int = 2) -> pd.DataFrame:
    """Ten pictures: with one good one PA-SFT is right on all, SC-GRPO on the defective ones, of which it places two."""
    rows = []
    for shots in measure.SHOTS:
        for seed in range(seeds):
            for i in range(10):
                label = "yes" if i < 4 else "no"
                right = {"pa_sft": float(shots > 0), "sc_grpo": float(label == "yes")}
                row: dict[str, Any] = {"benchmark": "set", "image": f"{i}.png", "label": label, "shots": shots}
                row |= {"seed": seed, "location": "center" if i else "top", "type": "glue" if i else "scratches"}
                for stage, correct in right.items():
                    said = (label == "yes") == bool(correct)
                    row |= {f"{stage}/correct": correct, f"{stage}/said_yes": float(said)}
                    row |= {f"{stage}/location_right": float(i in (0, 1)), f"{stage}/type_right": float(i == 0)}
                    row[f"{stage}/p_yes"] = 0.9 - i / 20 if seed == 0 else (i * 7) % 10 / 10
                rows.append(row | ({"nearest/p_yes": i / 10} if shots else {}))
    return pd.DataFrame(rows)


def by_metric(table: pd.DataFrame) -> dict[str, float]:
    own: dict[str, float] = table[table["benchmark"] == "set"].set_index("metric")["value"].to_dict()
    return own


def test_verdicts_and_their_differences() -> None:
    found = by_metric(measure.verdicts(answered()))
    assert found["pa_sft/0/balanced_accuracy"] == 0 and found["pa_sft/1/balanced_accuracy"] == 100
    assert found["sc_grpo/1/balanced_accuracy"] == 50 and found["sc_grpo/1/accuracy_normal"] == 0
    assert found["sc_grpo_minus_pa_sft/1/balanced_accuracy"] == -50
    assert found["pa_sft/1_minus_0/balanced_accuracy"] == 100 and found["sc_grpo/1_minus_0/balanced_accuracy"] == 0


def test_order_is_the_mean_over_seeds() -> None:
    rows = answered()
    found = by_metric(measure.orders(rows))
    each = []
    for seed in (0, 1):
        own = rows[(rows["shots"] == 1) & (rows["seed"] == seed)].rename(columns={"pa_sft/p_yes": "p_yes"})
        table = ranking(own)
        each.append(table[(table["benchmark"] == "set") & (table["metric"] == "auroc")]["value"].iloc[0])
    assert each[0] == 100 and found["pa_sft/1/auroc"] == pytest.approx(sum(each) / 2)
    assert found["nearest/1/auroc"] == 0 and "nearest/0/auroc" not in found
    assert found["sc_grpo_minus_nearest/4/auroc"] == pytest.approx(found["sc_grpo/4/auroc"])


def test_places_and_types_stand_beside_chance() -> None:
    found = by_metric(measure.places_and_types(answered()))
    assert found["chance/1/location"] == 75 and found["sc_grpo/1/location"] == 50
    assert found["chance/1/type"] == 100, "glue is no type of the vocabulary, scratches are one"


def test_a_measurement_asks_each_run_and_can_be_read(
    textures: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photographs(tmp_path / "set", kinds(textures, "dev", 1), 8, seed=1, references=4)
    for stage in measure.STAGES:
        (tmp_path / "s0" / stage).mkdir(parents=True)
        (tmp_path / "s0" / stage / "model").symlink_to(folder)
    monkeypatch.setattr(measure, "SETS", {"dev": {"one set": "set"}})
    words = ["dev", "s0", "--pictures", ".", "--work", "work", "--out", "out"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["measure", *words])
    measure.main()
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "dev.json").read_text())["rows"]}
    predictions = judge(read_predictions(tmp_path / "work" / "set_1_s0_sc_grpo.jsonl"))
    reached = balanced_accuracy(predictions["label"], predictions["answer"])
    assert rows["dev/sc_grpo/1/balanced_accuracy/one set"]["value"] == pytest.approx(reached)
    assert rows["dev/nearest/4/auroc/one set"]["n"] == 8
