"""Changes to loaded models that make SC-GRPO faster, or possible: each says what it patches and why it is exact.

In SC-GRPO the completions of a group share their images and their prompt. Without these changes the vision tower and
the language model compute both again for each completion.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast


def deduplicate_images(tower: nn.Module) -> None:
    """Let a vision tower encode each distinct image of a batch once.

    Patches: a forward pre-hook hands the tower the distinct rows of its pixels; a forward hook repeats the rows of all
    outputs. Exact: the tower treats the rows of a batch independently, and the gradient of a repeated row is the sum
    over its copies.
    """
    indices: list[torch.Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        pixels = args[0] if args else kwargs["pixel_values"]
        distinct, index = torch.unique(pixels.flatten(1), dim=0, return_inverse=True)
        indices.append(index)
        distinct = distinct.unflatten(1, pixels.shape[1:])
        return ((distinct, *args[1:]), kwargs) if args else (args, kwargs | {"pixel_values": distinct})

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        index = indices.pop()
        for name, value in output.items():
            output[name] = tuple(v[index] for v in value) if isinstance(value, tuple) else value[index]
        return output

    tower.register_forward_pre_hook(before, with_kwargs=True)
    tower.register_forward_hook(after, with_kwargs=True)


def share_prefix(model: PreTrainedModel) -> None:
    """Let the language model of a Llava read each distinct prompt of a batch once.

    The prompt ends where the labels begin or, in generation, where the first pass ends; it holds two thirds of the mini
    VLM's tokens. Needs the key-value cache, so it is not for training with gradient checkpointing.

    Patches: a forward pre-hook of the model notes the length of the prompt; the language model's `forward` reads the
    distinct prompts, repeats their keys, values and states for all rows, and reads the completions after them. Exact:
    attention is causal, so the states of a prompt do not depend on what follows it, and gradients flow through the
    repeated keys and values.
    """
    language_model = model.model.language_model
    read = language_model.forward
    prompt_length = [0]

    def note_prompt(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        labels = kwargs.get("labels")
        prompt_length[0] = 0 if labels is None else int((labels != -100).any(0).int().argmax())

    def forward(
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        first_pass = past_key_values is not None and past_key_values.get_seq_length() == 0
        length = inputs_embeds.shape[1] if first_pass else prompt_length[0]
        if not length or (past_key_values is not None and not first_pass):
            return read(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                **kwargs,
            )
        _, group = torch.unique(inputs_embeds[:, :length].detach().flatten(1), dim=0, return_inverse=True)
        # Not torch.unique's own rows: the gradient must reach the embeddings.
        first = torch.stack([(group == number).int().argmax() for number in range(int(group.max()) + 1)])
        prompts = read(
            inputs_embeds=inputs_embeds[first, :length],
            attention_mask=attention_mask[first, :length],
            position_ids=None if position_ids is None else position_ids.expand(len(group), -1)[first, :length],
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
                position_ids=None if position_ids is None else position_ids[:, length:],
                past_key_values=cache,
                **kwargs | {"use_cache": True},
            )
            states = torch.cat([states, rest.last_hidden_state], dim=1)
        return BaseModelOutputWithPast(last_hidden_state=states, past_key_values=cache if first_pass else None)

    model.register_forward_pre_hook(note_prompt, with_kwargs=True)
    language_model.forward = forward


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
