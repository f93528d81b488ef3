"""The mini VLM: saving and loading, the tokenizer and the chat template, what it must never say."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import tiny_vlm
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from iadr1_lib.answer import QUESTION, TAGS
from iadr1_lib.errors import UserError
from iadr1_lib.models import (
    IMAGE,
    load_model,
    load_processor,
    loading,
    parameter_count,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm.save(tmp_path_factory.mktemp("tiny") / "model")


def ask(processor: Any, images: int) -> Any:
    parts = [{"type": "image"}] * images + [{"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    pictures = [Image.effect_mandelbrot((50 + 40 * i, 80), (-2, -1, 1, 1), 20).convert("RGB") for i in range(images)]
    return processor(images=[pictures], text=[text], return_tensors="pt")


def test_a_saved_model_loads_with_the_same_inputs_and_logits(folder: Path) -> None:
    model, processor = tiny_vlm.build()
    loaded, its_processor = load_model(folder, device="cpu")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32} and not loaded.training
    inputs, again = ask(processor, 1), ask(its_processor, 1)
    assert torch.equal(inputs["input_ids"], again["input_ids"])
    assert torch.equal(inputs["pixel_values"], again["pixel_values"])
    with torch.no_grad():
        torch.testing.assert_close(loaded(**again).logits, model(**inputs).logits, atol=1e-6, rtol=0)


def test_tags_are_one_token_and_the_template_takes_plain_text(folder: Path) -> None:
    processor = load_processor(folder)
    assert type(processor.image_processor).__name__ == "SiglipImageProcessorPil"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert processor.apply_chat_template(turns) == "<|user|>a<|end|><|assistant|>b<|end|>"
    tokenizer = processor.tokenizer
    for tag in TAGS:
        ids = tokenizer(tag, add_special_tokens=False).input_ids
        assert len(ids) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == tag
    text = "<think>I scan .</think><answer>No</answer>"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("images", [1, 2])
def test_each_picture_takes_64_tokens_and_the_model_answers(folder: Path, images: int) -> None:
    model, processor = load_model(folder)
    inputs = ask(processor, images)
    image_token = processor.tokenizer.convert_tokens_to_ids(IMAGE)
    assert int((inputs["input_ids"] == image_token).sum()) == 64 * images
    assert inputs["pixel_values"].shape == (images, 3, 96, 96)
    counts = parameter_count(model)
    assert all(counts.values()) and sum(counts.values()) == sum(p.numel() for p in model.parameters())
    out = model.generate(**inputs.to(model.device), max_new_tokens=4, do_sample=False)
    assert out.shape[1] > inputs["input_ids"].shape[1]


def test_the_image_token_is_never_generated(folder: Path) -> None:
    model, processor = load_model(folder)
    image_token = processor.tokenizer.convert_tokens_to_ids(IMAGE)
    assert image_token in model.generation_config.suppress_tokens
    with torch.no_grad():  # now its logit is far above or far below all others, as likely the one as the other
        model.lm_head.weight[image_token] *= 100
    inputs = ask(processor, 1).to(model.device)
    torch.manual_seed(0)
    out = model.generate(**inputs, max_new_tokens=24, min_new_tokens=24, do_sample=True, temperature=2.0)
    assert image_token not in out[0, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("place", ["mini_base", *(f"photo_model/{s}" for s in ("base", "pa_sft", "sc_grpo"))])
def test_the_shipped_models_are_small_and_whole_and_load_plainly(root: Path, place: str) -> None:
    base = root / "data" / place
    assert sum(f.stat().st_size for f in base.iterdir()) <= 12e6
    for line in (base / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((base / name).read_bytes()).hexdigest() == digest
    model = AutoModelForImageTextToText.from_pretrained(str(base)).eval()
    processor = AutoProcessor.from_pretrained(str(base))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    out = model.generate(**ask(processor, 2), max_new_tokens=3, do_sample=False)
    assert torch.is_tensor(out)


KINDS = {
    "an adapter": ({"adapter_config.json": "{}", "adapter_model.safetensors": "x"}, "LoRA adapter"),
    "no JSON": ({"config.json": '{"model_type": "qwen2_vl",'}, "is no JSON"),
    "UTF-16": ({"config.json": '{"model_type": "qwen2_vl"}'.encode("utf-16")}, "UTF-16"),
    "a list": ({"config.json": "[]"}, "names no model_type"),
    "no type": ({"config.json": '{"hidden_size": 32}'}, "names no model_type"),
    "a type of another shape": ({"config.json": '{"model_type": ["llava"]}'}, "names no model_type"),
    "text only": ({"config.json": '{"model_type": "qwen2"}', "model.safetensors": "x"}, "type qwen2"),
    "another format": ({"config.json": '{"model_type": "internvl_chat"}', "model.safetensors": "x"}, "internvl_chat"),
    "no weights": ({"config.json": '{"model_type": "gemma3"}'}, "holds no weights"),
    "no processor": ({"config.json": '{"model_type": "llava"}', "model.safetensors": "x"}, "no processor"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_another_kind_is_told_in_a_sentence(tmp_path: Path, kind: str) -> None:
    files, message = KINDS[kind]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for load in (
        loading.load_model,
        lambda folder: loading.load_for_training(folder, loading.ModelSettings()),
        lambda folder: loading.model_folder(loading.ModelSettings(str(folder))),
    ):
        with pytest.raises(UserError, match=message):
            load(tmp_path)


def test_a_missing_folder_is_told_and_an_adapter_names_the_merged_model_beside_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model folder"):
        load_model(tmp_path / "nowhere")
    for name in ("model/config.json", "adapter/adapter_config.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"name {tmp_path / 'model'}"):
        loading.load_model(tmp_path / "adapter")


@pytest.mark.parametrize("damage", ["cut weights", "values", "tokenizer", "generation", "template"])
def test_a_damaged_model_is_told_in_a_sentence(tmp_path: Path, damage: str) -> None:
    folder = tiny_vlm.save(tmp_path / "m")
    weights = folder / "model.safetensors"
    if damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:5000])
    if damage == "values":
        (folder / "config.json").write_text('{"model_type": "llava", "text_config": {"model_type": "x"}}')
    if damage == "tokenizer":
        (folder / "tokenizer.json").write_text("{")
    if damage == "generation":
        (folder / "generation_config.json").write_text("[]")
    if damage == "template":
        (folder / "chat_template.jinja").write_text("{{ x")
    with pytest.raises(UserError, match="cannot be loaded"):
        loading.load_model(folder)
