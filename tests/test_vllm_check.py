"""The check before vLLM may be used, with stand-ins for vLLM: one that agrees, and some with the faults to be found."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from iadr1_lib.cli.app import app
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import vllm_check
from iadr1_lib.models import load_model
from iadr1_lib.training import launch


def stand_in(fault: str = "") -> ModuleType:
    """A module `vllm` whose engine is transformers, with a fault or none."""

    class LLM:
        def __init__(self, model: str, **options: Any):
            self.model, self.processor = load_model(model)

        def generate(self, requests: list[dict[str, Any]], sampling: Any) -> list[Any]:
            return [self.answer(request, sampling.max_tokens) for request in requests]

        def answer(self, request: dict[str, Any], max_tokens: int) -> Any:
            images = request["multi_modal_data"]["image"]
            if fault == "another picture":
                images = [Image.new("RGB", image.size) for image in images]
            inputs = self.processor(images=[images], text=[request["prompt"]], return_tensors="pt")
            output = self.model.generate(
                **inputs, max_new_tokens=max_tokens, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
            new = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
            scores = torch.stack(output.logits)[:, 0].log_softmax(-1)
            steps = [
                {token: SimpleNamespace(logprob=float(row[token]))} for row, token in zip(scores, new, strict=True)
            ]
            prompt = inputs["input_ids"][0].tolist()
            prompt = prompt[1:] if fault == "a token less" else prompt
            return SimpleNamespace(prompt_token_ids=prompt, outputs=[SimpleNamespace(token_ids=new, logprobs=steps)])

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, lambda **options: SimpleNamespace(**options)  # type: ignore[attr-defined]
    return module


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Install a stand-in with a fault; notes go to a folder of the test."""
    monkeypatch.setenv("IADR1_RUNS", str(tmp_path / "runs"))

    def install(fault: str = "", version: str = "0.31.0") -> None:
        monkeypatch.setitem(sys.modules, "vllm", stand_in(fault))
        monkeypatch.setattr(launch, "find_spec", lambda name: name)
        real = vllm_check.metadata.version
        monkeypatch.setattr(vllm_check.metadata, "version", lambda n: version if n == "vllm" else real(n))

    return install


@pytest.fixture(params=["llava", "llava_onevision", "qwen2_vl"])
def model(request: pytest.FixtureRequest, miniature: Callable[[str], Path]) -> Path:
    return miniature(request.param)


def pictures(count: int) -> list[list[Image.Image]]:
    """Questions with one picture, and one with two."""
    drawn = [
        Image.fromarray(np.random.default_rng(n).integers(0, 255, (30, 40, 3), dtype=np.uint8)) for n in range(count)
    ]
    return [[image] for image in drawn] + [drawn[:2]]


def test_libraries_that_agree_pass(vllm: Callable[..., None], model: Path) -> None:
    vllm()
    parity = vllm_check.compare(model, pictures(2), max_tokens=5)
    assert parity.passed and parity.largest_difference < 1e-4
    vllm_check.record("tiny", parity)
    vllm_check.require_passed("tiny")


@pytest.mark.parametrize("fault", ["another picture", "a token less"])
def test_faults_are_found(vllm: Callable[..., None], model: Path, fault: str) -> None:
    vllm(fault)
    parity = vllm_check.compare(model, pictures(2), max_tokens=5)
    if fault == "another picture":
        assert parity.mean_difference > 1e-4  # small in a random miniature; the tolerance is for trained models
        return
    assert parity.same_prompt_tokens == 0 and not parity.passed
    vllm_check.record("tiny", parity)
    with pytest.raises(UserError, match="disagree on tiny"):
        vllm_check.require_passed("tiny")


def test_a_model_or_version_that_was_not_checked_is_told_with_the_command(
    vllm: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm()
    with pytest.raises(UserError, match="iadr1 check-vllm --model tiny"):
        vllm_check.require_passed("tiny")
    vllm_check.record("tiny", vllm_check.Parity(3, 3, 0.01, 0.1))
    vllm_check.require_passed("tiny")
    vllm(version="0.30.0")
    with pytest.raises(UserError, match="iadr1 check-vllm"):
        vllm_check.require_passed("tiny")


@pytest.mark.skipif(launch.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_command_says_how_to_install_it(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check-vllm", "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert ".[vllm]" in result.output and "Traceback" not in result.output
