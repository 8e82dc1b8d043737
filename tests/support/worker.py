"""
Trains the demo student on frozen completions, in whatever world it is launched, and writes what came out.

    python worker.py '{"batch": 8, "accumulation": 4, "method": "fire"}' OUT.pt

A test compares what two layouts of the same work wrote. Not a test itself.
"""

import importlib.resources
import json
import os
import random
import sys
from pathlib import Path

import torch


PAD, EOS = 0, 1


def frozen_rows(rows: int, holes: bool | str = True) -> dict[str, dict]:
    """
    One completion for each prompt, ragged (3 to 33 tokens). The second half of the rows, which on two ranks is the
    second rank, is mostly bad: five are empty, six are noise that the teacher finds unlikely.
    """
    from fire_opd_trl.demo.task import build_tokenizer, problems, prompt, working

    tokenizer, draw = build_tokenizer(), random.Random(7)
    frozen = {}
    for row, (a, b) in enumerate(problems("train", rows, seed=3)):
        ids = tokenizer(working(a, b))["input_ids"]
        ids = [i for i in ids if i not in tokenizer.all_special_ids][: draw.randint(3, 32)]
        for position in range(len(ids)):  # slips, so that teacher and student have something to disagree about
            if draw.random() < 0.15:
                ids[position] = tokenizer(draw.choice("0123456789"))["input_ids"][0]
        late = row - rows // 2
        if holes == "second half" and late >= 0 or holes == "all":
            ids = []
        elif holes and 0 <= late < rows // 6:
            ids = []
        elif rows // 6 <= late < rows // 6 + rows // 5:
            ids = [tokenizer(draw.choice("0123456789"))["input_ids"][0] for _ in range(draw.randint(4, 30))]
        elif draw.random() < 0.5:
            ids.append(tokenizer.eos_token_id)
        prompt_ids = tokenizer(prompt(a, b))["input_ids"]
        frozen[prompt(a, b)] = {"prompt_ids": prompt_ids, "completion_ids": ids}
    return frozen


def odd_sum(completion_ids, **kwargs) -> list[float]:
    """A reward that depends on the completion alone, and differs inside most prompts."""
    return [float(sum(ids) % 2) for ids in completion_ids]


