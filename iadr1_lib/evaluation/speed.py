"""How fast a model answers, and where the time goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from iadr1_lib.data import open_image
from iadr1_lib.evaluation.prediction import asking, batches_of, longest_answer
from iadr1_lib.evaluation.protocols import Protocol
from iadr1_lib.evaluation.scoring import read_answer
from iadr1_lib.models import load_model
from iadr1_lib.records import Sample


@dataclass(frozen=True)
class Speed:
    """What `measure` found.

    Attributes:
        images: how many were answered.
        images_per_second: of wall time, all parts included.
        tokens_per_answer: mean length of the texts in tokens.
        seconds: wall time by what it went into: decode (pictures from files, one after another; `predict` does it in
            threads), processor (resizing, tokens), prefill (vision tower and prompt), steps (the tokens after the
            first), choosing (picking tokens, P(Yes), text from tokens) and parsing.
    """

    images: int
    images_per_second: float
    tokens_per_answer: float
    seconds: dict[str, float]


class _Clock:
    """Adds up seconds by name; on a GPU it waits for what was started."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def add(self, name: str, since: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - since

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        since = self.now()
        yield
        self.add(name, since)


class _Timed:
    """A processor whose calls are timed."""

    def __init__(self, processor: ProcessorMixin, clock: _Clock) -> None:
        self._processor, self._clock = processor, clock

    def __call__(self, *words: Any, **said: Any) -> Any:
        with self._clock.measure("processor"):
            return self._processor(*words, **said)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)


def _time_passes(model: PreTrainedModel, clock: _Clock) -> Callable[[], None]:
    """Time the model's passes: a pass with pictures is "prefill", any other "steps". Returns what ends it."""
    begun: list[float] = []

    def before(module: torch.nn.Module, words: Any, said: dict[str, Any]) -> None:
        begun.append(clock.now())

    def after(module: torch.nn.Module, words: Any, said: dict[str, Any], output: Any) -> None:
        clock.add("steps" if said.get("pixel_values") is None else "prefill", begun.pop())

    hooks = (
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after, with_kwargs=True),
    )

    def stop() -> None:
        for hook in hooks:
            hook.remove()

    return stop


def measure(
    model_dir: Path | str,
    samples: Sequence[Sample],
    *,
    prompt: str | Protocol = "bare",
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    answer_only: bool = False,
) -> Speed:
    """Answer `samples` once, with nothing written; the first batch is asked once before the clock starts.

    Raises ValueError if there are no samples.
    """
    if not samples:
        raise ValueError("no pictures, so nothing to measure")
    model, processor = load_model(model_dir)
    clock = _Clock(model.device)
    timed = _Timed(processor, clock)
    ask = asking(prompt, max_new_tokens or longest_answer(model_dir, prompt), 0, answer_only)
    batches = batches_of(samples, batch_size)
    ask(model, processor, [[open_image(sample.image)] for sample in batches[0]])
    stop = _time_passes(model, clock)
    texts: list[str] = []
    start = clock.now()
    for batch in batches:
        with clock.measure("decode"):
            images = [[open_image(sample.image)] for sample in batch]
        with clock.measure("choosing"):  # less what is found inside it, below
            made = ask(model, timed, images)
        with clock.measure("parsing"):
            for said in made:
                read_answer(said.raw, "fair")
        texts += [said.raw for said in made]
    whole = clock.now() - start
    stop()
    seconds = {"steps": 0.0} | clock.seconds
    seconds["choosing"] -= seconds["processor"] + seconds["prefill"] + seconds["steps"]
    tokens = sum(len(processor.tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    return Speed(len(samples), len(samples) / whole, tokens / len(samples), seconds)
