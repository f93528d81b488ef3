"""The model's arithmetic, against torch's own count; and what the log says of a stage's speed."""

from __future__ import annotations

from pathlib import Path

import pytest
import test_planning
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText
from trl.trainer.utils import add_fused_lm_head

from iadr1_lib.models import FAMILIES
from iadr1_lib.training import speed
from iadr1_lib.training.speed import BF16_RATE, Arithmetic, Speed


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["full", "frozen", "lora"])
def test_the_arithmetic_is_what_torch_counts(family: str, kind: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    ids = {"image_token_id": 399}
    if family.startswith("qwen"):
        ids |= {"vision_start_token_id": 398, "video_token_id": 397}
    text = {"vocab_size": 400, "tie_word_embeddings": False}
    config = test_planning.miniatures.configuration(family, test_planning.SIZE, text, **ids)
    config.save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").train()
    add_fused_lm_head(model)
    frozen = ("tower", "projector") if kind == "frozen" else ()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(FAMILIES[family].part_of(name) not in frozen)
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=4, target_modules=FAMILIES[family].lora_targets))
    rows, answer = 2, 40
    batch = test_planning.inputs(config, 112, 112, rows, answer)
    with FlopCounterMode(display=False) as counter:
        model(**batch, fused_lm_head=True).loss.backward()
    known = speed.arithmetic(tmp_path, (112, 112), frozen, 4 if kind == "lora" else 0)
    assert known
    tokens = batch["input_ids"].numel()
    # Eager attention computes both halves of the causal one.
    both = Arithmetic(known.token, known.answer, 2 * known.pair, known.picture)
    assert 0.8 < both.step(tokens, rows, answer) / counter.get_total_flops() < 1.05


def test_the_speed_is_of_the_steps_between_two_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    meter = Speed(sequences=4, processes=2, answer=None, arithmetic=Arithmetic(BF16_RATE, 0, 0, 0))
    meter.begin(tokens=50, steps=10)
    now[0] = 104.0
    meter.pause(since=102.0)  # a dev check of two seconds
    now[0] = 108.0
    logs = {"num_tokens": 74.0, "seconds/writing": 1.0}
    # 24 tokens in 8 - 2 seconds; their products in those seconds that were not for writing, on two cards
    assert meter.measure(logs, steps=12) == {"tokens_per_second": 4.0, "bf16_share": 24 / (6 - 2) / 2}
    now[0] = 109.0
    assert meter.measure({"num_tokens": 80.0}, steps=13)["tokens_per_second"] == 6.0
    assert meter.measure({"num_tokens": 80.0}, steps=13) == {}


def test_the_medians_are_kept() -> None:
    rows = [{"tokens_per_second": v} for v in (1.0, 9.0, 100.0)] + [{"loss": 1.0}]
    assert speed.summary(rows) == {"tokens_per_second": 9.0}
