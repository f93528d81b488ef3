"""How fast a model answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from iadr1_lib.data import open_image
from iadr1_lib.evaluation.prediction import ask, batches_of, longest_answer
from iadr1_lib.evaluation.protocols import Protocol
from iadr1_lib.models import load_model
from iadr1_lib.records import Sample


class Speed(NamedTuple):
    """Pictures, tokens written, and seconds: decode (pictures from files, one after another), answer (the model)."""

    images: int
    tokens: int
    seconds: dict[str, float]

    @property
    def images_per_second(self) -> float:
        return self.images / sum(self.seconds.values())

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds["answer"]


def measure(
    model_dir: Path | str,
    samples: Sequence[Sample],
    *,
    prompt: str | Protocol = "bare",
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    answer_only: bool = False,
) -> Speed:
    """Answer `samples` once and write nothing; the first batch is asked once before the clock starts."""
    model, processor = load_model(model_dir)
    length = max_new_tokens or longest_answer(model_dir, prompt)
    seconds, tokens, batches = {"decode": 0.0, "answer": 0.0}, 0, batches_of(samples, batch_size)
    for number, batch in enumerate([batches[0], *batches]):
        start = time.perf_counter()
        images = [[open_image(sample.image)] for sample in batch]
        decoded = time.perf_counter()
        answers = ask(model, processor, images, prompt, length, only=answer_only)  # texts: a GPU has finished
        if number:
            seconds["decode"] += decoded - start
            seconds["answer"] += time.perf_counter() - decoded
            tokens += sum(len(processor.tokenizer.encode(one.raw, add_special_tokens=False)) for one in answers)
    return Speed(len(samples), tokens, seconds)
