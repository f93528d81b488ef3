"""How fast a stage trains: tokens a second, and the share of a card's bfloat16 rate that its arithmetic takes."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from iadr1_lib.models import FAMILIES, meta_model, model_config, parameter_count
from iadr1_lib.models.shapes import image_tokens

# FLOP/s of large matrix products in bfloat16, measured on one H200 (its data sheet says 989 without sparsity). On
# another card `bf16_share` is still a share of this.
BF16_RATE = 790e12
COLUMNS = ("tokens_per_second", "bf16_share")  # of log.csv


@dataclass(frozen=True)
class Arithmetic:
    """FLOPs of a model's forward and backward pass: for each token, token of an answer, pair of tokens, and picture.

    A weight costs 2 FLOPs a token in the forward pass, 2 for the gradient of its input, and 2 for its own (Kaplan et
    al., arXiv 2001.08361, section 2.1). So a trained weight costs 6, a frozen one 4 in the language model with LoRA,
    whose gradients pass through it, and 2 in a tower below all that is trained. Embeddings cost nothing, the head
    works on answers only. Attention costs 12 times its width per layer and pair of tokens, of which a causal one has
    half (Chowdhery et al., PaLM, appendix B, without that half); the tower's, a tenth of its weights' cost, is left
    out. Work that is done twice (checkpointing) or not at all (shared prompts) is counted once for each sequence.
    """

    token: float
    answer: float
    pair: float
    picture: float

    def step(self, tokens: float, sequences: int, answer: float, pictures: int = 1) -> float:
        """FLOPs of a step of so many tokens in all, of sequences of one length with answers of so many tokens."""
        pairs = tokens**2 / sequences / 2
        of_sequences = sequences * (answer * self.answer + pictures * self.picture)
        return tokens * self.token + pairs * self.pair + of_sequences


def arithmetic(folder: Path, shape: tuple[int, int], frozen: Iterable[str], rank: int = 0) -> Arithmetic | None:
    """The arithmetic of the model in `folder`, or None for one of a class that is not in FAMILIES.

    Args:
        shape: height and width of a picture in pixels.
        frozen: parts that are not trained; with LoRA (`rank` above 0) no part is, but for the adapters.
    """
    if model_config(folder)["model_type"] not in FAMILIES:
        return None
    model = meta_model(str(folder))
    family, text, parts = FAMILIES[model.config.model_type], model.config.text_config, parameter_count(model)
    below = {part: 2 if rank or part in set(frozen) else 6 for part in ("tower", "projector")}
    language = 4 if rank or "language model" in set(frozen) else 6
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    blocks = {n: m for n, m in linear.items() if family.part_of(n) == "language model" and "lm_head" not in n}
    adapters = sum(
        rank * (m.in_features + m.out_features) for n, m in blocks.items() if re.fullmatch(family.lora_targets, n)
    )
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    tokens, patches = image_tokens(model.config, *shape)
    return Arithmetic(
        token=language * sum(m.weight.numel() for m in blocks.values()) + 6 * adapters,
        answer=language * text.vocab_size * text.hidden_size,
        pair=12 * text.num_hidden_layers * text.num_attention_heads * head_size,
        picture=patches * below["tower"] * parts["tower"] + tokens * below["projector"] * parts["projector"],
    )


class Speed:
    """Measures between two entries of a trainer's log. Pauses (dev checks, saving) do not count.

    Of SC-GRPO `tokens_per_second` counts the tokens and seconds of whole steps. `bf16_share` is of the policy's forward
    and backward pass alone: without generation and the reference model, which `seconds/writing` covers.

    Args:
        sequences: of a step, over all processes.
        answer: tokens of an answer, in the mean; None: the log says it.
        arithmetic: None leaves `bf16_share` out.
    """

    def __init__(self, sequences: int, processes: int, answer: float | None, arithmetic: Arithmetic | None):
        self.sequences, self.processes, self.answer, self.arithmetic = sequences, processes, answer, arithmetic
        self.tokens, self.steps, self.since = 0.0, 0, time.perf_counter()

    def begin(self, tokens: float, steps: int) -> None:
        """The training begins, or goes on after so many tokens and steps."""
        self.tokens, self.steps, self.since = tokens, steps, time.perf_counter()

    def pause(self, since: float) -> None:
        """Leave the time since then out."""
        self.since += time.perf_counter() - max(since, self.since)

    def measure(self, logs: Mapping[str, float], steps: int) -> dict[str, float]:
        """What to add to an entry of the log, made after so many steps."""
        now, count, tokens = time.perf_counter(), steps - self.steps, logs.get("num_tokens", 0.0) - self.tokens
        if count < 1 or tokens <= 0:
            return {}
        seconds = now - self.since
        found = {"tokens_per_second": round(tokens / seconds, 1)}
        learning = seconds - count * logs.get("seconds/writing", 0.0)
        if self.arithmetic and learning > 0:
            answer = logs.get("completions/mean_length", 0.0) if self.answer is None else self.answer
            flops = count * self.arithmetic.step(tokens / count, self.sequences, answer)
            found["bf16_share"] = round(flops / learning / self.processes / BF16_RATE, 4)
        self.tokens, self.steps, self.since = logs["num_tokens"], steps, now
        return found


def summary(history: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The median of a log's speeds: one entry in many has a pause in it that was not seen."""
    rows = list(history)
    found = {column: [row[column] for row in rows if column in row] for column in COLUMNS}
    return {column: statistics.median(values) for column, values in found.items() if values}
