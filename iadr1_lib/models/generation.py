"""Faster rollouts by transformers in SC-GRPO: what of TRL's GRPOTrainer is patched, and why.

TRL 1.16 writes all completions of a step in one call of `model.generate`, in `GRPOTrainer._generate_single_turn`. On a
GPU most of that time goes into starting small computations, one after another.

`speed_up_generation` wraps that one method of one trainer, and changes three things:

- LoRA's adapter is merged into the weights meanwhile: one product for each weight instead of three.
- On a GPU the key-value cache has a fixed size, and a step is compiled and recorded as CUDA graphs, which start as a
  whole. TRL sets `disable_compile=True` in its generation config, without which a cache of fixed size is only slower.
- The completions are written in several batches if one of all is too large (for the classes in FAMILIES, of which it is
  known what belongs to which image).

With rollouts by vLLM, or a model that DeepSpeed or FSDP shards, nothing changes: there other processes would wait for
the weights that a batch more or less gathers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import StaticCache

from iadr1_lib.errors import one_line
from iadr1_lib.models.batching import base_of
from iadr1_lib.models.families import FAMILIES

_PER_IMAGE = ("pixel_values", "image_sizes", "image_grid_thw")
_CACHE_STEP = 256  # tokens; caches for prompts of almost the same length have the same size


@dataclass(frozen=True)
class GenerationSettings:
    """How transformers writes the completions of SC-GRPO.

    Attributes:
        merge_adapter: merge LoRA's adapter while generating; never with a base in 4 bits. Weights in bfloat16 lose a
            part of a small update that way, so the completions come from a model between the reference and the policy
            (docs/lab_log.md has shares). vLLM is given merged weights, too.
        compiled: a cache of fixed size and a compiled step, on CUDA devices only. The first step compiles, so it takes
            longer. The cache stays in memory between the steps.
        batch: completions written at a time; None writes all of a step together. Out of memory halves it.
    """

    merge_adapter: bool = True
    compiled: bool = True
    batch: int | None = None


def speed_up_generation(trainer: Any, settings: GenerationSettings) -> None:
    """Let a GRPOTrainer generate as `settings` say: see the top of this module."""
    if not (trainer.use_vllm or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        trainer._generate_single_turn = _Turn(trainer, settings)


class _Turn:
    """Stands for `GRPOTrainer._generate_single_turn`."""

    def __init__(self, trainer: Any, settings: GenerationSettings) -> None:
        self.trainer = trainer
        self.write = trainer._generate_single_turn
        self.can_split = base_of(trainer.model).config.model_type in FAMILIES
        self.batch = settings.batch if self.can_split else None
        self.base_weights: list[torch.Tensor] | None = [] if settings.merge_adapter else None
        self.caches: dict[int, StaticCache] = {}
        base = base_of(trainer.model)
        register_hooks_once(base)
        self.compiled = settings.compiled and can_compile(base, trainer.accelerator.device)
        if self.compiled:
            keep_cache(base, self.caches)
            self._set_compiled(True)

    def _set_compiled(self, compiled: bool) -> None:
        self.compiled = compiled
        config = self.trainer.generation_config
        config.cache_implementation, config.disable_compile = ("static", False) if compiled else (None, True)

    def __call__(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], None]:
        """The ids of the completions, as the method that this stands for."""
        completions: list[list[int]] = []
        counts = [len(shown or ()) for shown in images or [()] * len(prompt_ids)]
        base = base_of(self.trainer.model)
        checkpointing = base.is_gradient_checkpointing
        with merged_adapter(self.trainer.model, self.base_weights):
            while (start := len(completions)) < len(prompt_ids):
                left = len(prompt_ids) - start
                batches = -(-left // (self.batch or left))
                rows = slice(start, start + -(-left // batches))  # of equal size, which share a compiled step
                given = prompt_ids[rows], images and images[rows], fields_of(multimodal_fields, counts, rows)
                try:
                    completions += self.write(*given, *args, **kwargs)[0]
                    continue
                except torch.OutOfMemoryError:
                    if len(prompt_ids[rows]) == 1 or not self.can_split:
                        raise
                    self.batch = (len(prompt_ids[rows]) + 1) // 2
                    print(f"generation: out of memory; from here on {self.batch} completions at a time")
                except RuntimeError as error:
                    if not self.compiled or "probability tensor" in str(error):  # weights that are no numbers
                        raise
                    self._set_compiled(False)
                    print(f"generation: goes on without compilation, which failed ({one_line(error, 200)})")
                # Not in the handlers: there the error still holds what the failed try allocated.
                self.caches.clear()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                if checkpointing:  # TRL switches it off while generating, and after an error not on again
                    base.gradient_checkpointing_enable(self.trainer.args.gradient_checkpointing_kwargs)
        return completions, None


def can_compile(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether a compiled step is worth while: on a CUDA device, if class and quantisation allow it.

    Where they do not, transformers would use the cache of fixed size without compilation, which is slower than none.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    return device.type == "cuda" and model._can_compile_fullgraph and (quantizer is None or quantizer.is_compileable)


class _OneDtypeCache(StaticCache):
    """A cache of fixed size for autocast, under which keys are float32, since they were rotated, and values are not.

    A cache that grows makes both float32; transformers' one of fixed size refuses them.
    """

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().update(key_states, value_states.to(key_states.dtype), *args, **kwargs)


def keep_cache(model: Any, caches: dict[int, StaticCache]) -> None:
    """Let `generate` use a cache of fixed size again, if it has room for the next call.

    CUDA graphs hold addresses: with a new cache in each call, as transformers makes them, every step of training would
    record anew, and after 128 of these PyTorch gives the graphs up.

    Patches: the model's `_prepare_static_cache`, which `generate` calls. It leaves the cache, by its number of rows, in
    `caches`, which may be emptied.
    """

    def prepare(*, batch_size: int, max_cache_len: int, **more: Any) -> StaticCache:
        kept = caches.get(batch_size)
        if kept is None or kept.get_max_length() < max_cache_len:
            caches.clear()
            length = -(-max_cache_len // _CACHE_STEP) * _CACHE_STEP
            kept = caches[batch_size] = _OneDtypeCache(model.config.get_text_config(decoder=True), length)
        kept.reset()
        return kept

    model._prepare_static_cache = prepare


def register_hooks_once(model: Any) -> None:
    """Keep TRL's switching of gradient checkpointing from registering a hook on the embeddings each time.

    TRL switches it off for generation and for the reference's pass. Whenever it is switched on again, transformers 5.17
    registers the hooks of `enable_input_require_grads` once more: each step of training would be slower than the one
    before, and a compiled step, which depends on the number of hooks, would be compiled anew.

    Patches: the model's `enable_input_require_grads`, which now does nothing if its hooks are there.
    """
    enable = model.enable_input_require_grads

    def once() -> None:
        if not getattr(model, "_require_grads_hooks", None):
            enable()

    model.enable_input_require_grads = once


@contextmanager
def merged_adapter(model: nn.Module, base_weights: list[torch.Tensor] | None) -> Iterator[None]:
    """Merge a PeftModel's LoRA adapter meanwhile; afterwards the base weights have the bits that they had before.

    Merging rounds, so taking the adapter out again by a subtraction would leave other weights. The base is not trained;
    so one copy, in the memory of the host, serves all steps.

    Args:
        model: of one without LoRA, or with a base in 4 bits, nothing is changed.
        base_weights: an empty list, kept from call to call, for the copy; None merges nothing.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    weights: list[torch.Tensor] = [layer.get_base_layer().weight for layer in layers]
    if base_weights is None or not layers or not all(weight.is_floating_point() for weight in weights):
        yield
        return
    if not base_weights:
        for weight in weights:
            copy = torch.empty_like(weight, device="cpu", pin_memory=weight.is_cuda, requires_grad=False)
            base_weights.append(copy.copy_(weight.detach()))
    adapted: Any = model
    try:
        with torch.no_grad():
            adapted.merge_adapter()
        yield
    finally:
        with torch.no_grad():
            adapted.unmerge_adapter()
            for weight, copy in zip(weights, base_weights, strict=True):
                weight.data.copy_(copy)  # in place: CUDA graphs hold the address


def fields_of(fields: Mapping[str, Any], counts: list[int], rows: slice) -> dict[str, Any]:
    """The part of what a processor returned beside the tokens that belongs to some rows of a batch.

    Args:
        fields: lists or arrays, one entry for each row, image or (Qwen's pixels) patch.
        counts: the number of images of each row of the batch.
        rows: with a start and a stop.
    """
    if rows.start == 0 and rows.stop >= len(counts):  # of another class, perhaps, with other fields
        return dict(fields)
    first, last = sum(counts[: rows.start]), sum(counts[: rows.stop])
    part: dict[str, Any] = {}
    for name, values in fields.items():
        if name == "pixel_values" and "image_grid_thw" in fields:
            ends = [0, *np.cumsum(np.asarray(fields["image_grid_thw"]).prod(-1)).tolist()]
            part[name] = values[ends[first] : ends[last]]
        else:
            part[name] = values[first:last] if name in _PER_IMAGE else values[rows]
    return part
