"""Changes to loaded models that make SC-GRPO faster, or possible: each says what it patches and why it is exact.

In SC-GRPO the completions of a group share their images and their prompt. Without these changes the vision tower and
the language model compute both again for each completion. `generation` changes how the completions are written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cmp_to_key
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from iadr1_lib.models.families import FAMILIES


def share_group_work(model: nn.Module) -> None:
    """`deduplicate_images` and `share_prefix`, if the model's class is one that they know.

    Not for models that DeepSpeed or FSDP shard: there each process would call modules another number of times, and a
    call that gathers a module's weights waits for all processes.
    """
    if base_of(model).config.model_type in FAMILIES:
        deduplicate_images(model)
        share_prefix(model)


def deduplicate_images(model: nn.Module) -> None:
    """Let the vision tower encode each distinct image of a batch once, in generation and in training.

    For all classes in FAMILIES, with or without LoRA and gradient checkpointing. What counts as an image is what the
    tower treats independently: a tile where the class cuts images into tiles, else an image.

    Patches: a forward pre-hook hands the tower the distinct images; a forward hook repeats its outputs for all. Exact:
    the gradient of a repeated output is the sum over its copies.
    """
    base = base_of(model)
    family = FAMILIES[base.config.model_type]
    tower = base.get_submodule(family.tower)
    if family.picture_tokens == "area":
        _deduplicate_patches(tower)
    else:
        layers = base.config.vision_feature_layer
        _deduplicate_rows(tower, [layers] if isinstance(layers, int) else layers)


def _deduplicate_rows(tower: nn.Module, layers: Sequence[int]) -> None:
    """For CLIP and SigLIP, whose pixels have the shape (tiles, 3, height, width).

    `layers` are the layers whose states the model uses. Those of the others, which the tower returns too, are dropped:
    repeated for all rows they would fill the memory.
    """
    indices: list[torch.Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        pixels = args[0] if args else kwargs["pixel_values"]
        first, index = _distinct(pixels)
        indices.append(pixels.new_tensor(index, dtype=torch.long))
        return ((pixels[first], *args[1:]), kwargs) if args else (args, kwargs | {"pixel_values": pixels[first]})

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        index = indices.pop()
        for name, value in output.items():
            if isinstance(value, tuple):
                used = {layer % len(value) for layer in layers}
                output[name] = tuple(states[index] if n in used else None for n, states in enumerate(value))
            else:
                output[name] = value[index]
        return output

    tower.register_forward_pre_hook(before, with_kwargs=True)
    tower.register_forward_hook(after, with_kwargs=True)


def _deduplicate_patches(tower: Any) -> None:
    """For Qwen's towers, whose pixels are the patches of all images, one after another: (patches, 3 * 2 * 14 * 14).

    `grid_thw` has the images' shapes in patches. The tower's output has one token for 2 x 2 patches.
    """
    indices: list[tuple[list[int], list[int]]] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        grid = kwargs["grid_thw"]
        pieces = args[0].split(grid.prod(-1).tolist())
        # The shape is part of an image: plain ones of 2 x 8 and 4 x 4 patches have the same pixels.
        first, index = _distinct([p.view(*shape, -1) for p, shape in zip(pieces, grid.tolist(), strict=True)])
        indices.append((grid[first].prod(-1).tolist(), index))
        return (torch.cat([pieces[n] for n in first]), *args[1:]), kwargs | {"grid_thw": grid[first]}

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        patches, index = indices.pop()
        for name, merged in (("last_hidden_state", 1), ("pooler_output", tower.spatial_merge_size**2)):
            pieces = output[name].split([count // merged for count in patches])
            output[name] = torch.cat([pieces[n] for n in index])
        return output

    tower.register_forward_pre_hook(before, with_kwargs=True)
    tower.register_forward_hook(after, with_kwargs=True)


def share_prefix(model: nn.Module) -> None:
    """Let the language model read each distinct prompt of a batch once.

    The prompt ends where the labels begin or, in generation, where the first pass ends; it holds two thirds of the mini
    VLM's tokens. For all classes in FAMILIES, with or without LoRA. It needs the key-value cache. So a pass with
    gradient checkpointing, during which transformers switches the cache off, is left as it is (TRL switches
    checkpointing off for generation and for the reference's pass). A language model whose attention slides over a
    window is left as it is, too: its cache forgets the beginning of a prompt.

    Patches: a forward pre-hook of the model notes the length of the prompt; the language model's `forward` reads the
    distinct prompts, repeats their keys, values and states for all rows, and reads the completions after them. Exact:
    attention is causal, so the states of a prompt do not depend on what follows it, and gradients flow through the
    repeated keys and values. (Dropout of an adapter is drawn once for a prompt, not once for each row.)

    Args:
        model: what the trainer calls with labels: the model, or the PeftModel around it.
    """
    base = base_of(model)
    language_model: Any = base.model.language_model
    if any(DynamicCache(config=language_model.config).is_sliding):
        return
    read: Callable[..., BaseModelOutputWithPast] = language_model.forward
    prompt_length = [0]

    def note_prompt(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        labels = kwargs.get("labels")
        prompt_length[0] = 0 if labels is None else int((labels != -100).any(0).int().argmax())

    def forward(
        inputs_embeds: torch.Tensor,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        def read_all() -> BaseModelOutputWithPast:
            return read(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                **kwargs,
            )

        if inputs_embeds.shape[1] == 1:  # first, and by shapes alone: this is what a compiled step goes through
            return read_all()
        first_pass = past_key_values is not None and past_key_values.get_seq_length() == 0
        length = inputs_embeds.shape[1] if first_pass else prompt_length[0]
        if not length or (past_key_values is not None and not first_pass):
            return read_all()
        if language_model.training and language_model.is_gradient_checkpointing:
            return read_all()
        first, index = _distinct(inputs_embeds[:, :length].detach())
        prompt_mask = _of_prompts(attention_mask, length)
        if position_ids is not None:  # ([3 or 4,] 1 or rows, tokens)
            position_ids = position_ids.expand(*position_ids.shape[:-2], len(index), -1)
            # Images of other shapes can have the same embeddings, if they are plain, but not the same positions.
            if not torch.equal(position_ids[..., :length], position_ids[..., [first[n] for n in index], :length]):
                return read_all()
        group = torch.tensor(index, device=inputs_embeds.device)
        prompts = read(
            # Not the compared rows themselves: the gradient must reach the embeddings.
            inputs_embeds=inputs_embeds[first, :length],
            attention_mask=_rows(prompt_mask, first),
            position_ids=None if position_ids is None else position_ids[..., first, :length],
            **kwargs | {"use_cache": True},
        )
        cache = DynamicCache() if past_key_values is None else past_key_values
        for number, layer in enumerate(prompts.past_key_values.layers):
            cache.update(layer.keys.index_select(0, group), layer.values.index_select(0, group), number)
        states = prompts.last_hidden_state.index_select(0, group)
        if length < inputs_embeds.shape[1]:
            rest = read(
                inputs_embeds=inputs_embeds[:, length:],
                attention_mask=attention_mask,
                position_ids=None if position_ids is None else position_ids[..., length:],
                past_key_values=cache,
                **kwargs | {"use_cache": True},
            )
            states = torch.cat([states, rest.last_hidden_state], dim=1)
        return BaseModelOutputWithPast(last_hidden_state=states, past_key_values=cache if first_pass else None)

    for called in {model, base}:  # generation calls the model inside a PeftModel
        called.register_forward_pre_hook(note_prompt, with_kwargs=True)
    language_model.forward = forward


def _of_prompts(mask: Any, length: int) -> Any:
    """The columns of the first `length` tokens of an attention mask.

    A mask is (rows, tokens) or, if `generate` made it for a static cache, (rows, 1, tokens, places in the cache); or
    there are several by the kind of attention; or it is None.
    """
    if isinstance(mask, dict):
        return {kind: _of_prompts(one, length) for kind, one in mask.items()}
    return None if mask is None else mask[..., :length]


def _rows(mask: Any, rows: list[int]) -> Any:
    if isinstance(mask, dict):
        return {kind: _rows(one, rows) for kind, one in mask.items()}
    return None if mask is None else mask[rows]


def _distinct(rows: Sequence[torch.Tensor] | torch.Tensor) -> tuple[list[int], list[int]]:
    """(places of the first of each distinct tensor, for each tensor which of those it equals).

    The distinct tensors come in the order of their shapes and values, as from `torch.unique(rows, dim=0)`. That itself
    compares two rows number by number in a single thread on a GPU: too slow for images.
    """
    sums = torch.stack([row.sum(dtype=torch.float64) for row in rows]).tolist()
    first: list[int] = []
    kinds: list[int] = []
    for number, row in enumerate(rows):
        same = (k for k, f in enumerate(first) if sums[f] == sums[number] and torch.equal(rows[f], row))
        kinds.append(next(same, len(first)))
        if kinds[-1] == len(first):
            first.append(number)

    def compare(a: int, b: int) -> int:
        one, other = rows[a], rows[b]
        if one.shape != other.shape:
            return -1 if tuple(one.shape) < tuple(other.shape) else 1
        place = (one != other).flatten().int().argmax()  # the first number in which they differ
        return -1 if bool(one.flatten()[place] < other.flatten()[place]) else 1

    in_order = sorted(first, key=cmp_to_key(compare))
    place = {number: n for n, number in enumerate(in_order)}
    return in_order, [place[first[kind]] for kind in kinds]


def base_of(model: Any) -> PreTrainedModel:
    """The model itself, also of a PeftModel."""
    base: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base


def pass_image_counts(trainer: Any) -> None:
    """Let a GRPOTrainer train a model that must be told how many images each prompt has (LLaVA-OneVision).

    The model's processor returns the key `batch_num_images`, which TRL 1.16 hands on to a method that does not know it.
    The trainer knows the numbers itself (`num_images`).

    Patches: the trainer's `_get_per_token_logps_and_entropies` drops the key; a forward pre-hook of policy and
    reference model hands each pass the numbers of its own rows.
    """
    original = trainer._get_per_token_logps_and_entropies
    waiting: list[int] = []

    def logps(*args: Any, batch_num_images: Any = None, num_images: list[int] | None = None, **kwargs: Any) -> Any:
        waiting[:] = num_images or []
        try:
            return original(*args, num_images=num_images, **kwargs)
        finally:
            waiting.clear()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if waiting:
            rows = len(kwargs["input_ids"])
            kwargs["batch_num_images"] = torch.tensor(waiting[:rows])
            del waiting[:rows]
        return args, kwargs

    trainer._get_per_token_logps_and_entropies = logps
    for policy in (trainer.model, trainer.ref_model):
        if policy is not None:
            policy.register_forward_pre_hook(before, with_kwargs=True)
