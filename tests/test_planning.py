"""Plans: counts against published ones, estimates against measured miniatures, advice, profiles, the command."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import miniatures
import pytest
import torch
from conftest import SECTIONS
from miniatures import Size
from test_cli import complaint, iadr1
from transformers import AutoModelForImageTextToText
from trl.trainer.utils import add_fused_lm_head

from iadr1_lib.errors import UserError
from iadr1_lib.models import FAMILIES, MODELS, meta_model, tokens_of
from iadr1_lib.models.shapes import configuration, image_tokens, sizes
from iadr1_lib.runs import Profile, load_profile
from iadr1_lib.training import memory as estimates
from iadr1_lib.training import plan as planning
from iadr1_lib.training.plan import PlanSettings, plan, settings_of

NAMES = tuple(sizes())
# Estimated over measured activations of the miniatures lie between these, in float32, under autocast, and in bfloat16
# throughout.
FLOAT32, AUTOCAST, BFLOAT16 = (0.85, 1.25), (0.8, 1.1), (0.9, 1.25)

SIZE = Size(width=64, inner=192, layers=6, tower_width=48, tower_inner=192, tower_layers=4, side=56)


@pytest.fixture(params=FAMILIES)
def config(request: pytest.FixtureRequest) -> Any:
    """A configuration of one of the five classes, some hundred thousand parameters."""
    ids = {"image_token_id": 399}
    if request.param.startswith("qwen"):
        ids |= {"vision_start_token_id": 398, "video_token_id": 397}
    return miniatures.configuration(request.param, SIZE, {"vocab_size": 400, "tie_word_embeddings": False}, **ids)


def inputs(config: Any, height: int, width: int, rows: int, answer: int) -> dict[str, Any]:
    """A batch of `rows` prompts with one picture each, as the family's processor would give it."""
    tokens, patches = image_tokens(config, height, width)
    ids = torch.randint(5, 300, (rows, 8 + tokens + answer))
    ids[:, 4 : 4 + tokens] = 399
    labels = ids.clone()
    labels[:, :-answer] = -100
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    if config.model_type.startswith("qwen"):
        grid = torch.tensor([[1, height // 14, width // 14]] * rows)
        batch |= {"pixel_values": torch.randn(rows * patches, 3 * 2 * 14 * 14), "image_grid_thw": grid}
        return batch | {"mm_token_type_ids": (ids == 399).long()}
    if config.model_type == "llava":
        return batch | {"pixel_values": torch.randn(rows, 3, 56, 56)}
    classes = config.model_type == "llava_next"
    tiles = patches // (16 + classes)
    sizes = torch.tensor([[height, width]] * rows)
    batch |= {"pixel_values": torch.randn(rows, tiles, 3, 56, 56), "image_sizes": sizes}
    return batch | ({} if classes else {"batch_num_images": torch.ones(rows, dtype=torch.long)})


def measure(model: Any, batch: dict[str, Any]) -> tuple[int, float]:
    """(bytes kept for the backward pass, without parameters and inputs; the loss). Each storage counts once.

    Copies of the pixels are not counted: they are large in miniatures only.
    """
    kept: dict[int, int] = {}
    alive = []  # else an address could serve twice
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *batch.values())}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and tensor.numel() != batch["pixel_values"].numel():
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch, fused_lm_head=True).loss
    loss.backward()
    return sum(kept.values()), float(loss.detach())


