"""
Resident memory and scoring time of teachers of about 380 MB, wherever they are placed.

    python placement_worker.py make FOLDER                  # once: the teacher and two adapters, random weights
    python placement_worker.py CASE... FOLDER               # replicated, offload, apart, shared, copy, self
    accelerate launch --config_file zero3_cpu.yaml placement_worker.py CASE FOLDER      # replicated, sharded, offload

Prints one JSON line for each case and rank: by how many MB the process grew at most, from just before the teachers are
loaded, while they are loaded (`load_mb`), and while two windows are scored and trained on (`peak_mb`); and seconds of
teacher scoring for the second window. Of several cases each has a process of its own, which is forked when all is
imported.

ZeRO-3 keeps up to 10^9 gathered parameters (stage3_max_live_parameters), ten times this teacher, which would then be
whole on every rank: the teachers get a DeepSpeed configuration of their own, which keeps about a layer.
"""

import ctypes
import json
import os
import sys
import tempfile
from pathlib import Path

import torch


CASES = {  # teachers, placement
    "tiny": ("tiny", "auto"),  # the embedded teacher: what training itself takes
    "replicated": ("big", "replicated"),
    "sharded": ("big", "sharded"),
    "offload": ("big", "offload"),
    "apart": ({"a": "merged1", "b": "merged2"}, "replicated"),
    "shared": ({"a": "adapter1", "b": "adapter2"}, "replicated"),
    "copy": ("big", "replicated"),  # a LoRA student on the very model, and a second copy of it as its teacher
    "self": ("self", "auto"),
}
ROWS = 32
KEEPS_A_LAYER = {
    "zero_optimization": {
        "stage": 3,
        "stage3_max_live_parameters": 1_000_000,
        "stage3_max_reuse_distance": 1_000_000,
        "stage3_prefetch_bucket_size": 1_000_000,
    }
}


def make(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from fire_opd_trl.demo.run import model_path

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model_path("student"))
    config = Qwen3Config(
        vocab_size=16, hidden_size=512, intermediate_size=2048, num_hidden_layers=24, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, max_position_embeddings=128, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder / "big")
    tokenizer.save_pretrained(folder / "big")
    for number in (1, 2):
        base = Qwen3ForCausalLM.from_pretrained(folder / "big")
        lora = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)
        lora.base_model_name_or_path = str(folder / "big")
        model = get_peft_model(base, lora)
        model.save_pretrained(folder / f"adapter{number}")
        model.merge_and_unload().save_pretrained(folder / f"merged{number}")
        tokenizer.save_pretrained(folder / f"merged{number}")


def memory(name: str) -> float:
    """A line of /proc/self/status in MB: `VmRSS` now, `VmHWM` at most since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024


def start_anew() -> None:
    """Forget the peak so far."""
    Path("/proc/self/clear_refs").write_text("5")


def give_back_what_is_freed() -> None:
    """Let glibc return freed blocks of 64 kB and more to the system, so that a peak is what was in use together."""
    assert ctypes.CDLL(None).mallopt(-3, 65536) == 1  # M_MMAP_THRESHOLD; setting it also ends its adaptation


def measured(case: str, folder: Path) -> dict:
    """What a process takes for a case; `folder` has the teachers. Works of the tests call it on two ranks too."""
    give_back_what_is_freed()
    from datasets import Dataset
    from peft import LoraConfig

    import fire_opd_trl.trainer.trainer as trainer_module
    from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
    from fire_opd_trl.demo.run import model_path
    from support.worker import frozen_rows

    teachers, placement = CASES[case]
    if isinstance(teachers, dict):
        teachers = {name: str(folder / path) for name, path in teachers.items()}
    elif teachers != "self":
        teachers = model_path("teacher") if teachers == "tiny" else str(folder / teachers)
    under_zero3 = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    before, placed = {}, trainer_module.load_teachers

    def noted(*args):
        start_anew()
        before["mb"] = memory("VmRSS")
        teachers = placed(*args)
        before["loaded"] = memory("VmHWM")
        start_anew()
        return teachers

    trainer_module.load_teachers = noted
    frozen = frozen_rows(ROWS)
    rows = [{"prompt": text, "teacher_id": "ab"[row % 2]} for row, text in enumerate(frozen)]
    on_big = case in ("copy", "self")
    trainer = FiReOPDTrainer(
        model=str(folder / "big") if on_big else model_path("student"),
        teacher_model=teachers,
        args=FiReOPDConfig(
            tempfile.mkdtemp(),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            max_completion_length=33,
            scoring_token_budget=600,
            max_steps=2,
            logging_steps=1,
            teacher_placement=placement,
            teacher_deepspeed=KEEPS_A_LAYER if under_zero3 and placement != "replicated" else None,
            preflight=False,
            allow_guessing_teacher=True,  # random weights
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        rollout_func=lambda prompts, trainer: {
            "prompt_ids": [frozen[text]["prompt_ids"] for text in prompts],
            "completion_ids": [frozen[text]["completion_ids"] for text in prompts],
            "logprobs": None,
        },
        peft_config=LoraConfig(r=4, target_modules=["q_proj"]) if on_big else None,
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    seconds = sum(value for name, value in logs[-1].items() if name in [f"time/score_{t}" for t in trainer.teachers])
    return {
        "case": case,
        "ranks": trainer.accelerator.num_processes,
        "load_mb": round(before["loaded"] - before["mb"]),
        "peak_mb": round(memory("VmHWM") - before["mb"]),
        "seconds": round(seconds, 2),
        "loss": logs[0]["loss"],
    }


def write(case: str, folder: str, output: str) -> None:
    """The work of one of two ranks: what `measured` returns, in a file of this rank."""
    Path(f"{output}-{os.environ['RANK']}.json").write_text(json.dumps(measured(case, Path(folder))))


def main() -> None:
    *cases, folder = sys.argv[1:]
    if cases == ["make"]:
        return make(Path(folder))
    torch.set_num_threads(1)
    if len(cases) == 1:  # perhaps one of several ranks, which share the terminal: one write
        return print(json.dumps(measured(cases[0], Path(folder))) + "\n", end="", flush=True)
    from support.forks import print_in_forks

    print_in_forks(measured, [(case, Path(folder)) for case in cases])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
