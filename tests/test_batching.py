"""What a group of completions shares is computed once, with the same values and gradients: all five classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import miniatures
import pytest
import tiny_vlm
import torch
from peft import get_peft_model
from PIL import Image

from iadr1_lib.models import FAMILIES, deduplicate_images, share_group_work, share_prefix
from iadr1_lib.models.loading import LoraConfig

GROUPS = [1, 0, 0, 1, 1, 0]  # six shuffled rows of two prompts
NAMES = [*FAMILIES, "mini"]
# Settings of gradient checkpointing; without it None.
CHECKPOINTING = [None, {"use_reentrant": False}, {"use_reentrant": True}]


class Batch(NamedTuple):
    """What the trainer gives the model, and where the prompt ends."""

    inputs: dict[str, torch.Tensor]
    prompt: int

    def prompts(self) -> dict[str, torch.Tensor]:
        """What `generate` is given."""
        by_token = ("input_ids", "attention_mask", "mm_token_type_ids")
        cut = {k: v[:, : self.prompt] if k in by_token else v for k, v in self.inputs.items()}
        return {k: v for k, v in cut.items() if k != "labels"}


def build(name: str) -> tuple[Any, Any]:
    return tiny_vlm.build() if name == "mini" else miniatures.build(name)


def picture(number: int) -> Image.Image:
    """A picture of one of three shapes."""
    width, height = [(56, 28), (28, 56), (56, 56)][number % 3]
    return Image.effect_mandelbrot((width, height), (-2 + number / 9, -1, 1, 1), 20).convert("RGB")


def batch(name: str, images: int, groups: list[int] = GROUPS) -> Batch:
    """Rows of prompts of unlike length with one picture, or a shared reference before it, each with a completion."""
    _, processor = build(name)
    processor.tokenizer.padding_side = "left"
    asked = ["Are there any defects ?", "Yes or no , are there any defects in the query image ?", "I scan ."]
    parts = [[*[{"type": "image"}] * images, {"type": "text", "text": asked[group % 3]}] for group in groups]
    texts = [processor.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True) for p in parts]
    shown = [[picture(0), picture(1 + group)][-images:] for group in groups]
    inputs = dict(processor(images=shown, text=texts, padding=True, return_tensors="pt"))
    torch.manual_seed(2)
    rows, prompt = inputs["input_ids"].shape
    completions = torch.randint(270, 320, (rows, 7))
    inputs["input_ids"] = torch.cat([inputs["input_ids"], completions], dim=1)
    ends = torch.ones_like(completions)
    ends[::2, -3:] = 0  # completions end at different lengths
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], ends], dim=1)
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(ends)], dim=1)
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    inputs["labels"][:, :prompt] = -100
    return Batch(inputs, prompt)


def adapted(model: Any, name: str) -> Any:
    """The model with LoRA as the course sets it up, and updates that are not zero."""
    targets = FAMILIES["llava" if name == "mini" else name].lora_targets
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    torch.manual_seed(3)
    for weight_name, parameter in model.named_parameters():
        if "lora_B" in weight_name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def encoded_by(model: Any, name: str) -> list[torch.Tensor]:
    """Filled at each pass with what the tower encodes: the shapes of Qwen's images, else pixels of images or tiles."""
    seen: list[torch.Tensor] = []
    tower = model.get_submodule(FAMILIES["llava" if name == "mini" else name].tower)
    tower.register_forward_pre_hook(  # after deduplicate_images' own
        lambda module, args, kwargs: seen.append(kwargs.get("grid_thw", args[0])), with_kwargs=True
    )
    return seen


Values = tuple[torch.Tensor, dict[str, torch.Tensor]]


def values(model: Any, given: Batch) -> Values:
    """Logits of the real tokens, and gradients by the weights' names."""
    out = model(**given.inputs)
    out.loss.backward()
    real = given.inputs["attention_mask"].bool()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return out.logits[real], gradients


def assert_same(a: Values, b: Values, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a[0], b[0], atol=tolerance, rtol=tolerance)
    assert a[1].keys() == b[1].keys() and a[1]
    for name in a[1]:
        torch.testing.assert_close(a[1][name], b[1][name], atol=tolerance, rtol=10 * tolerance)


