"""What others have measured on GPUs, or estimate, beside what is planned for the same run."""

from dataclasses import dataclass, replace
from typing import Any

from fire_opd_trl.preflight.plan.memory import memory, peak
from fire_opd_trl.preflight.plan.run import PlannedRun
from fire_opd_trl.preflight.plan.shapes import ModelShape, config_for, shape_of


GIB = 2**30
GIST = "https://gist.github.com/chenyaofo/d4cd6a20ab4b95cb3a49491747e2139a"
LONGLORA = "https://arxiv.org/abs/2309.12307"
ESTIMATE = "https://deepspeed.readthedocs.io/en/latest/memory.html"
# Logits in 16 bits, in float32, and their gradient: what trainers without a fused head hold of every token.
LOGIT_BYTES = 2 + 4 + 4


@dataclass(frozen=True)
class Published:
    """
    A figure of others.

    Args:
        what (`str`): The run.
        source (`str`): Its address.
        reported (`float`): GiB, or GB where the source says no more.
        run ([`PlannedRun`]): The same run, as `plan` sees it: without a teacher.
        logits (`int`): Tokens whose logits it holds in full.
        states (`bool`): Whether it counts weights, gradients and optimizer alone.
    """

    what: str
    source: str
    reported: float
    run: PlannedRun
    logits: int = 0
    states: bool = False

    @property
    def planned(self) -> float:
        """What is planned for it, in GiB."""
        parts = memory(self.run)["update"]
        if self.states:
            names = ("student's weights", "master weights", "optimizer", "gradients")
            return sum(parts.get(name, 0.0) for name in names) / GIB
        return (peak(parts) + LOGIT_BYTES * self.logits * self.run.student.vocabulary) / GIB


def llama_7b() -> ModelShape:
    """LLaMA-7B, and Llama 2 7B, which have the same shape."""
    config = config_for("meta-llama/Llama-3.1-8B")
    config.update({"intermediate_size": 11008, "vocab_size": 32000, "num_key_value_heads": 32})
    return shape_of(config, "LLaMA-7B")


def figures() -> list[Published]:
    """Returns all that we have found with model, length, batch and sharding."""
    ranks: dict[str, Any] = {"gpus": 8, "student_bits": 16, "autocast": False, "prompt_longest": 0, "prompt_mean": 0}
    buckets: dict[str, Any] = {"reduce_bucket": 500_000_000, "prefetch_bucket": 50_000_000, "max_live": 1_000_000_000}
    llama = PlannedRun(llama_7b(), completion_longest=4096, completion_mean=4096, **ranks, **buckets)
    found = []
    for sharding, again, offload, rows, reported in (
        ("zero2", False, False, 1, 44.8),
        ("zero2", True, False, 1, 23.5),
        ("zero2", True, True, 1, 16.9),
        ("zero2", True, False, 4, 38.6),
        ("zero3", False, False, 2, 75.7),
        ("zero3", True, False, 2, 20.4),
        ("zero3", True, True, 2, 9.4),
        ("zero3", True, False, 8, 39.1),
    ):
        micro_batches = 8 // rows
        run = replace(
            llama,
            sharding=sharding,
            gradient_checkpointing=again,
            offload_optimizer=offload,
            rows=rows,
            accumulation=micro_batches,
            steps_per_generation=micro_batches,
        )
        what = f"LLaMA-7B, 8 x A800, ZeRO-{sharding[-1]}, {rows} x 4096 tokens"
        what += (", checkpointing" if again else "") + (", optimizer on the host" if offload else "")
        found.append(Published(what, GIST, reported, run, rows * 4096))
    # r = 8 on queries, keys, values and outputs: 4 matrices of 4096 x 4096 in 32 layers, 2 x 8 x 4096 numbers each
    lora = replace(llama, sharding="zero2", adapter=32 * 4 * 2 * 8 * 4096)
    run = replace(lora, completion_longest=8192, completion_mean=8192, accumulation=8, steps_per_generation=8)
    what = "Llama 2 7B, LoRA, 8 x A100, ZeRO-2, 1 x 8192 tokens, checkpointing"
    found.append(Published(what, LONGLORA, 25.7, run, 8192))
    for name, gpus, reported in DEEPSPEED:
        shape = shape_of(config_for(name), name)
        run = PlannedRun(shape, sharding="zero3", **{**ranks, "gpus": gpus}, completion_longest=1)
        what = f"{name}, ZeRO-3 on {gpus} GPUs, weights, gradients and optimizer alone (an estimate)"
        found.append(Published(what, ESTIMATE, reported, run, states=True))
    return found


# What `estimate_zero3_model_states_mem_needs` of DeepSpeed 0.19.8 returns without offloading, in GiB: 18 bytes for
# each parameter, divided by the ranks, and 4 for each of the largest module, which here is the embedding.
DEEPSPEED = (("Qwen/Qwen3-4B", 8, 9.88), ("meta-llama/Llama-3.1-70B", 64, 22.39))


def published() -> str:
    """Returns the table for the page."""
    lines = ["| run | theirs | planned, GiB | ratio | source |", "| --- | --- | --- | --- | --- |"]
    for row in figures():
        ratio, source = f"{row.planned / row.reported:.2f}", f"[{link(row.source)}]({row.source})"
        lines.append(f"| {row.what} | {row.reported:g} | {row.planned:.1f} | {ratio} | {source} |")
    return "\n".join(lines)


def link(address: str) -> str:
    """Returns the site of an address."""
    return address.split("/")[2]