def fsdp2_on_cpu() -> None:
    """
    accelerate turns FSDP off where there is no GPU, but FSDP2 runs on gloo. Switch it on again, for tests, with the
    mixed precision that accelerate gives it on GPUs (AcceleratorState.__init__).
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    original = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


def streamed(rows: list[dict], lengths: list[int]):
    """A stream of several files of these lengths. In each the second row is more, and too long for the teacher."""
    from datasets import IterableDataset

    ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    files = [rows[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    files = [[file[0], {**file[0], "teacher_prompt": "1" * 128}, *file[1:]] for file in files]
    return IterableDataset.from_generator(
        lambda files: (row for file in files for row in file), gen_kwargs={"files": files}
    )


def built(case: dict, output_dir: str, **kwargs):
    """The trainer of a case. Everything in `case` is plain JSON; `kwargs` go to the trainer."""
    from datasets import Dataset

    from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer

    if "images" in case:
        from support.vision import vision_trainer

        settings = {"per_device_train_batch_size": case["batch"], "gradient_accumulation_steps": case["accumulation"]}
        return vision_trainer(output_dir, case["images"], **settings, **case.get("config", {}))
    models = importlib.resources.files("fire_opd_trl.demo") / "models"
    frozen = frozen_rows(case.get("rows", 32), case.get("holes", True))

    generations = case.get("generations", 1)
    texts = list(frozen)

    def rollout(prompts, trainer):
        # The n-th completion of a prompt is that of the n-th row from its own on: groups differ inside.
        seen = {text: 0 for text in prompts}
        rows = []
        for text in prompts:
            rows.append(frozen[texts[texts.index(text) + seen[text]]])
            seen[text] += 1
        return {
            "prompt_ids": [frozen[text]["prompt_ids"] for text in prompts],
            "completion_ids": [row["completion_ids"] for row in rows],
            "logprobs": None,
        }

    def teacher_of(row: int) -> str:  # "halves": on two ranks each has no row of one of the teachers
        return "ab"[row >= len(texts) / generations / 2] if case.get("routing") == "halves" else "ab"[row % 2]

    rows = [{"prompt": text, "teacher_id": teacher_of(row)} for row, text in enumerate(texts[::generations])]
    if case.get("hint"):  # a prompt for the teacher alone, of another length in each row
        rows = [{**row, "teacher_prompt": f"{number}={row['prompt']}"} for number, row in enumerate(rows)]
    teacher = case.get("teacher") or str(models / case.get("demo_teacher", "teacher"))
    if case.get("two_teachers"):  # of different widths: the second is the student itself
        teacher = {"a": teacher, "b": str(models / "student")}
    peft_config = None
    if case.get("lora"):
        from peft import LoraConfig

        # "stirred": an adapter that already says something else than its base
        targets, start = ["q_proj", "v_proj", "down_proj"], case["lora"] != "stirred"
        peft_config = LoraConfig(r=4, target_modules=targets, lora_dropout=0.0, init_lora_weights=start)
    args = FiReOPDConfig(
        output_dir,
        method=case.get("method", "fire"),
        num_generations=generations,
        use_cpu=True,
        bf16=case.get("bf16", False),
        optim=case.get("optim", "sgd"),
        learning_rate=case.get("learning_rate", 0.003),
        lr_scheduler_type="constant",
        max_grad_norm=1e6,  # the norm is logged, the gradient is not clipped
        max_steps=case.get("max_steps", 4),
        logging_steps=case.get("logging_steps", 1),
        log_rollouts=case.get("log_rollouts", 0),
        per_device_train_batch_size=case["batch"],
        gradient_accumulation_steps=case["accumulation"],
        steps_per_generation=case.get("steps_per_generation"),
        num_iterations=case.get("num_iterations", 1),
        loss_type=case.get("loss_type", "grpo"),
        max_completion_length=33,
        scoring_token_budget=case.get("scoring_token_budget", 600),
        shuffle_dataset=False,
        gradient_checkpointing=case.get("gradient_checkpointing", False),
        save_strategy=case.get("save_strategy", "no"),
        save_steps=case.get("save_steps", 500),
        seed=11,
        ddp_timeout=20,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        model_init_kwargs={"dtype": case.get("dtype", "float32")},
        teacher_model_init_kwargs={"dtype": "float32", **case.get("teacher_kwargs", {})},
        **case.get("config", {}),
    )
    dataset = streamed(rows, case["stream"]) if case.get("stream") else Dataset.from_list(rows)
    sampler = None if case.get("sample") else rollout
    trainer = FiReOPDTrainer(
        **{
            "model": str(models / case.get("student", "student")),
            "teacher_model": teacher,
            "peft_config": peft_config,
            "train_dataset": dataset,
            "rollout_func": sampler,
            **kwargs,
        },
        args=args,
        **({"reward_funcs": [odd_sum]} if case.get("rewards") else {}),
    )
    for placed in trainer.teachers.values():
        for module in placed.module.modules() if placed.module is not None else ():
            # On processors with AVX512-BF16 bitsandbytes multiplies in bfloat16, and what a row gives depends on how
            # many rows are multiplied together: losses of two layouts then differ by 1e-5 for no fault of theirs.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    if case.get("accuracy"):
        from fire_opd_trl.evaluation.evaluate.accuracy import AccuracyCallback

        trainer.add_callback(AccuracyCallback(**case["accuracy"]))
    if case.get("watch_experts"):
        trainer.experts = watched_experts(trainer)
    if case.get("watch_outputs"):
        trainer.outputs = watched_outputs(trainer)
    return trainer


def watched_outputs(trainer) -> list[dict]:
    """For each forward to come: whose it is, whether of the loss, its rows, and what it says of their tokens."""
    from fire_opd_trl.scoring.heads import base_of

    seen, forward = [], trainer._forward
    scorers = {**trainer.window_scorer.scorers, "ref_model": trainer._trl_reference}
    names = {id(scorer.base()): name for name, scorer in scorers.items() if name != "ref_model" or trainer.ref_model}

    def watched(model, part, *args, **kwargs):
        output = forward(model, part, *args, **kwargs)
        keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "train_mask")
        note = {"of": names[id(base_of(trainer.accelerator.unwrap_model(model)))], "loss": torch.is_grad_enabled()}
        note["part"] = {key: part[key].clone() for key in keys if key in part}
        seen.append({**note, "logp": output.logp_BC.detach(), "entropy": output.entropy_BC})
        return output

    trainer._forward = watched
    for scorer in scorers.values():
        scorer.forward = watched
    return seen


def watched_experts(trainer) -> list[list[tuple[int, int]]]:
    """For each forward of the teacher to come, the experts that its tokens go to: layer and number."""
    routers = [m for m in trainer.teachers["teacher"].module.modules() if type(m).__name__.endswith("TopKRouter")]
    forwards: list[list[tuple[int, int]]] = []

    def note(layer: int):
        def hook(module, inputs, output):
            if layer == 0:
                forwards.append([])
            forwards[-1] += [(layer, expert) for expert in output[-1].unique().tolist()]

        return hook

    for layer, router in enumerate(routers):
        router.register_forward_hook(note(layer))
    return forwards


def leaves(module: torch.nn.Module) -> list[str]:
    """Kinds of modules that ZeRO-3 gathers whole."""
    from deepspeed.utils import z3_leaf_module

    return sorted({type(inside).__name__ for inside in module.modules() if z3_leaf_module(inside)})


def trained(case: dict, output_dir: str, **kwargs):
    """The trainer of a case, after training."""
    trainer = built(case, output_dir, **kwargs)
    trainer.train(resume_from_checkpoint=case.get("resume"))
    return trainer


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether every parameter is partitioned over ranks, by FSDP2 or by ZeRO-3."""
    from torch.distributed.tensor import DTensor

    return all(isinstance(p, DTensor) or hasattr(p, "ds_tensor") for p in module.parameters())


