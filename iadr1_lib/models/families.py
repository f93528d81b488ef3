"""What differs between the families of vision-language models: one table, read by everything that loads or trains.

The paper's seven models are of five classes. They share a structure (a vision tower, a projector, a language model)
and differ in how the parts are named, which parts the release freezes in PA-SFT, and how an image becomes tokens.
Starts without torch.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iadr1_lib.errors import UserError
from iadr1_lib.files import read_text

# The linear layers of a Llama-like block, which all five language models are made of. Named with the language model's
# own prefix: "all-linear", or the bare names, would adapt the vision tower too (Qwen2.5-VL's has a gate_proj as well).
_BLOCK = "(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclass(frozen=True)
class Family:
    """One class of models.

    Attributes:
        model_type: as in config.json.
        tower, projector, language_model: where the part's weights lie, as prefixes of parameter names.
        frozen: parts that PA-SFT leaves as they are, as released (data/profiles/paper.yaml names the source).
        picture_tokens: how a picture becomes tokens: "fixed", "tiles" (as many as its shape asks for) or "area" (one
            per 28 x 28 pixels).
        counts_pictures: whether its processor says how many pictures each prompt has, and its model must be told.
        image_marks: tokens that stand for pictures; an answer must not hold them.
    """

    model_type: str
    tower: str
    projector: str
    language_model: str
    frozen: tuple[str, ...]
    picture_tokens: str
    counts_pictures: bool = False
    image_marks: tuple[str, ...] = ("<image>",)

    @property
    def lora_targets(self) -> str:
        """Pattern of the module names that LoRA adapts: every linear layer of the language model's blocks."""
        return rf"{self.language_model.replace('.', chr(92) + '.')}.*\.{_BLOCK}"

    def part_of(self, parameter: str) -> str:
        """ "tower", "projector" or "language model": the part that a parameter's name belongs to."""
        if parameter.startswith(self.projector):
            return "projector"  # first: Qwen's lies inside the tower
        return "tower" if parameter.startswith(self.tower) else "language model"


_LLAVA = ("model.vision_tower", "model.multi_modal_projector", "model.language_model")
_QWEN = ("model.visual", "model.visual.merger", "model.language_model")
_QWEN_MARKS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
_EYES = ("tower", "projector")

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("llava", *_LLAVA, frozen=_EYES, picture_tokens="fixed"),
        Family("llava_next", *_LLAVA, frozen=_EYES, picture_tokens="tiles"),
        Family("llava_onevision", *_LLAVA, (), "tiles", counts_pictures=True, image_marks=("<image>", "<video>")),
        Family("qwen2_vl", *_QWEN, frozen=_EYES, picture_tokens="area", image_marks=_QWEN_MARKS),
        Family("qwen2_5_vl", *_QWEN, frozen=(), picture_tokens="area", image_marks=_QWEN_MARKS),
    )
}


@dataclass(frozen=True)
class Model:
    """A model by its short name.

    `hub_id` is None for the small models whose weights ship with the project. `pa_sft_rate` is the learning rate of the
    released PA-SFT scripts, for full fine-tuning with batches of 8.
    """

    name: str
    hub_id: str | None
    family: Family
    pa_sft_rate: float


MODELS: dict[str, Model] = {
    name: Model(name, hub_id, FAMILIES[model_type], rate)
    for name, hub_id, model_type, rate in (
        ("llava-onevision-0.5b", "llava-hf/llava-onevision-qwen2-0.5b-si-hf", "llava_onevision", 2e-5),
        ("llava-onevision-7b", "llava-hf/llava-onevision-qwen2-7b-si-hf", "llava_onevision", 1e-5),
        ("qwen2-vl-2b", "Qwen/Qwen2-VL-2B-Instruct", "qwen2_vl", 2e-5),
        ("qwen2.5-vl-3b", "Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl", 1e-5),
        ("qwen2.5-vl-7b", "Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl", 1e-5),
        ("llava-1.5-7b", "llava-hf/llava-1.5-7b-hf", "llava", 1e-5),
        ("llava-1.6-8b", "llava-hf/llava-v1.6-mistral-7b-hf", "llava_next", 1e-5),
        ("mini", None, "llava", 1e-5),
        ("photo", None, "llava", 1e-5),
    )
}
SHIPPED = tuple(name for name, model in MODELS.items() if model.hub_id is None)


def model_config(folder: Path | str) -> dict[str, Any]:
    """The config.json of a model folder. Raises UserError where there is none, or none that names a type."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no model folder {folder}; name a folder that a training stage wrote (…/model)")
    path, merged = folder / "config.json", folder.parent / "model"
    if (folder / "adapter_config.json").exists():
        known = (merged / "config.json").exists()
        advice = f"name {merged}" if known else "merge it into its base (peft: merge_and_unload)"
        raise UserError(f"{folder} holds a LoRA adapter and no whole model: {advice}")
    if not path.exists():
        raise UserError(f"there is no model in {folder} (config.json is missing): name a folder that holds one")
    try:
        config = json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}): copy or fetch the model folder again") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{path} names no model_type: copy or fetch the model folder again")
    return config


def family_of(folder: Path | str) -> Family:
    """The family of a saved model, by its config.json.

    A model of another class gets an entry with the names that most models of today's transformers use, and a warning.
    """
    model_type = model_config(folder)["model_type"]
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    warnings.warn(
        f"{folder} is a model of type {model_type}, which the course was not tried with: nothing is frozen in PA-SFT, "
        "and LoRA adapts what lies under model.language_model",
        stacklevel=2,
    )
    return Family(model_type, *_LLAVA, frozen=(), picture_tokens="tiles")


def named(name: str) -> Model | None:
    """The model of a short name or hub id; None for anything else."""
    return MODELS.get(name) or next((m for m in MODELS.values() if m.hub_id == name), None)
