"""The models of all sections: random ones of a real shape, made on the device, or folders of the user."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from benchmarks.throughput.replay import model_of
from benchmarks.throughput.sizes import Size


NOISE = 0.02  # by which a teacher of the student's own weights differs from it


@dataclass(frozen=True)
class Models:
    """
    A student and its teacher, and the window that they see.

    Args:
        size ([`Size`]): Shape and window. Prompts are words of a tokenizer that has one word for each token.
        device (`str`): `"cuda"` or `"cpu"`.
        folder (`str`, *optional*): A model to use in place of random weights.
        teacher_folder (`str`, *optional*): Its teacher; by default the same weights, with noise.
    """

    size: Size
    device: str
    folder: str | None = None
    teacher_folder: str | None = None

    @classmethod
    def of(cls, size: Size, device: str, folder: str | None, teacher_folder: str | None) -> "Models":
        """The models that were asked for; the vocabulary is that of the folder, if there is one."""
        if folder:
            config = AutoConfig.from_pretrained(folder).get_text_config()
            size = replace(size, vocabulary=config.vocab_size, hidden=config.hidden_size)
        return cls(size, device, folder, teacher_folder)

    def student(self, dtype: torch.dtype = torch.float32, **settings: Any) -> PreTrainedModel:
        """The student on the device."""
        if self.folder:
            return self._loaded(self.folder, dtype, settings)
        return self._random(0, dtype, settings)

    def teacher(self, dtype: torch.dtype = torch.float32, **settings: Any) -> PreTrainedModel:
        """The teacher on the device."""
        if self.teacher_folder:
            return self._loaded(self.teacher_folder, dtype, settings)
        if not self.folder:
            return self._random(1, dtype, settings)
        model = self._loaded(self.folder, dtype, settings)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + NOISE * torch.randn_like(parameter))
        return model

    def config(self, name: str, dtype: torch.dtype) -> PretrainedConfig:
        """The configuration of `"student"` or `"teacher"`, without a weight; `dtype` is that in which it is loaded."""
        folder = self.teacher_folder if name == "teacher" and self.teacher_folder else self.folder
        if folder:
            config = AutoConfig.from_pretrained(folder)
        else:
            with torch.device("meta"):
                model = model_of(self.size, seed=0)
            config, config.architectures = model.config, [type(model).__name__]
        config.dtype = dtype
        return config

    def _loaded(self, folder: str, dtype: torch.dtype, settings: dict[str, Any]) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **settings).to(self.device)

    def _random(self, seed: int, dtype: torch.dtype, settings: dict[str, Any]) -> PreTrainedModel:
        """All weights are bfloat16 numbers, so that both precisions begin with the same ones."""
        with torch.device(self.device):
            model = model_of(self.size, seed)
        model.to(torch.bfloat16).to(dtype)
        if "attn_implementation" in settings:
            model.set_attn_implementation(settings["attn_implementation"])
        return model
