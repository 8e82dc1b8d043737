"""One setting in a process of its own, or in one on each rank: what its memory grew by in every phase of two steps."""

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
    extra = {} if setting.generate else {"rollout_func": rollout}
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


def main(name: str, folder: Path, output: Path) -> None:
    """Measure a setting, and write what was seen."""
    setting = SETTINGS[name]
    import_all(setting)
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(2)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    phases = Phases()
    trainer = trainer_of(setting, folder)
    phases.note("loading")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    loaded, of_files = resident("VmRSS") - phases.imported, resident("RssFile")
    phases.watch(trainer, "_generate", "rollout")
    for teacher in trainer.window_scorer.teachers.values():
        phases.watch(teacher, "token_scores", "teacher scoring")
    phases.watch(trainer.window_scorer.student, "token_scores", "student scoring")
    CLEAR.write_text("5")
    trainer.train()
    phases.note("update")
    rank = trainer.accelerator.process_index
    seen = {"imported": phases.imported, "loaded": loaded, "files": of_files, "peaks": phases.peaks}
    output.with_suffix(f".{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    if sys.argv[1] == "--models":
        make_models(SETTINGS[sys.argv[2]], Path(sys.argv[3]))
    else:
        main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
