"""A tiny mini VLM with random weights, and a few drawn pictures, for the tests that need a model."""

from __future__ import annotations

import csv
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from iadr1_lib import world as synthetic
from iadr1_lib.answer import QUESTION, cell_of_mask
from iadr1_lib.models import build_mini, build_processor, build_tokenizer
from iadr1_lib.records import Record, Sample, pa_sft_row, sc_grpo_row

CORPUS = [
    f"{QUESTION} Answer yes or no .",
    "Yes No yes no",
    "I scan the whole image . There is a small dark spot .",
] * 4


@lru_cache(maxsize=1)
def _tokenizer_json() -> Any:
    return build_tokenizer(CORPUS, vocabulary=340)


def build() -> tuple[Any, Any]:
    """The same tiny model and its processor at each call."""
    torch.manual_seed(0)
    processor = build_processor(_tokenizer_json())
    sizes = {"vision_layers": 1, "vision_width": 96, "text_layers": 1, "text_width": 96}
    return build_mini(processor.tokenizer, **sizes).eval(), processor


def save(folder: Path) -> Path:
    for part in build():
        part.save_pretrained(folder)
    return folder


def draw_samples(folder: Path, count: int = 12) -> list[Sample]:
    """Drawn pictures, every second one normal, saved as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for i, d in enumerate(synthetic.drawings(synthetic.train_families(3), count, seed=1)):
        path = folder / f"{i:02d}.png"
        Image.fromarray(d.image).save(path)
        place = cell_of_mask(d.mask) if d.defect_type else None
        label: Any = "yes" if d.defect_type else "no"
        samples.append(
            Sample(str(path), label, None, d.defect_type, place, d.family.name, "tiny", "test", "drawn by the tests")
        )
    return samples


def write_records(samples: list[Sample], folder: Path) -> tuple[Path, Path]:
    """pa_sft.json and sc_grpo.json of these samples."""
    records = [Record(s.image, s.label, s.location, s.type, s.category, "I scan the whole image .") for s in samples]
    sft, grpo = folder / "pa_sft.json", folder / "sc_grpo.json"
    sft.write_text(json.dumps([pa_sft_row(r) for r in records]))
    grpo.write_text(json.dumps([sc_grpo_row(r, i) for i, r in enumerate(records)]))
    return sft, grpo


def world(folder: Path) -> dict[str, Path]:
    """A tiny model and the records of a dozen drawn pictures in `folder`."""
    sft, grpo = write_records(draw_samples(folder / "pictures"), folder)
    return {"folder": folder, "model": save(folder / "model"), "pa_sft": sft, "sc_grpo": grpo}


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
