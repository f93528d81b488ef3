"""Whether vLLM and transformers agree on a model, before SC-GRPO may take its rollouts from vLLM.

vLLM with pictures in TRL has known faults, and a rollout from another distribution spoils the gradient without any
error. So both read the same prompts with pictures: the tokens of the prompts must be the same, and vLLM's
log-probabilities of the tokens that it writes must be those of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from iadr1_lib.data import to_rgb
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation.protocols import prompt_messages
from iadr1_lib.files import read_json, write_json
from iadr1_lib.models import load_model, load_processor, require_weights
from iadr1_lib.runs import runs_folder
from iadr1_lib.training import VLLM_LENGTH, require_vllm

# Mean difference of a token's log-probability. bfloat16 kernels of two libraries differ by some hundredths; a wrong
# picture, position or template by far more.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Parity:
    """How far the two libraries agree.

    Attributes:
        prompts: how many were compared.
        same_prompt_tokens: prompts whose tokens, picture tokens included, are the same.
        mean_difference, largest_difference: of log-probabilities (nats) of the tokens that vLLM wrote.
    """

    prompts: int
    same_prompt_tokens: int
    mean_difference: float
    largest_difference: float

    @property
    def passed(self) -> bool:
        return self.same_prompt_tokens == self.prompts and self.mean_difference <= TOLERANCE


def compare(model_dir: Path | str, questions: Sequence[Sequence[Image.Image]], max_tokens: int = 64) -> Parity:
    """Let both libraries read the bare question with each group of one or two pictures.

    Raises:
        UserError: vLLM is not installed, or the model folder has no weights.
    """
    require_vllm()
    folder = require_weights(model_dir)
    processor = load_processor(folder)
    pictures = [[to_rgb(image) for image in group] for group in questions]
    prompts = [
        processor.apply_chat_template(prompt_messages("bare", len(group)), add_generation_prompt=True)
        for group in pictures
    ]
    outputs = _generate_with_vllm(folder, prompts, pictures, max_tokens)
    model, _ = load_model(folder)  # after vLLM, which reserves its share of the GPU first
    same, differences = 0, []
    for prompt, group, output in zip(prompts, pictures, outputs, strict=True):
        inputs = processor(images=[group], text=[prompt], return_tensors="pt").to(model.device)
        same += inputs["input_ids"][0].tolist() == list(output.prompt_token_ids)
        written = output.outputs[0]
        new_ids = list(written.token_ids)
        theirs = [step[token].logprob for step, token in zip(written.logprobs, new_ids, strict=True)]
        differences += [abs(a - b) for a, b in zip(_log_probabilities(model, inputs, new_ids), theirs, strict=True)]
    mean = sum(differences) / len(differences) if differences else float("inf")
    return Parity(len(pictures), same, mean, max(differences, default=float("inf")))


def _generate_with_vllm(
    folder: Path, prompts: Sequence[str], pictures: Sequence[Sequence[Image.Image]], max_tokens: int
) -> list[Any]:
    """What vLLM writes greedily, with the log-probability of each token."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=str(folder),
        limit_mm_per_prompt={"image": max(map(len, pictures))},
        max_model_len=VLLM_LENGTH,
        gpu_memory_utilization=0.45,  # transformers' copy of the model comes after it
        enforce_eager=True,
    )
    requests = [
        {"prompt": prompt, "multi_modal_data": {"image": list(group)}}
        for prompt, group in zip(prompts, pictures, strict=True)
    ]
    outputs: list[Any] = engine.generate(requests, SamplingParams(temperature=0.0, max_tokens=max_tokens, logprobs=0))
    return outputs


@torch.inference_mode()
def _log_probabilities(model: PreTrainedModel, inputs: Any, new_ids: list[int]) -> list[float]:
    """Transformers' log-probability of each of the tokens after the prompt."""
    new = torch.tensor([new_ids], device=model.device)
    extended = dict(inputs) | {"input_ids": torch.cat([inputs["input_ids"], new], dim=1)}
    extended["attention_mask"] = torch.ones_like(extended["input_ids"])
    if "mm_token_type_ids" in inputs:
        extended["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(new)], dim=1)
    logits = model(**extended).logits[0, -len(new_ids) - 1 : -1].float().log_softmax(-1)
    chosen: list[float] = logits.gather(1, new[0, :, None])[:, 0].tolist()
    return chosen


def record(model: str, parity: Parity) -> Path:
    """Note the outcome for a model (its short name) and the versions it holds for."""
    outcome = asdict(parity) | {"passed": parity.passed, "versions": _versions()}
    return write_json(_notes(), read_json(_notes(), {}) | {model: outcome})


def require_passed(model: str) -> None:
    """Raise UserError unless the model passed the check with the installed versions."""
    require_vllm()
    outcome = read_json(_notes(), {}).get(model)
    if outcome is None or outcome["versions"] != _versions():
        raise UserError(
            f"vLLM was not checked with {model} and the installed versions: "
            f"iadr1 check-vllm --model {model} --data FOLDER"
        )
    if not outcome["passed"]:
        raise UserError(
            f"vLLM and transformers disagree on {model} (mean difference of log-probabilities "
            f"{outcome['mean_difference']:.3f}, the same prompt tokens in {outcome['same_prompt_tokens']} of "
            f"{outcome['prompts']}): set engine.vllm to off"
        )


def _notes() -> Path:
    return runs_folder() / "vllm_check.json"


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("vllm", "transformers", "trl", "torch")}
