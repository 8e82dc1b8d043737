"""What loading and placing a frozen model must know of the run that it is part of."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from ..config import FiReOPDConfig
from ..pipeline import Method
from ..scoring.heads import base_of


@dataclass(frozen=True)
class RunSetup:
    """
    The run, for whatever is loaded beside the student. The trainer makes one when it has set up the student.

    Args:
        accelerator (`Accelerator`): Where the run takes place.
        args ([`FiReOPDConfig`]): The configuration.
        method ([`Method`]): The recipe, which says whether entropies and whole distributions are read.
        temperature (`float`): By which logits are divided.
        student_rows (`int`): Token rows of the student. A model that is padded to more loses them, so that rows which
            stand for no token take no probability.
    """

    accelerator: Accelerator
    args: FiReOPDConfig
    method: Method
    temperature: float
    student_rows: int

    @property
    def teacher_entropies(self) -> bool:
        """Whether teachers compute entropies: for a method that reads them, or for trajectories that are recorded."""
        return "teacher_entropy_BT" in self.method.signals or self.args.log_rollouts > 0

    @property
    def deepspeed(self) -> bool:
        """Whether DeepSpeed trains the student."""
        return getattr(self.accelerator.state, "deepspeed_plugin", None) is not None

    @property
    def fsdp(self) -> bool:
        """Whether FSDP trains the student."""
        return getattr(self.accelerator.state, "fsdp_plugin", None) is not None

    def base_of(self, model: torch.nn.Module) -> PreTrainedModel:
        """A model itself, inside all wrappers."""
        return base_of(self.accelerator.unwrap_model(model))