def build(config: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").train()
    add_fused_lm_head(model)
    return model


# --- parameters and tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_the_published_ones(name: str) -> None:
    counted = sum(plan(name, PlanSettings()).parameters.values())
    assert round(counted / 1e9, 3) == sizes()[name]["parameters_billion"]


def test_the_table_of_sizes_is_the_reference(shared: Path, root: Path) -> None:
    here, there = ((folder / "model_sizes.json").read_text() for folder in (root / "data", shared / "reference"))
    assert json.loads(here) == json.loads(there)


def test_frozen_parts_and_lora() -> None:
    whole = plan("llava-1.5-7b", PlanSettings())
    sft, grpo = (stage.trainable for stage in whole.stages)
    assert sft == whole.parameters["language model"] and grpo == sum(whole.parameters.values())
    sft, grpo = (stage.trainable for stage in plan("qwen2.5-vl-3b", PlanSettings()).stages)
    assert sft == grpo
    lora = [plan("llava-1.5-7b", PlanSettings(lora=True, rank=r)).stages[0].trainable for r in (8, 16)]
    # 32 layers: q, k, v, o of 4096 x 4096; gate, up, down of 4096 and 11008
    assert lora[0] == 32 * 8 * (4 * 8192 + 3 * (4096 + 11008)) and lora[1] == 2 * lora[0]


def test_lora_counts_what_peft_makes(config: Any) -> None:
    from peft import LoraConfig, get_peft_model

    targets = FAMILIES[config.model_type].lora_targets
    adapted = get_peft_model(AutoModelForImageTextToText.from_config(config), LoraConfig(r=4, target_modules=targets))
    trained, _ = estimates.trained_and_frozen(meta_model(config), PlanSettings(lora=True, rank=4), "pa_sft")
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == trained


def test_tokens_of_pictures() -> None:
    tokens = {name: tokens_of(configuration(name), 512 * 512) for name in NAMES}
    assert tokens["llava-1.5-7b"].square == tokens["llava-1.5-7b"].worst == 576
    assert tokens["qwen2-vl-2b"].square == (504 // 28) ** 2  # 512 rounds to 18 x 28
    assert tokens["llava-1.6-8b"].square == 576 + 48 * 48 + 48  # the whole, four tiles, a mark after each row
    assert tokens["llava-onevision-7b"].square == 729 + 54 * 54 + 54
    for name, found in tokens.items():
        area = math.prod(found.worst_shape)
        assert found.worst >= found.square and area <= 512 * 512, name
    pair = tokens_of(configuration("llava-onevision-7b"), 512 * 512, images=2)
    assert pair.worst == 730


def test_tokens_are_what_the_model_takes(config: Any) -> None:
    """The model refuses a prompt whose image tokens are not as many as its features."""
    model = build(config)
    for height, width in ((112, 112), (56, 112), (112, 56)):
        batch = inputs(config, height, width, rows=1, answer=3)
        with torch.no_grad():
            assert math.isfinite(model(**batch, fused_lm_head=True).loss)
    batch["input_ids"][:, -1] = 399
    with pytest.raises(ValueError), torch.no_grad():
        model(**batch, fused_lm_head=True)


# --- memory -------------------------------------------------------------------------------------------------


def test_weights_gradients_and_optimiser_agree_with_a_step(config: Any) -> None:
    model = build(config)
    optimiser = torch.optim.AdamW(model.parameters())
    measure(model, inputs(config, 112, 112, 2, 6))
    optimiser.step()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    gradients = sum(p.grad.numel() * 4 for p in model.parameters() if p.grad is not None)
    moments = sum(v.numel() * 4 for s in optimiser.state.values() for v in s.values() if v.dim() > 0)
    settings = PlanSettings(bf16=False, beta=0)
    memory = estimates.memory_of(meta_model(config), settings, "sc_grpo", tokens_of(config, 112 * 112))
    unused = sum(p.numel() * 4 for p in model.parameters() if p.grad is None)  # CLIP's last layer: no gradient yet
    assert memory.weights * estimates.GIB == size
    assert memory.gradients * estimates.GIB == gradients + unused
    assert memory.optimiser * estimates.GIB == moments + 2 * unused
    assert unused < size / 10


KINDS = ["full", "frozen tower", "checkpointing", "lora", "autocast", "autocast, checkpointing", "bfloat16"]


@pytest.mark.parametrize("kind", KINDS)
def test_activations_agree_with_a_step(config: Any, kind: str) -> None:
    """`bfloat16`: weights that are bfloat16 themselves, as under DeepSpeed."""
    from peft import LoraConfig, get_peft_model

    model, family = build(config), FAMILIES[config.model_type]
    autocast, checkpointing, bf16 = "autocast" in kind, "checkpointing" in kind, kind == "bfloat16"
    if kind == "frozen tower":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(family.part_of(name) == "language model")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=4, target_modules=family.lora_targets))
    rows = 3
    batch = inputs(config, 112, 112, rows, answer=40)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        measured, loss = measure(model.bfloat16() if bf16 else model, batch)
    assert math.isfinite(loss)
    if kind == "autocast":  # the bfloat16 copies of the weights count among the weights
        measured -= 2 * sum(p.numel() for n, p in model.named_parameters() if p.dim() > 1 and "embed" not in n)
    settings = PlanSettings(
        bf16=autocast or bf16,
        sharding="zero3" if bf16 else "none",
        gradient_checkpointing=checkpointing,
        lora=kind == "lora",
    )
    patches = 0 if kind in ("frozen tower", "lora") else rows * image_tokens(config, 112, 112)[1]
    # With checkpointing the hooks see what is kept, not the one layer that is computed anew, which "full" measures.
    estimate, _ = estimates.activation_bytes(config, settings, batch["input_ids"].numel(), patches)
    lowest, highest = AUTOCAST if autocast else BFLOAT16 if bf16 else FLOAT32
    assert lowest <= estimate / measured <= highest


