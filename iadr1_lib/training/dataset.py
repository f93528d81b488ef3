"""Records become training rows: the data sets that TRL's trainers read."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from datasets import Dataset, disable_progress_bars
from transformers import ProcessorMixin

from iadr1_lib.answer import parse_answer
from iadr1_lib.data import open_image, shrink
from iadr1_lib.records import checked_row
from iadr1_lib.rewards import check_solutions

disable_progress_bars()


def pa_sft_dataset(rows: list[dict[str, Any]], eos: str = "", max_pixels: int | None = None) -> Dataset:
    """Rows of pa_sft.json as images, prompt and completion: with these columns TRL keeps the loss off the prompt.

    Args:
        rows: the completion is the last turn of each.
        eos: is added to each completion (`eos_suffix`).
        max_pixels: larger pictures are scaled down to this area.
    """
    table = []
    for row in (checked_row(row, "pa_sft") for row in rows):
        *prompt, answer = row["messages"]
        completion = [answer | {"content": answer["content"] + eos}]
        table.append({"images": row["images"], "prompt": prompt, "completion": completion})
    return _with_pictures(table, max_pixels)


def sc_grpo_dataset(rows: list[dict[str, Any]], mode: str, max_pixels: int | None = None) -> Dataset:
    """Rows of sc_grpo.json as images, prompt and solution (which TRL hands to the rewards).

    Raises:
        UserError: the rewards of `mode` cannot read a solution.
    """
    check_solutions([row["solution"] for row in rows], mode=mode)
    table = [
        {"images": row["image"], "prompt": [{"role": "user", "content": row["problem"]}], "solution": row["solution"]}
        for row in (checked_row(row, "sc_grpo") for row in rows)
    ]
    return _with_pictures(table, max_pixels)


def _with_pictures(table: list[dict[str, Any]], max_pixels: int | None) -> Dataset:
    """The table as a data set that opens the paths in `images` when a row is read."""

    def opened(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return rows | {"images": [[shrink(open_image(path), max_pixels) for path in group] for group in rows["images"]]}

    return Dataset.from_list(table).with_transform(opened)


def eos_suffix(processor: ProcessorMixin) -> str:
    """The end-of-sequence token if the model's chat template leaves it out (LLaVA-1.5's does), else nothing.

    A model that never sees the end of an answer does not learn to stop.
    """
    turns = [{"role": role, "content": [{"type": "text", "text": "word"}]} for role in ("user", "assistant")]
    eos: str = processor.tokenizer.eos_token
    return "" if processor.apply_chat_template(turns).rstrip().endswith(eos) else eos


def alternate_labels(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Rows of sc_grpo.json in a random order, normal and defective ones spread evenly over it.

    A step has few questions. If most of them happen to be normal, the step pushes the policy to No whatever it sees,
    and the share of Yes drifts from step to step.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    labels = [parse_answer(rows[i]["solution"]).answer for i in order]
    counts = {label: labels.count(label) for label in set(labels)}
    seen: defaultdict[str | None, int] = defaultdict(int)
    places = []
    for label in labels:
        places.append((seen[label] + 0.5) / counts[label])
        seen[label] += 1
    return [rows[order[k]] for k in sorted(range(len(rows)), key=lambda k: (places[k], str(labels[k])))]