def greedy(model: Any, prompts: dict[str, torch.Tensor], **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Nine likeliest tokens, and their logits: random models repeat themselves, so tokens alone say little."""
    more |= {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False}
    out = model.generate(**prompts, **more, return_dict_in_generate=True, output_logits=True)
    return out.sequences, torch.stack(out.logits)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_each_image_is_encoded_once_with_the_same_values_and_gradients(name: str, images: int) -> None:
    """The second batch has no repeats but, with two pictures, the reference."""
    for groups in (GROUPS, [0, 1, 2]):
        given = batch(name, images, groups)
        plain, once = (build(name)[0] for _ in range(2))
        deduplicate_images(once)
        seen, seen_once = encoded_by(plain, name), encoded_by(once, name)
        assert_same(values(plain, given), values(once, given))
        (every,), (encoded,) = seen, seen_once
        if name in ("llava_next", "llava_onevision"):
            assert len(encoded) == len(every.unique(dim=0))
            assert len(encoded) <= len(every) / 2 if groups == GROUPS else images == 2 or len(encoded) == len(every)
        else:
            assert (len(every), len(encoded)) == (len(groups) * images, len(set(groups)) + images - 1)


def test_plain_images_of_other_shapes_are_told_apart() -> None:
    """Their patches have the same pixels, and their tokens other places."""
    _, processor = build("qwen2_vl")
    shown = [Image.new("RGB", size, "gray") for size in ((112, 28), (56, 56), (112, 28))]
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Are there any defects ?"}]}]
    texts = [processor.apply_chat_template(turn, add_generation_prompt=True)] * 3
    inputs = dict(processor(images=[[image] for image in shown], text=texts, return_tensors="pt"))
    inputs["labels"] = inputs["input_ids"].clone()
    inputs["labels"][:, :-3] = -100
    plain, once = (build("qwen2_vl")[0] for _ in range(2))
    share_group_work(once)
    encoded = encoded_by(once, "qwen2_vl")
    given = Batch(inputs, inputs["input_ids"].shape[1])
    assert_same(values(plain, given), values(once, given))
    assert [len(shapes) for shapes in encoded] == [2]


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_shared_prefix_gives_the_same_values_and_gradients(name: str, images: int) -> None:
    given = batch(name, images)
    plain, once = (build(name)[0] for _ in range(2))
    share_prefix(once)
    read: list[tuple[int, int]] = []
    once.model.language_model.norm.register_forward_hook(lambda module, args, out: read.append(tuple(out.shape[:2])))
    assert_same(values(plain, given), values(once, given))
    assert read == [(2, given.prompt), (6, given.inputs["input_ids"].shape[1] - given.prompt)]


def test_equal_prompts_at_other_positions_are_told_apart() -> None:
    """As those of two plain images of other shapes."""
    ids = torch.arange(270, 282).repeat(2, 1)
    positions = torch.arange(12).repeat(3, 2, 1)
    positions[1, 1] *= 2
    labels = ids.clone()
    labels[:, :-4] = -100
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "position_ids": positions}
    plain, once = (build("qwen2_vl")[0] for _ in range(2))
    share_prefix(once)
    assert_same(values(plain, Batch(inputs, 8)), values(once, Batch(inputs, 8)))


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("name", NAMES)
def test_both_go_with_lora_its_reference_and_gradient_checkpointing(name: str, checkpointing: Any) -> None:
    given = batch(name, 2)
    plain, once = (adapted(build(name)[0], name) for _ in range(2))
    share_group_work(once)
    read: list[int] = []
    language_model = once.get_base_model().model.language_model
    language_model.norm.register_forward_hook(lambda module, args, out: read.append(len(out)))
    with torch.no_grad(), plain.disable_adapter(), once.disable_adapter():
        reference = [model(**given.inputs).logits for model in (plain, once)]
    torch.testing.assert_close(*(logits[given.inputs["attention_mask"].bool()] for logits in reference))
    assert read == [2, 6]
    for model in (plain, once):
        model.train()
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable(checkpointing)
            model.get_base_model().enable_input_require_grads()
    policy = values(once, given)
    assert_same(values(plain, given), policy)
    assert read[2:4] == ([6] if checkpointing else [2, 6])
    assert all("lora" in weight for weight in policy[1])
    assert not torch.allclose(policy[0], reference[1][given.inputs["attention_mask"].bool()])


@pytest.mark.parametrize("name", NAMES)
def test_both_go_with_bfloat16(name: str) -> None:
    given = batch(name, 2)
    plain, once = (build(name)[0].to(torch.bfloat16) for _ in range(2))
    share_group_work(once)
    assert_same(values(plain, given), values(once, given), tolerance=0.05)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_answers_are_written(name: str, lora: bool) -> None:
    prompts = batch(name, 2).prompts()
    answers = []
    for change in (lambda model: None, share_group_work):
        model = adapted(build(name)[0], name) if lora else build(name)[0]
        change(model)
        # A pass with labels before, as in training, must not be remembered.
        model(**batch(name, 2).inputs)
        answers.append(greedy(model, prompts))
    torch.testing.assert_close(*answers)


def test_a_language_model_with_a_sliding_window_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = build("llava_next")
    model.model.language_model.config.sliding_window = 8
    before: Callable[..., Any] = model.model.language_model.forward
    share_prefix(model)
    assert model.model.language_model.forward == before


def test_another_class_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = build("llava")
    monkeypatch.setattr(model.config, "model_type", "another", raising=False)
    share_group_work(model)
    assert not model._forward_pre_hooks and not model.model.vision_tower._forward_hooks
