"""Whether vLLM and transformers agree on a model, before a training may take its rollouts from vLLM.

vLLM with pictures in TRL has known faults, and a rollout that was drawn from another distribution spoils the gradient
without a word. So both read the same prompts with pictures: the prompts' tokens must be the same, and the
log-probabilities that vLLM gives to what it writes must be those that transformers gives to the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from iadr1_lib.data import to_rgb
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation.protocols import prompt_messages
from iadr1_lib.files import read_json, write_json
from iadr1_lib.models import load_model, require_weights
from iadr1_lib.runs import runs_folder
from iadr1_lib.training import VLLM_LENGTH, require_vllm

# Mean difference of a token's log-probability. bfloat16 kernels of two libraries differ by some hundredths; a wrong
# picture, position or template by far more.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Parity:
    """What the two libraries made of the same prompts.

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
    questions = [[to_rgb(image) for image in shown] for shown in questions]
    written = _ask_vllm(require_weights(model_dir), questions, max_tokens)
    model, processor = load_model(model_dir)
    same, differences = 0, []
    for shown, (prompt_ids, new_ids, theirs) in zip(questions, written, strict=True):
        inputs = _inputs(model, processor, shown)
        same += inputs["input_ids"][0].tolist() == prompt_ids
        ours = _log_probabilities(model, inputs, new_ids)
        differences += [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    mean = sum(differences) / len(differences) if differences else float("inf")
    return Parity(len(questions), same, mean, max(differences, default=float("inf")))


def _prompt(processor: ProcessorMixin, pictures: int) -> str:
    text: str = processor.apply_chat_template(prompt_messages("bare", pictures), add_generation_prompt=True)
    return text


def _inputs(model: PreTrainedModel, processor: ProcessorMixin, shown: Sequence[Image.Image]) -> Any:
    text = _prompt(processor, len(shown))
    return processor(images=[list(shown)], text=[text], return_tensors="pt").to(model.device)


@torch.inference_mode()
def _log_probabilities(model: PreTrainedModel, inputs: Any, new_ids: list[int]) -> list[float]:
    """What transformers gives to each of the tokens after the prompt."""
    new = torch.tensor([new_ids], device=model.device)
    extended = dict(inputs) | {"input_ids": torch.cat([inputs["input_ids"], new], dim=1)}
    extended["attention_mask"] = torch.ones_like(extended["input_ids"])
    if "mm_token_type_ids" in inputs:
        extended["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(new)], dim=1)
    logits = model(**extended).logits[0, -len(new_ids) - 1 : -1].float().log_softmax(-1)
    chosen: list[float] = logits.gather(1, new[0, :, None])[:, 0].tolist()
    return chosen


def _ask_vllm(
    folder: Path, questions: Sequence[Sequence[Image.Image]], max_tokens: int
) -> list[tuple[list[int], list[int], list[float]]]:
    """For each question: the prompt's tokens, what vLLM wrote greedily, and its log-probabilities of that."""
    from vllm import LLM, SamplingParams

    from iadr1_lib.models import load_processor

    processor = load_processor(folder)
    engine = LLM(
        model=str(folder),
        limit_mm_per_prompt={"image": max(map(len, questions))},
        max_model_len=VLLM_LENGTH,
        gpu_memory_utilization=0.45,  # transformers' copy of the model comes after it
        enforce_eager=True,
    )
    asked = [
        {"prompt": _prompt(processor, len(shown)), "multi_modal_data": {"image": list(shown)}} for shown in questions
    ]
    outputs = engine.generate(asked, SamplingParams(temperature=0.0, max_tokens=max_tokens, logprobs=0))
    made = []
    for output in outputs:
        new = list(output.outputs[0].token_ids)
        scores = [step[token].logprob for step, token in zip(output.outputs[0].logprobs, new, strict=True)]
        made.append((list(output.prompt_token_ids), new, scores))
    return made


def record(model: str, parity: Parity) -> Path:
    """Note the outcome for a model (its short name) and the versions it holds for."""
    path = _notes()
    outcome = asdict(parity) | {"passed": parity.passed, "versions": _versions()}
    return write_json(path, read_json(path, {}) | {model: outcome})


def require_passed(model: str) -> None:
    """Raise UserError unless the check was passed with this model and the installed versions."""
    require_vllm()
    found = read_json(_notes(), {}).get(model)
    if found is None or found["versions"] != _versions():
        raise UserError(
            f"vLLM was not checked with {model} and the installed versions: "
            f"iadr1 check-vllm --model {model} --data FOLDER"
        )
    if not found["passed"]:
        raise UserError(
            f"vLLM and transformers disagree on {model} (mean difference of log-probabilities "
            f"{found['mean_difference']:.3f}, the same prompt tokens in {found['same_prompt_tokens']} of "
            f"{found['prompts']}): set engine.vllm to off"
        )


def _notes() -> Path:
    return runs_folder() / "vllm_check.json"


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("vllm", "transformers", "trl", "torch")}