@pytest.mark.parametrize(
    ("model", "stage", "change", "peak"),
    [
        ("llava-onevision-0.5b", "pa_sft", {"lora": False}, 15.9),
        ("llava-onevision-0.5b", "sc_grpo", {"lora": False}, 32.1),
        ("qwen2.5-vl-3b", "pa_sft", {}, 8.7),
        ("qwen2.5-vl-3b", "sc_grpo", {}, 11.4),
        ("qwen2.5-vl-3b", "pa_sft", {"micro_batch": 8, "gradient_checkpointing": False}, 49.6),
    ],
)
def test_the_plan_agrees_with_a_gpu(model: str, stage: Any, change: dict[str, Any], peak: float) -> None:
    """Peaks (GiB) of tests/gpu_check.py on one H200, with the profile's passes of then, before prompts were shared."""
    then = {"micro_batch": 1, "grpo_micro_batch": 4, "gradient_checkpointing": True, "shares_prompts": False}
    settings = dataclasses.replace(settings_of(load_profile("gpu")), **then | change)
    assert 0.9 < peak / planning.choose(meta_model(model), settings, stage).memory.total < 1.1


def micro_batches(model: str, gib: float, **change: Any) -> list[tuple[int, bool]]:
    settings = dataclasses.replace(settings_of(load_profile("gpu")), gpu_gib=gib, **change)
    found = plan(model, settings)
    for stage in found.stages:
        assert stage.micro_batch * stage.passes == settings.share(stage.stage)
    return [(stage.micro_batch, stage.gradient_checkpointing) for stage in found.stages]


def test_passes_grow_with_the_memory_and_what_is_fixed_stays() -> None:
    large, small, none = (micro_batches("qwen2.5-vl-3b", gib) for gib in (400, 24, 1))
    assert large == [(8, False), (24, False)]
    assert all(rows < 24 and recomputes for rows, recomputes in small)
    assert all(recomputes for _, recomputes in none)  # nothing fits: what takes least
    assert micro_batches("qwen2.5-vl-3b", 24, micro_batch=2, gradient_checkpointing=False)[0] == (2, False)
    assert micro_batches("qwen2.5-vl-3b", 400, gradient_checkpointing=True)[0] == (8, True)
    # Long sequences fill a pass: rather one of them without checkpointing than many with it.
    assert micro_batches("llava-onevision-0.5b", 12)[0] == (1, False)


def test_what_fits_is_within_the_memory_that_is_left() -> None:
    for gib in (12, 24, 48, 80, 140):
        settings = dataclasses.replace(settings_of(load_profile("gpu")), gpu_gib=gib)
        for stage in plan("qwen2.5-vl-7b", settings).stages:
            assert stage.fits == (stage.memory.total <= 0.9 * gib)


def test_shared_prompts_save_reading_them_unless_weights_are_sharded() -> None:
    def read(**change: Any) -> tuple[int, float]:
        settings = PlanSettings(gradient_checkpointing=False, grpo_micro_batch=24, **change)
        tokens = tokens_of(configuration("qwen2.5-vl-3b"), 480_000)
        memory = estimates.memory_of(meta_model("qwen2.5-vl-3b"), settings, "sc_grpo", tokens)
        return estimates.pass_tokens(settings, "sc_grpo", tokens), memory.generation

    (shared, less), (each, more) = read(), read(shares_prompts=False)
    assert each - shared == 18 * (64 + 640) and less < more  # 24 completions of 6 questions
    assert read(sharding="fsdp2")[0] == each


