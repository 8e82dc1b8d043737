"""What the memory of a process grows by in every phase of two steps of a setting; with ZeRO-3 that of each rank."""

import ctypes
import gc
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.throughput.memory import CLEAR, resident

from .settings import SETTINGS, Setting


class Phases:
    """The high-water mark of this process in every phase, above what it had after its imports."""

    def __init__(self) -> None:
        self.imported = resident("VmRSS")
        self.peaks: dict[str, int] = {}

    def note(self, phase: str) -> None:
        """The time since the last call was of this phase."""
        self.peaks[phase] = max(self.peaks.get(phase, 0), resident("VmHWM") - self.imported)
        CLEAR.write_text("5")  # the high-water mark becomes what is resident now

    @contextmanager
    def of(self, phase: str, before: str):
        """What runs inside is of this phase; what ran until now was of another."""
        self.note(before)
        yield
        self.note(phase)

    def watch(self, owner: Any, name: str, phase: str) -> None:
        """Every call of this function of `owner` is of a phase; what ran before it was of the update."""
        function = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.of(phase, "update"):
                return function(*args, **kwargs)

        setattr(owner, name, watched)


def tokenizer_of(vocabulary: int) -> Any:
    """A tokenizer of so many words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, vocabulary)}}
    core = Tokenizer(models.WordLevel(words, "<pad>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


def make_models(setting: Setting, folder: Path) -> None:
    """Both models, with their tokenizers, as the trainer loads them."""
    import torch
    from transformers import Qwen3ForCausalLM

    for seed, (name, model) in enumerate((("student", setting.student), ("teacher", setting.teacher))):
        if not (folder / name / "model.safetensors").is_file():
            torch.manual_seed(seed)
            Qwen3ForCausalLM(model.config()).save_pretrained(folder / name)
            tokenizer_of(model.vocabulary).save_pretrained(folder / name)


def trainer_of(setting: Setting, folder: Path) -> Any:
    """The trainer, with completions that are given unless it samples."""
    from datasets import Dataset

    from fire_opd_trl import FiReOPDTrainer

    lengths = setting.lengths

    def rollout(prompts, trainer):
        completions = [[2 + (row * 7 + place) % 200 for place in range(lengths[row])] for row in range(len(prompts))]
        ids = [[2 + place % 200 for place in range(setting.prompt)] for _ in prompts]
        return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None}

    text = " ".join(f"w{2 + place % 200}" for place in range(setting.prompt))
    extra: dict[str, Any] = {} if setting.generate else {"rollout_func": rollout}
    return FiReOPDTrainer(
        model=str(folder / "student"),
        args=setting.args(str(folder / "output"), str(folder / "teacher")),
        train_dataset=Dataset.from_list([{"prompt": text}] * 4 * len(lengths) * (2 if setting.zero3 else 1)),
        peft_config=setting.peft_config(),
        **extra,
    )


def import_all(setting: Setting) -> None:
    """What a training imports, before anything is measured."""
    import datasets  # noqa: F401
    import torch._dynamo  # noqa: F401
    import torch.distributed.tensor  # noqa: F401
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401
    import transformers.models.qwen3_moe.modeling_qwen3_moe  # noqa: F401

    import fire_opd_trl.trainer.trainer  # noqa: F401

    if setting.zero3:
        import deepspeed  # noqa: F401
    if setting.lora:
        import peft  # noqa: F401


def measure(setting: Setting, folder: Path) -> dict[str, Any]:
    """Train two steps of a setting, whose models lie in `folder`; returns what was seen on this rank."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    phases = Phases()
    trainer = trainer_of(setting, folder)
    phases.note("loading")
    phases.watch(trainer, "_generate", "rollout")
    for teacher in trainer.window_scorer.teachers.values():
        phases.watch(teacher, "token_scores", "teacher scoring")
    phases.watch(trainer.window_scorer.student, "token_scores", "student scoring")
    CLEAR.write_text("5")
    trainer.train()
    phases.note("update")
    return {"rank": trainer.accelerator.process_index, "imported": phases.imported, "peaks": phases.peaks}


def main(names: list[str], folder: Path) -> None:
    """Measure settings one after the other, and write what was seen."""
    for name in names:
        import_all(SETTINGS[name])
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(2)
    for name in names:
        if not SETTINGS[name].zero3:
            make_models(SETTINGS[name], folder / name)
        seen = {**measure(SETTINGS[name], folder / name), "first": name == names[0]}
        (folder / name / f"seen.{seen['rank']}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    if sys.argv[2] == "--models":
        make_models(SETTINGS[sys.argv[3]], Path(sys.argv[1]) / sys.argv[3])
    else:
        main(sys.argv[2:], Path(sys.argv[1]))
