"""How SC-GRPO's completions are written: merged adapters, a cache of fixed size, batches that fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import test_families
import tiny_vlm
import torch
from safetensors.torch import load_file
from test_batching import NAMES, adapted, batch, build, greedy, picture
from torch._dynamo.utils import counters
from transformers import CompileConfig, GenerationConfig
from transformers.cache_utils import StaticCache

from iadr1_lib.models import FAMILIES, GenerationSettings, ModelSettings, generation, share_group_work
from iadr1_lib.records import Sample
from iadr1_lib.training import trainers

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def eager() -> CompileConfig:
    """Compiles on a CPU, too, and leaves out the translation to kernels."""
    config = CompileConfig(backend="eager", mode="default")
    config._compile_all_devices = True
    return config


# ------------------------------------------------------------------------------------------------ merged adapters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("broken_off", [False, True])
def test_a_merged_adapter_leaves_every_bit_of_the_weights(dtype: torch.dtype, broken_off: bool) -> None:
    model = adapted(build("qwen2_5_vl")[0].to(dtype), "qwen2_5_vl")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    addresses = [weight.data_ptr() for weight in model.state_dict().values()]
    copies: list[torch.Tensor] = []
    for _ in range(2):
        try:
            with generation.merged_adapter(model, copies):
                changed = [n for n, weight in model.state_dict().items() if not torch.equal(weight, before[n])]
                if broken_off:
                    raise torch.OutOfMemoryError
        except torch.OutOfMemoryError:
            pass
        assert changed and len(changed) == len(copies) and all("base_layer" in name for name in changed)
        assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert [weight.data_ptr() for weight in model.state_dict().values()] == addresses
    values = model(**batch("qwen2_5_vl", 1).inputs)
    values.loss.backward()
    assert {"lora" in n for n, p in model.named_parameters() if p.grad is not None} == {True}


@pytest.mark.parametrize("name", NAMES)
def test_a_merged_adapter_writes_the_same_answers(name: str) -> None:
    model, prompts = adapted(build(name)[0], name), batch(name, 1).prompts()
    apart = greedy(model, prompts)
    with generation.merged_adapter(model, []):
        merged = greedy(model, prompts)
    torch.testing.assert_close(merged, apart)
    with model.disable_adapter():
        assert not torch.allclose(greedy(model, prompts)[1], apart[1])


def test_nothing_is_merged_without_an_adapter_into_four_bits_or_if_it_is_switched_off() -> None:
    plain, packed = build("llava")[0], adapted(build("llava")[0], "llava")
    for layer in packed.modules():
        if isinstance(layer, generation.BaseTunerLayer):
            weight = layer.get_base_layer().weight
            layer.get_base_layer().weight = torch.nn.Parameter(weight.to(torch.uint8), requires_grad=False)
    off = adapted(build("llava")[0], "llava")
    for model, copies in ((plain, []), (packed, []), (off, None)):
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        with generation.merged_adapter(model, copies):
            assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
        assert not copies


# ------------------------------------------------------------------------------------------------ a compiled step


@pytest.mark.parametrize(
    "name, compiled",
    [(n, False) for n in NAMES]
    + [pytest.param(n, True, marks=[] if n in ("llava", "qwen2_5_vl") else pytest.mark.slow) for n in NAMES],
)
def test_a_cache_of_fixed_size_gives_the_same_tokens(name: str, compiled: bool) -> None:
    """With all that is done to the model at once; and the cache is used again."""
    given = [batch(name, images).prompts() for images in (2, 1, 2)]
    wanted = [greedy(adapted(build(name)[0], name), prompts) for prompts in given]
    model, caches, used = adapted(build(name)[0], name).train(), {}, []
    share_group_work(model)
    generation.keep_cache(model.get_base_model(), caches)
    torch.compiler.reset()
    counters.clear()
    compilation = {"compile_config": eager(), "disable_compile": False} if compiled else {}
    with torch.no_grad(), generation.merged_adapter(model, []):
        for prompts, tokens in zip(given, wanted, strict=True):
            torch.testing.assert_close(
                greedy(model, prompts, cache_implementation="static", **compilation), tokens, atol=1e-5, rtol=1e-4
            )
            used.append(caches[6])
    assert all(isinstance(cache, StaticCache) for cache in used) and used[0] is used[1] is used[2]
    assert (counters["stats"]["unique_graphs"], len(counters["graph_break"])) == (int(compiled), 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_cuda_graphs_write_the_same_answers(name: str) -> None:
    prompts = {key: value.to(CUDA) for key, value in batch(name, 2).prompts().items()}
    model = adapted(build(name)[0], name).to(CUDA)
    wanted = greedy(model, prompts)
    share_group_work(model)
    generation.keep_cache(model.get_base_model(), {})
    torch.compiler.reset()
    counters.clear()
    with torch.no_grad(), generation.merged_adapter(model, []):
        for _ in range(4):
            fast = greedy(model, prompts, cache_implementation="static", disable_compile=False)
            torch.testing.assert_close(fast, wanted, atol=1e-4, rtol=1e-3)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["inductor"]["cudagraph_skips"]


def test_a_larger_batch_or_longer_prompt_gets_a_larger_cache() -> None:
    model, caches, made = build("llava")[0], {}, []
    generation.keep_cache(model, caches)
    for rows, length in ((4, 100), (4, 256), (4, 257), (2, 10), (4, 10)):
        more: dict[str, Any] = {"cache_implementation": "static", "prefill_chunk_size": None, "model_kwargs": {}}
        cache = model._prepare_static_cache(batch_size=rows, max_cache_len=length, **more)
        assert cache.get_max_length() >= length and list(caches) == [rows]
        made.append(cache)
    assert made[0] is made[1] and len({id(cache) for cache in made}) == 4


def test_compilation_is_for_cuda_devices_and_models_that_allow_it() -> None:
    model, _ = build("llava")
    assert generation.can_compile(model, CUDA) and not generation.can_compile(model, CPU)
    for allowed in (True, False):
        model.hf_quantizer = SimpleNamespace(is_compileable=allowed)
        assert generation.can_compile(model, CUDA) == allowed
    del model.hf_quantizer
    model._can_compile_fullgraph = False
    assert not generation.can_compile(model, CUDA)


# ------------------------------------------------------------------------------------------------ batches that fit


def trainer_of(model: Any, write: Callable[..., Any], device: torch.device = CPU) -> Any:
    """What `speed_up_generation` reads and changes of a GRPOTrainer."""
    return SimpleNamespace(
        model=model,
        use_vllm=False,
        is_deepspeed_enabled=False,
        is_fsdp_enabled=False,
        accelerator=SimpleNamespace(device=device),
        generation_config=GenerationConfig(disable_compile=True),
        _generate_single_turn=write,
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_the_part_of_some_rows_is_what_the_processor_makes_of_them(name: str) -> None:
    _, processor = build(name)
    shown = [[picture(n) for n in group] for group in ([0, 1], [2], [3, 4, 5], [6])]
    turns = [
        [{"role": "user", "content": [*({"type": "image", "image": i} for i in images), {"type": "text", "text": "?"}]}]
        for images in shown
    ]

    def fields(turns: list[Any]) -> dict[str, Any]:
        settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
        made = processor.apply_chat_template(conversation=turns, **settings)
        return {k: v for k, v in made.items() if k not in ("input_ids", "attention_mask")}

    whole, rows = fields(turns), slice(1, 3)
    part, alone = generation.fields_of(whole, [2, 1, 3, 1], rows), fields(turns[rows])
    assert part.keys() == alone.keys()
    for key, values in alone.items():
        assert len(part[key]) == len(values)
        for a, b in zip(part[key], values, strict=True):
            same = np.asarray(a)[: len(b)] if key == "pixel_values" else np.asarray(a)  # padded with tiles of zeros
            np.testing.assert_array_equal(same, np.asarray(b))
    everything = generation.fields_of(whole, [2, 1, 3, 1], slice(0, 9))
    assert all(len(everything[key]) == len(values) for key, values in whole.items())


def echo(most: int, batches: list[int]) -> Callable[..., Any]:
    """Writes each prompt backwards, and has room for `most` of them."""

    def write(prompt_ids: list[list[int]], images: Any, fields: Any, *args: Any, **kwargs: Any) -> Any:
        assert len(images) == len(fields["pixel_values"]) == len(prompt_ids)
        batches.append(len(prompt_ids))
        if len(prompt_ids) > most:
            raise torch.OutOfMemoryError
        return [ids[::-1] for ids in prompt_ids], None

    return write


@pytest.mark.parametrize("batch_size, batches", [(None, [5]), (2, [2, 2, 1]), (4, [3, 2]), (8, [5])])
def test_completions_are_written_in_batches_and_come_in_order(batch_size: int | None, batches: list[int]) -> None:
    seen: list[int] = []
    trainer = trainer_of(build("llava")[0], echo(9, seen))
    generation.speed_up_generation(trainer, GenerationSettings(batch=batch_size))
    prompts = [[n, n + 10] for n in range(5)]
    images, fields = [[picture(n)] for n in range(5)], {"pixel_values": list(range(5))}
    written = trainer._generate_single_turn(prompts, images, fields, 5, has_tool_images=False)
    assert written == ([ids[::-1] for ids in prompts], None) and seen == batches


def test_out_of_memory_halves_the_batch_for_good(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []
    trainer = trainer_of(build("llava")[0], echo(2, seen))
    generation.speed_up_generation(trainer, GenerationSettings())
    given: Any = [[n] for n in range(6)], [[picture(n)] for n in range(6)], {"pixel_values": list(range(6))}
    for batches in ([6, 3, 2, 2, 2], [2, 2, 2]):
        seen.clear()
        assert trainer._generate_single_turn(*given, 6)[0] == given[0]
        assert seen == batches
    assert capsys.readouterr().out.count("out of memory") == 2
    trainer = trainer_of(build("llava")[0], echo(0, seen))
    generation.speed_up_generation(trainer, GenerationSettings())
    with pytest.raises(torch.OutOfMemoryError):
        trainer._generate_single_turn(*given, 6)


def test_the_batch_of_another_class_is_not_cut() -> None:
    model, seen = build("llava")[0], []
    model.config.model_type = "another"
    trainer = trainer_of(model, lambda ids, images, fields, *args: seen.append(fields) or (ids, None))
    generation.speed_up_generation(trainer, GenerationSettings(batch=1))
    fields = {"pixel_values": list(range(9)), "tiles": [[3, 2], [4]]}
    assert trainer._generate_single_turn([[1], [2]], [[0, 1], [2]], fields, 2)[0] == [[1], [2]]
    assert seen == [fields]


def test_after_an_error_checkpointing_is_on_again() -> None:
    model, tries = adapted(build("llava")[0], "llava"), []

    def write(prompt_ids: list[list[int]], *args: Any) -> Any:
        """As TRL: see trl.models.utils._unwrap_model_for_generation."""
        tries.append(model.get_base_model().is_gradient_checkpointing)
        model.gradient_checkpointing_disable()
        if len(tries) == 1:
            raise torch.OutOfMemoryError
        model.gradient_checkpointing_enable({"use_reentrant": False})
        return prompt_ids, None

    trainer = trainer_of(model, write)
    trainer.args = SimpleNamespace(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.gradient_checkpointing_enable({"use_reentrant": False})
    generation.speed_up_generation(trainer, GenerationSettings())
    assert trainer._generate_single_turn([[1], [2]], None, {}, 2)[0] == [[1], [2]]
    assert tries == [True] * 3 and model.get_base_model().is_gradient_checkpointing


def test_generation_goes_on_where_compilation_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def write(prompt_ids: list[list[int]], *args: Any) -> Any:
        if not trainer.generation_config.disable_compile:
            raise torch._dynamo.exc.TorchDynamoException("no compiler\nwas found")
        return prompt_ids, None

    trainer = trainer_of(build("llava")[0], write, CUDA)
    generation.speed_up_generation(trainer, GenerationSettings())
    config = trainer.generation_config
    assert (config.cache_implementation, config.disable_compile) == ("static", False)
    for _ in range(2):
        assert trainer._generate_single_turn([[1], [2]], None, {}, 2) == ([[1], [2]], None)
    assert (config.cache_implementation, config.disable_compile) == (None, True)
    assert capsys.readouterr().out.count("no compiler was found") == 1


@pytest.mark.parametrize("device, compiled", [(CPU, True), (CUDA, False)])
def test_without_a_gpu_or_if_switched_off_the_configuration_stays(device: torch.device, compiled: bool) -> None:
    trainer = trainer_of(build("llava")[0], lambda *args: None, device)
    generation.speed_up_generation(trainer, GenerationSettings(compiled=compiled))
    assert trainer.generation_config.cache_implementation is None and trainer.generation_config.disable_compile


@pytest.mark.parametrize("other", ["use_vllm", "is_deepspeed_enabled", "is_fsdp_enabled"])
def test_rollouts_by_vllm_and_sharded_models_are_left_as_they_are(other: str) -> None:
    trainer = trainer_of(build("llava")[0], write := lambda *args: None, CUDA)
    setattr(trainer, other, True)
    generation.speed_up_generation(trainer, GenerationSettings())
    assert trainer._generate_single_turn is write


# ------------------------------------------------------------------------------------------------ in training


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return tiny_vlm.draw_samples(tmp_path_factory.mktemp("pictures"), count=8)


@pytest.mark.parametrize(
    "name, bf16",
    [("qwen2_5_vl", False), *(pytest.param(n, b, marks=pytest.mark.slow) for n, b in [("llava_onevision", True)])],
)
def test_training_comes_to_the_same_weights_by_the_fast_ways(
    name: str,
    bf16: bool,
    pictures: list[Sample],
    miniature: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With merged adapters, compiled steps and shared images and prompts, or without; and in batches of two.

    A step is compiled once: what TRL and the optimiser change between the steps of training is no part of it. With
    bfloat16 (autocast of all weights) rounding decides between tokens, so there the weights are not compared.
    """
    honest, speed_up = trainers.rewards.reward_functions, generation.speed_up_generation
    monkeypatch.setattr(trainers.rewards, "reward_functions", lambda *a: [test_families.spread, *honest(*a)[1:]])
    _, records = test_families.write_records(pictures, tmp_path, 2)
    lora: Any = {} if bf16 else test_families.LORA
    model = ModelSettings(name, gradient_checkpointing=True, **lora)
    settings = replace(test_families.GRPO, bf16=bf16, max_steps=3)

    def watched(trainer: Any, way: GenerationSettings) -> None:
        write, config = trainer._generate_single_turn, trainer.generation_config
        speed_up(trainer, GenerationSettings(compiled=False, batch=2))
        in_parts, trainer._generate_single_turn = trainer._generate_single_turn, write
        speed_up(trainer, way)
        whole = trainer._generate_single_turn
        if not config.disable_compile:
            config.compile_config = eager()
            return

        def compared(*args: Any) -> Any:
            config.do_sample = bf16
            assert len(args[0]) == 4 and (bf16 or whole(*args) == in_parts(*args))
            config.do_sample = True
            return whole(*args)

        trainer._generate_single_turn = compared

    monkeypatch.setattr(trainers.models, "speed_up_generation", watched)
    results = []
    torch.compiler.reset()
    counters.clear()
    for fast in (True, False):
        monkeypatch.setattr(generation, "can_compile", lambda model, device, fast=fast: fast)
        monkeypatch.setattr(trainers.models, "share_group_work", share_group_work if fast else lambda model: None)
        way = GenerationSettings(merge_adapter=fast)
        out = tmp_path / str(fast)
        folder = trainers.train_sc_grpo(miniature(name), records, out, settings, model=model, generation=way)
        results.append(load_file(folder / "model.safetensors"))
        assert (counters["stats"]["unique_graphs"], len(counters["graph_break"])) == (1, 0)
    assert "compilation" not in capsys.readouterr().out
    start = load_file(miniature(name) / "model.safetensors")
    assert any(not torch.equal(results[0][key], start[key]) for key in start)
    if not bf16:
        torch.testing.assert_close(*results, atol=1e-4, rtol=1e-3)


def test_switching_checkpointing_registers_no_more_hooks() -> None:
    model = adapted(build("llava_onevision")[0], "llava_onevision")
    base = model.get_base_model()
    generation.register_hooks_once(base)
    counts = []
    for _ in range(3):
        model.gradient_checkpointing_enable()
        counts.append(len(base.get_input_embeddings()._forward_hooks))
        model.gradient_checkpointing_disable()
    assert len(set(counts)) == 1 and counts[0]
    base.disable_input_require_grads()
    assert not base.get_input_embeddings()._forward_hooks
    model.gradient_checkpointing_enable()
    assert len(base.get_input_embeddings()._forward_hooks) == counts[0]