def test_sharding_divides_states_and_lora_needs_no_reference() -> None:
    one, four = (
        plan("qwen2.5-vl-7b", PlanSettings(sharding=sharding, processes=n, gpu_gib=80)).stages[1].memory
        for sharding, n in (("none", 1), ("zero3", 4))
    )
    parameters = sum(plan("qwen2.5-vl-7b", PlanSettings()).parameters.values()) / estimates.GIB
    assert one.weights + one.gradients + one.optimiser == pytest.approx(18 * parameters)
    assert four.weights + four.gradients + four.optimiser == pytest.approx(16 * parameters / 4)
    assert four.reference == pytest.approx(2 * parameters / 4) and four.gathered > 0 == one.gathered
    # sharded or not, generating needs the whole model at hand, but for a server that has its own
    assert four.generation > 2 * parameters > one.generation
    server = PlanSettings(sharding="zero3", processes=4, vllm="server")
    assert plan("qwen2.5-vl-7b", server).stages[1].memory.generation == 0
    ddp = plan("qwen2.5-vl-7b", PlanSettings(sharding="ddp", processes=4)).stages[1].memory
    assert ddp.weights == one.weights and ddp.gradients == 2 * one.gradients
    assert plan("qwen2.5-vl-7b", PlanSettings(beta=0)).stages[1].memory.reference == 0
    lora = plan("qwen2.5-vl-7b", PlanSettings(lora=True)).stages[1].memory
    four_bit = plan("qwen2.5-vl-7b", PlanSettings(lora=True, four_bit=True)).stages[1].memory
    assert lora.reference == 0 and four_bit.weights < lora.weights / 2 and four_bit.activations == lora.activations


def test_each_knob_moves_memory_its_way() -> None:
    def peak(**change: Any) -> float:
        return max(stage.memory.total for stage in plan("qwen2.5-vl-3b", PlanSettings(lora=True, **change)).stages)

    assert peak(gradient_checkpointing=False, max_pixels=4 * 512 * 512) > peak(gradient_checkpointing=False) > peak()
    for change in (
        {"images": 2},
        {"bf16": False},
        {"vllm": "colocate"},
        {"grpo_micro_batch": 8},
        {"max_completion": 2048},
    ):
        assert peak(**change) > peak(), change


def test_steps_are_the_papers() -> None:
    sft, grpo = plan("qwen2-vl-2b", PlanSettings()).stages
    assert 360 <= sft.steps <= 366 and grpo.steps == 500
    assert plan("qwen2-vl-2b", PlanSettings(steps=7, epochs=2)).stages[1].steps == 7


def test_advice_ends_when_it_fits_or_says_that_it_never_will() -> None:
    settings = PlanSettings(gpu_gib=24, gradient_checkpointing=False)
    found = plan("qwen2.5-vl-7b", settings)
    assert not all(stage.fits for stage in found.stages) and "gradient_checkpointing" in found.advice[0]
    followed = PlanSettings(gpu_gib=24, lora=True, grpo_micro_batch=1)
    assert "lora" in found.advice[-1] and all(stage.fits for stage in plan("qwen2.5-vl-7b", followed).stages)
    assert "smaller model" in plan("qwen2.5-vl-7b", PlanSettings(gpu_gib=2)).advice[-1]
    assert plan("qwen2-vl-2b", PlanSettings(lora=True, gpu_gib=80)).advice == ()
    generating = plan("llava-1.5-7b", PlanSettings(lora=True, grpo_micro_batch=1)).advice  # passes are small already
    assert len(generating) == 1 and generating[0].startswith("four_bit")


