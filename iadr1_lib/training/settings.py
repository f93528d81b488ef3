"""Settings of the two stages, one class per section of a profile: TRL's own names, passed on as they are.

The documentation of SFTConfig and GRPOConfig (https://huggingface.co/docs/trl) explains them; the profiles say where
each value comes from. `OURS` are the keys that TRL does not have.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Literal, Self

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from iadr1_lib.errors import UserError

RELEASED = "released"
OURS = ("max_pixels", "keep", "frozen", "rewards", "reward_parts")
_STRICT = ConfigDict(extra="forbid")  # `replace` with a name that is not there is an error, too


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class StageSettings:
    """What both stages set.

    A step takes `per_device_train_batch_size * gradient_accumulation_steps` samples in each process. With the same
    product a smaller batch only saves memory. In SC-GRPO a sample is one completion.

    Attributes:
        save_steps: there is a checkpoint, and a check on the dev pictures, every so many steps.
        max_pixels: larger pictures are scaled down to this area; None leaves them. Not TRL's.
        keep: the model that the stage leaves behind: the last, or the best of its dev checks. Not TRL's.
    """

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    warmup_steps: int
    weight_decay: float
    lr_scheduler_type: str
    max_grad_norm: float
    save_steps: int
    bf16: bool
    max_pixels: int | None
    keep: Literal["best", "last"] = "best"

    def for_trl(self) -> dict[str, Any]:
        """Arguments of SFTConfig or GRPOConfig."""
        return {key: value for key, value in asdict(self).items() if key not in OURS}

    def step_size(self, processes: int) -> int:
        """Samples of one optimiser step, over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * processes

    def in_processes(self, processes: int, planned: int) -> Self:
        """The same step, as `planned` processes would take it, shared by another number of processes.

        Raises:
            UserError: the step cannot be shared equally.
        """
        if processes == planned:
            return self
        share, rest = divmod(self.step_size(planned), processes)
        if rest or not share:
            raise UserError(
                f"a step of {self.step_size(planned)} samples cannot be shared by {processes} processes: "
                "choose a number of processes that divides it"
            )
        largest = min(share, self.per_device_train_batch_size)
        batch = next(size for size in range(largest, 0, -1) if share % size == 0)
        return replace(self, per_device_train_batch_size=batch, gradient_accumulation_steps=share // batch)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PaSftSettings(StageSettings):
    """Settings of PA-SFT, for TRL's SFTConfig.

    Attributes:
        learning_rate: "released" is the released rate of the model (1e-5 for one that the paper does not have).
        frozen: parts ("tower", "projector", "language model") that are not trained; "released": those of the model's
            family. Not TRL's.
    """

    learning_rate: float | Literal["released"]
    num_train_epochs: float
    frozen: tuple[str, ...] | Literal["released"]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ScGrpoSettings(StageSettings):
    """Settings of SC-GRPO, for TRL's GRPOConfig.

    Attributes:
        max_steps: optimiser steps; -1 asks every question once.
        rewards: the mode of the rewards. Not TRL's.
        reward_parts: names of the rewards that are paid; empty: all of the mode's. Not TRL's.
    """

    learning_rate: float
    max_steps: int
    num_generations: int
    num_iterations: int
    max_completion_length: int
    beta: float
    temperature: float
    top_p: float
    top_k: int
    loss_type: str
    scale_rewards: str
    rewards: str
    reward_parts: tuple[str, ...] = ()
