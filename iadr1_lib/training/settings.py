"""Settings of the two stages, one class per section of a profile: TRL's own names, passed on as they are.

The documentation of SFTConfig and GRPOConfig (https://huggingface.co/docs/trl) explains them; the profiles say where
each value comes from. `OURS` are the keys that TRL does not have.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from iadr1_lib.errors import UserError

RELEASED = "released"
AUTO = "auto"
SHARING = ("per_device_train_batch_size", "gradient_accumulation_steps", "per_device_step_size")  # of a step
OURS = (
    "per_device_step_size",
    "max_pixels",
    "keep",
    "frozen",
    "frozen_share",
    "rewards",
    "reward_parts",
    "taught_sentences",
)
_STRICT = ConfigDict(extra="forbid")  # `replace` with a name that is not there is an error, too


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class StageSettings:
    """What both stages set.

    A step takes `per_device_train_batch_size * gradient_accumulation_steps` samples in each process. With the same
    product a smaller batch only saves memory, so that it may be left to `plan.choose`: with "auto" a profile sets
    `per_device_step_size`, the samples of a step in each process, in place of `gradient_accumulation_steps`. In SC-GRPO
    a sample is one completion.

    Attributes:
        per_device_train_batch_size: samples of one forward and backward pass; "auto": the fastest that memory allows.
        per_device_step_size: only with "auto", see above. Not TRL's.
        save_steps: there is a checkpoint, and a check on the dev pictures, every so many steps.
        max_pixels: larger pictures are scaled down to this area; None leaves them. Not TRL's.
        report_to: where the trainer reports to, beside log.csv: none, tensorboard, wandb.
        keep: the model that the stage leaves behind: the last, or the best of its dev checks. Not TRL's.
    """

    per_device_train_batch_size: int | Literal["auto"]
    gradient_accumulation_steps: int | None = None
    per_device_step_size: int | None = None
    warmup_steps: int
    weight_decay: float
    lr_scheduler_type: str
    max_grad_norm: float
    save_steps: int
    bf16: bool
    max_pixels: int | None
    keep: Literal["best", "last"] = "best"
    report_to: str = "none"

    @model_validator(mode="after")
    def _check_the_step(self) -> Self:
        if self.per_device_train_batch_size == AUTO:
            wanted, other = "per_device_step_size", "gradient_accumulation_steps"
        else:
            wanted, other = "gradient_accumulation_steps", "per_device_step_size"
        if not getattr(self, wanted) or getattr(self, other) is not None:
            size = self.per_device_train_batch_size
            raise ValueError(f"per_device_train_batch_size {size} goes with {wanted}, at least 1, and without {other}")
        return self

    def for_trl(self) -> dict[str, Any]:
        """Arguments of SFTConfig or GRPOConfig."""
        return {key: value for key, value in asdict(self).items() if key not in OURS}

    @property
    def share(self) -> int:
        """Samples of one optimiser step in each process."""
        if isinstance(self.per_device_train_batch_size, int):
            return self.per_device_train_batch_size * (self.gradient_accumulation_steps or 1)
        return self.per_device_step_size or 1

    def step_size(self, processes: int) -> int:
        """Samples of one optimiser step, over all processes."""
        return self.share * processes

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
        step = replace(
            self, per_device_train_batch_size="auto", gradient_accumulation_steps=None, per_device_step_size=share
        )
        most = self.per_device_train_batch_size
        return step.in_passes(most) if isinstance(most, int) else step

    def in_passes(self, most: int) -> Self:
        """The same step in passes of as many samples as divide it, `most` at most."""
        batch = next(size for size in range(min(self.share, most), 0, -1) if self.share % size == 0)
        return replace(
            self,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=self.share // batch,
            per_device_step_size=None,
        )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PaSftSettings(StageSettings):
    """Settings of PA-SFT, for TRL's SFTConfig.

    Attributes:
        learning_rate: "released" is the released rate of the model (1e-5 for one that the paper does not have).
        frozen: parts ("tower", "projector", "language model") that are not trained; "released": those of the model's
            family. Not TRL's.
        frozen_share: share of the steps for which they are not trained, from the first one; 1: all. Not TRL's.
    """

    learning_rate: float | Literal["released"]
    num_train_epochs: float
    frozen: tuple[str, ...] | Literal["released"]
    frozen_share: float = Field(default=1.0, ge=0, le=1)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ScGrpoSettings(StageSettings):
    """Settings of SC-GRPO, for TRL's GRPOConfig.

    Attributes:
        max_steps: optimiser steps; -1 asks every question once.
        rewards: the mode of the rewards. Not TRL's.
        reward_parts: names of the rewards that are paid; empty: all of the mode's. Not TRL's.
        taught_sentences: with rewards `grounded`: the reasoning must be the rule teacher's short style, word for word.
            Not TRL's.
        frozen: parts ("tower", "projector", "language model") that are not trained. Not TRL's.
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
    taught_sentences: bool = False
    frozen: tuple[str, ...] = ()