@pytest.mark.parametrize(
    ("said", "part"),
    [
        ({"four_bit": True}, "needs lora"),
        ({"processes": 0}, "processes"),
        ({"max_pixels": 5}, "max_pixels"),
        ({"four_bit": True, "lora": True, "sharding": "zero3"}, "ZeRO-3"),
    ],
)
def test_contradictions_are_one_sentence(said: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        plan("qwen2-vl-2b", PlanSettings(**said))


def test_mini_folders_and_unknown_models(tmp_path: Path) -> None:
    mini = plan("mini", PlanSettings())
    assert mini.stages[0].tokens.square == 64 and 1e6 < sum(mini.parameters.values()) < 1e7
    miniatures.configuration("qwen2_vl", SIZE, {"vocab_size": 400}).save_pretrained(tmp_path)
    assert sum(plan(str(tmp_path), PlanSettings()).parameters.values()) < 1e6
    with pytest.raises(UserError, match="llava-1.5-7b"):
        plan("gpt", PlanSettings())


# --- profiles and the command -------------------------------------------------------------------------------


def test_settings_from_a_profile() -> None:
    found = settings_of(Profile("big", SECTIONS, {}, Path("big.yaml")))
    wanted = PlanSettings(lora=True, rank=8, max_pixels=100_000, bf16=False, sharding="ddp", processes=2, gpu_gib=48)
    more = {"batch": 16, "epochs": 2.0, "prompts": 3, "grpo_micro_batch": 2, "beta": 0.0, "steps": 9}
    more |= {"micro_batch": None, "gradient_checkpointing": None}
    assert found == dataclasses.replace(wanted, **more, max_completion=256)
    for key in ("config", "vllm"):
        odd = SECTIONS | {"engine": SECTIONS["engine"] | {key: "magic"}}
        with pytest.raises(UserError, match=rf"profile big.*engine.*{key} is"):
            settings_of(Profile("big", odd, {}, Path("big.yaml")))


def test_the_command(big: Path) -> None:
    shown = iadr1("plan", "--profile", "big", "--model", "qwen2.5-vl-7b")
    assert "pa-sft: " in shown.output and "the fastest that fits" in shown.output
    assert shown.exit_code == 0 and "8,292,166,656" in shown.output and "peak (GiB)" in shown.output
    found = json.loads(iadr1("plan", "--profile", "big", "--images", 2, "--json").stdout)
    assert found["model"] == "qwen2.5-vl-3b" and found["settings"]["images"] == 2
    assert [stage["steps"] for stage in found["stages"]] == [364, 9]
    assert all(stage["memory"]["total"] > 0 for stage in found["stages"])
    small = json.loads(iadr1("plan", "--profile", "big", "--gpu-gib", "12", "--json").stdout)
    assert small["stages"][0]["micro_batch"] < found["stages"][0]["micro_batch"]
    assert "no section model" in complaint(iadr1("plan", "--profile", "tiny"))
    assert "choose from" in complaint(iadr1("plan", "--profile", "big", "--model", "gpt"))


def fits_whole(made: planning.Plan) -> bool:
    return all(stage.fits for stage in made.stages)


@pytest.mark.parametrize("profile", ["gpu", "paper"])
@pytest.mark.parametrize("model", [name for name, entry in MODELS.items() if entry.hub_id])
def test_the_shipped_profiles_plan_all_seven_models_and_the_page_says_which_fit(model: str, profile: str) -> None:
    settings = planning.settings_of(load_profile(profile))
    fits = fits_whole(plan(model, settings))
    if profile == "paper":
        assert fits
        return
    page = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    said = page.split("By `iadr1 plan`, both stages of ")[1]
    as_they_are, rest = said.split(" fit as they are. ")
    assert (model in as_they_are) == fits and (model in rest.split("\n\n")[0]) != fits
    if not fits:
        assert fits_whole(plan(model, dataclasses.replace(settings, four_bit=True)))


@pytest.mark.parametrize(
    "text",
    [
        '{"model_type": "internvl_chat"}',
        '{"model_type": "qwen2"}',
        '{"model_type": "gemma3"}',
        '{"hidden_size": 32}',
        "[]",
        "{",
        '{"model_type": "qwen2_vl", "text_config": {"hidden_size": "x"}}',
        '{"model_type": "llava", "text_config": {"model_type": "llama", "num_attention_heads": 7}}',
    ],
)
def test_a_configuration_that_cannot_be_planned_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError) as told:
        planning.plan(str(tmp_path), planning.PlanSettings())
    assert "\n" not in str(told.value) and len(str(told.value)) < 500