def stepped(trainer) -> list[str]:
    """The precisions of what the optimizer steps: the weights, or the copies of them that DeepSpeed keeps."""
    copies = {2: "single_partition_of_fp32_groups", 3: "fp32_partitioned_groups_flat"}.get(trainer._dist.zero_stage)
    if copies:
        return sorted({str(copy.dtype) for copy in getattr(trainer.model_wrapped.optimizer, copies)})
    return sorted({str(p.dtype) for group in trainer.optimizer.param_groups for p in group["params"]})


def watched(trainer) -> dict:
    """The experts, or what the forwards said, of every rank, if they were watched."""
    from accelerate.utils import gather_object

    if hasattr(trainer, "outputs"):
        return {"outputs_of_ranks": gather_object([trainer.outputs])}
    if not hasattr(trainer, "experts"):
        return {}
    return {
        "experts_of_ranks": gather_object([trainer.experts]),
        "leaves": leaves(trainer.teachers["teacher"].module),
    }


def recorded(folder: str) -> list[dict]:
    """The trajectories that a run has recorded, by column, step by step."""
    import pyarrow.parquet as pq

    from fire_opd_trl.rollouts.records import recorded_steps

    return [row for path in recorded_steps(folder).values() for row in pq.read_table(path).to_pylist()]


def trained_rows(trainer) -> dict[tuple, list[float]]:
    """The advantages, and the weights of a divergence, by the tokens of each row that the last window trained here."""
    trained = {}
    for part in trainer._buffered_inputs:
        for row in (part["scale"] > 0).nonzero().flatten().tolist():
            mask = part["completion_mask"][row].bool()
            values = [part[key][row][mask].tolist() for key in ("advantages", "divergence") if key in part]
            trained[tuple(part["completion_ids"][row][mask].tolist())] = values
    return trained


def result(trainer) -> dict:
    """Full parameters, losses, gradient norms and the shape of the world, gathered on every rank."""
    from torch.distributed.fsdp import FSDPModule

    from fire_opd_trl.scoring.forward_cost import brought_bytes

    teachers = [placed.module for placed in trainer.teachers.values() if placed.module is not None]
    state = trainer.accelerator.state
    fsdp = getattr(state, "fsdp_plugin", None)  # absent in a run without FSDP
    parameters = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    rows_of_parts = [int((part["scale"] > 0).sum()) for part in trainer._buffered_inputs]
    survivors = trainer.world.gather(torch.tensor([sum(rows_of_parts)])).tolist()
    if trainer.accelerator.is_main_process:
        parameters = {name.removeprefix("module."): value.detach().cpu().clone() for name, value in parameters.items()}
    return {
        "parameters": parameters,
        "loss": [log["loss"] for log in logs],
        "grad_norm": [float(log["grad_norm"]) for log in logs],
        "metrics": logs,
        "accuracy": [log for log in trainer.state.log_history if any(key.startswith("accuracy/") for key in log)],
        "survivors_of_ranks": survivors,
        "records": recorded(trainer.args.output_dir),
        "trained": trained_rows(trainer),
        "steps_of_ranks": trainer.world.gather(torch.tensor([trainer.state.global_step])).tolist(),
        "world_size": trainer.accelerator.num_processes,
        "distributed_type": str(trainer.accelerator.distributed_type).removeprefix("DistributedType."),
        "zero_stage": trainer._dist.zero_stage,
        "debug_mode": state.debug,
        "efficient_loading": bool(getattr(fsdp, "cpu_ram_efficient_loading", False)),
        "student_is_sharded": is_sharded(trainer.model),
        "teachers_are_sharded": all(is_sharded(module) for module in teachers),
        "brought_bytes_of_teachers": [brought_bytes(module) for module in teachers],
        **watched(trainer),
        "stepped": stepped(trainer),
        "fsdp_units_of_teachers": [sum(isinstance(m, FSDPModule) for m in module.modules()) for module in teachers],
        "teachers_train": any(p.requires_grad for module in teachers for p in module.parameters()),
    }


def write_result(case: dict, output: str) -> None:
    """A work of `launches.Pair`: train the case and write what came out."""
    torch.set_num_threads(1)
    if case.get("fsdp2"):
        fsdp2_on_cpu()
    trainer = trained(case, str(Path(output).with_suffix("")))
    outcome = result(trainer)
    if trainer.accelerator.is_main_process:
        torch.save(outcome, output)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    write_result(json.loads(sys.argv[1]), sys.argv[2])
    sys.stdout.flush()
    os._exit(0)  # see rank.py
