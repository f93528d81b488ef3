"""Measure the model `photo` on real pictures: data/reference/photo/<dev|test>.json, with 95 % intervals.

    python data/photo_model_measure.py dev --pictures ../shared runs/photo-s0 runs/photo-s1 runs/photo-s2

Each run is one seed of training. Every set is asked about with no, one and four good pictures of the category, drawn at
random, and beside the answers stand nearest neighbours on the tower's features with the same good pictures. Where there
are several runs, a picture counts with the mean over them; the intervals are over pictures. Answers are kept in --work,
so that a measurement that was stopped goes on.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iadr1_lib.answer import DEFECT_TYPES
from iadr1_lib.data import Table, load_samples
from iadr1_lib.evaluation import judge, metric_rows, nearest, prediction, read_predictions, references
from iadr1_lib.evaluation.intervals import Estimate, average, estimate_table, label_means
from iadr1_lib.evaluation.metrics import auc_estimates, type_name
from iadr1_lib.files import write_json
from iadr1_lib.models import describe_pictures
from iadr1_lib.records import Sample
from iadr1_lib.runs import stamp

# Choices are made on dev. Test is opened for final numbers alone, and each opening is noted in docs/lab_log.md.
SETS = {
    "dev": {
        "AITEX (fabric)": "real/AITEX",
        "sawn wood": "real/WoodSurface",
        "ELPV (solar cells)": "real/ELPV",
        "MPDD, metal plate": "real/MPDD",
        "MVTec-AD, screw": "real/MVTec-AD/screw",
        "MVTec-AD, leather": "real/MVTec-AD/leather",
    },
    "test": {
        "MVTec-AD, pill": "real/MVTec-AD/pill",
        "MVTec-AD, transistor": "real/MVTec-AD/transistor",
        "VisA, capsules": "real/VisA/capsules",
        "magnetic tiles": "samples/MagneticTile",
        "DeepPCB": "real/DeepPCB",
        "KolektorSDD": "samples/KolektorSDD",
        "Pill-Defects (CT)": "real/Pill-Defects",
    },
}
MOST = 60  # pictures of each label that are asked about
STAGES = ("pa_sft", "sc_grpo")
SHOTS = (0, 1, 4)


def asked_about(table: Table) -> list[Sample]:
    """The test pictures, MOST of each label at most, drawn at random."""
    rng, chosen = np.random.default_rng(0), []
    for label in ("no", "yes"):
        own = [sample for sample in table if sample.split == "test" and sample.label == label]
        chosen += [own[i] for i in sorted(rng.permutation(len(own))[:MOST])]
    return chosen


def answers(model: Path, samples: list[Sample], given: Any, out: Path, **how: Any) -> pd.DataFrame:
    """The judged answers of a model to these pictures, a row for each image; `out` may hold others, too."""
    prediction.predict(model, samples, out, references=given or None, quiet=True, batch_size=128, **how)
    found = read_predictions(out)
    return judge(found[found["image"].isin({sample.image for sample in samples})]).set_index("image")


def columns_of(run: Path, samples: list[Sample], given: Any, name: Path) -> dict[str, pd.Series]:
    """What each stage of a run said of each picture: its verdict after reasoning, and P(Yes) without."""
    columns: dict[str, pd.Series] = {}
    for stage in STAGES:
        model, journal = run / stage / "model", f"{name.name}_{run.name}_{stage}"
        said = answers(model, samples, given, name.with_name(f"{journal}.jsonl"))
        columns |= {f"{stage}/{key}": said[key] for key in ("correct", "location_right", "type_right")}
        columns[f"{stage}/said_yes"] = (said["answer"] == "yes").astype(float)
        direct = name.with_name(f"{journal}_direct.jsonl")
        sure = answers(model, samples, given, direct, prompt="direct", answer_only=True)
        columns[f"{stage}/p_yes"] = sure["p_yes"]
    return columns


def measure(title: str, folder: Path, runs: Sequence[Path], work: Path) -> pd.DataFrame:
    """One row for each picture, number of good pictures, and seed: what each stage answered, and the baseline."""
    table = load_samples(folder)
    samples, parts = asked_about(table), []
    truth = pd.DataFrame([vars(sample) for sample in samples]).set_index("image")[["label", "location", "type"]]
    for shots in SHOTS:
        given = references(samples, table, kind="random", templates=table.templates, shots=shots) if shots else {}
        baseline = {}
        if shots:
            scored = nearest.nearest(samples, given, describe_pictures)
            baseline["nearest/p_yes"] = scored.set_index("image")["p_yes"]
        for seed, run in enumerate(runs):
            rows = pd.DataFrame(columns_of(run, samples, given, work / f"{folder.name}_{shots}") | baseline)
            parts.append(rows.join(truth).assign(benchmark=title, shots=shots, seed=seed).reset_index())
        print(f"{title}, {shots} good: {len(samples)} pictures, {len(runs)} seeds", flush=True)
    return pd.concat(parts, ignore_index=True)


def verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    """Balanced accuracy of each stage with each number of good pictures, and the differences, picture by picture."""
    keys = ["benchmark", "image", "label"]
    found = rows.groupby([*keys, "shots"], sort=False)[[f"{stage}/correct" for stage in STAGES]].mean().unstack("shots")
    levels = {f"{stage}/{shots}": found[f"{stage}/correct", shots] for stage in STAGES for shots in SHOTS}
    pairs = [(f"sc_grpo_minus_pa_sft/{n}", f"sc_grpo/{n}", f"pa_sft/{n}") for n in SHOTS]
    pairs += [(f"{stage}/1_minus_0", f"{stage}/1", f"{stage}/0") for stage in STAGES]
    changes = {name: levels[more] - levels[less] for name, more, less in pairs}
    rng = np.random.default_rng(0)

    def estimates(group: pd.DataFrame) -> dict[str, Estimate]:
        made: dict[str, Estimate] = {}
        for column in (*levels, *changes):
            normal, defective = label_means(group, column, rng)
            made[f"{column}/balanced_accuracy"] = average([normal, defective])
            if column in levels:
                made |= {f"{column}/accuracy_normal": normal, f"{column}/accuracy_defective": defective}
        return made

    return estimate_table(pd.DataFrame(levels | changes).reset_index(), estimates)


def orders(rows: pd.DataFrame) -> pd.DataFrame:
    """AUROC of P(Yes) and of nearest neighbours, means over seeds; the same pictures are drawn for all of them."""

    def estimates(group: pd.DataFrame) -> dict[str, Estimate]:
        found: dict[str, Estimate] = {}
        drawing = zlib.crc32(group["benchmark"].iloc[0].encode())  # sets are drawn independently of each other
        for shots in SHOTS:
            own = [part.sort_values("image") for _, part in group[group["shots"] == shots].groupby("seed")]
            for who in (*STAGES, *(["nearest"] if shots else [])):
                each = [_auroc(part, f"{who}/p_yes", drawing) for part in own[: 1 if who == "nearest" else None]]
                found[f"{who}/{shots}/auroc"] = average(each)._replace(n=len(own[0]))
            if shots:
                pair = found[f"sc_grpo/{shots}/auroc"], found[f"nearest/{shots}/auroc"]
                found[f"sc_grpo_minus_nearest/{shots}/auroc"] = average(pair, (1, -1))._replace(n=len(own[0]))
        return found

    return estimate_table(rows, estimates)


def _auroc(rows: pd.DataFrame, column: str, seed: int) -> Estimate:
    defective = (rows["label"] == "yes").to_numpy()
    return auc_estimates(defective, rows[column].to_numpy(np.float64), np.random.default_rng(seed))["auroc"]


def places_and_types(rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of defective pictures whose place and type are right, of all and of those called defective, with chance.

    Chance is the share of the commonest true place or type of the set: what always naming that one would reach.
    """
    defective = rows[rows["label"] == "yes"]
    named = defective["type"].map(type_name, na_action="ignore")
    defective = defective.assign(type=named.where(named.isin(DEFECT_TYPES)))
    made = []
    for (title, shots), group in defective.groupby(["benchmark", "shots"], sort=False):
        for tag in ("location", "type"):
            known = group[group[tag].notna()]
            if known.empty:
                continue
            made.append((title, f"chance/{shots}/{tag}", known[tag].value_counts(normalize=True).iloc[0], len(known)))
            for stage in STAGES:
                right, said = known[f"{stage}/{tag}_right"], known[f"{stage}/said_yes"] > 0
                made.append((title, f"{stage}/{shots}/{tag}", right.mean(), len(known)))
                made.append((title, f"{stage}/{shots}/{tag}_where_yes", right[said].mean(), int(said.sum())))
    table = pd.DataFrame(made, columns=["benchmark", "metric", "value", "n"])
    return table.assign(value=100 * table["value"], low=np.nan, high=np.nan, unit="%", note="")


def main() -> None:
    """Parse the command line, ask, and write."""
    parser = argparse.ArgumentParser(description="Measure the model photo on real pictures.")
    parser.add_argument("split", choices=list(SETS))
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of --profile photo, one for each seed")
    parser.add_argument("--pictures", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument("--work", type=Path, default=Path("runs/photo-measured"), help="where answers are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "reference" / "photo")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    folders = {title: options.pictures / place for title, place in SETS[options.split].items()}
    rows = pd.concat([measure(title, folder, options.runs, options.work) for title, folder in folders.items()])
    made = metric_rows(pd.concat([verdicts(rows), orders(rows), places_and_types(rows)]), options.split)
    settings = {"runs": [run.name for run in options.runs], "sets": SETS[options.split], "most": MOST}
    out = options.out / f"{options.split}.json"
    write_json(out, {"rows": made, "provenance": stamp(settings, 0, list(folders.values()))})
    print(f"metrics in {out}")


if __name__ == "__main__":
    main()
