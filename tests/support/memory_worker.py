"""
Peak memory of one update at a vocabulary of 50 000, ours through the trainer or dense with everything materialised.

    python memory_worker.py opd_full ours opd_full dense       # pairs of a method and `ours` or `dense`

Prints one JSON line for each pair, from a process of its own: by how many MB it grew above the loaded models, and its
largest tensor against the logits.
"""

import resource
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode


VOCABULARY, ROWS, LENGTH, TOP_K = 50_000, 16, 128, 16


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any new tensor had."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for value in output if isinstance(output, tuple | list) else (output,):
            if isinstance(value, torch.Tensor):
                self.numbers = max(self.numbers, value.numel())
        return output


def model(width: int, seed: int):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}
    config = Qwen3Config(
        vocab_size=VOCABULARY, eos_token_id=1, pad_token_id=0, initializer_range=0.1, **shape, **heads
    )
    return Qwen3ForCausalLM(config)


def ours(method: str, student, teacher, ids):
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer

    core = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}, "<pad>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")

    def rollout(prompts, trainer):
        return {"prompt_ids": [[5]] * len(prompts), "completion_ids": ids.tolist(), "logprobs": None}

    kwargs = {"threshold": 0.0, "top_k": TOP_K} if method == "eopd" else {}
    trainer = FiReOPDTrainer(
        model=student,
        teacher_model=teacher,
        args=FiReOPDConfig(
            tempfile.mkdtemp(),
            method=method,
            method_kwargs=kwargs,
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=ROWS,
            max_completion_length=LENGTH,
            max_steps=1,
            allow_guessing_teacher=True,  # random weights
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": f"w{row}"} for row in range(5, 5 + ROWS)]),
        processing_class=tokenizer,
        rollout_func=rollout,
    )
    trainer.model.train()

    def step():
        rows = [trainer.train_dataset[row] for row in range(ROWS)]
        for part in trainer._micro_batches(trainer._generate_and_score_completions(rows)):
            trainer.compute_loss(trainer.model, part).backward()

    return step


def dense(method: str, student, teacher, ids):
    """One forward of each model; the weights of the tokens do not matter for memory and are left out."""
    ids = torch.cat([torch.full((ROWS, 1), 5), ids], dim=1)

    def step():
        with torch.no_grad():
            t = teacher(ids).logits[:, :-1].log_softmax(dim=-1)
        s = student(ids).logits[:, :-1].log_softmax(dim=-1)
        if method == "eopd":
            top = t.topk(TOP_K, dim=-1)
            (top.values.exp() * (top.values - s.gather(2, top.indices))).sum(dim=-1).mean().backward()
        else:
            (s.exp() * (s - t)).sum(dim=-1).mean().backward()

    return step


def measured(method: str, how: str) -> dict:
    """What a process takes for an update. It has done nothing else before."""
    ids = torch.randint(2, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    step = {"ours": ours, "dense": dense}[how](method, model(64, 0), model(96, 1), ids)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Largest() as largest:
        step()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    share = largest.numbers / (ROWS * LENGTH * VOCABULARY)
    return {"method": method, "how": how, "peak_mb": round(grown), "largest_of_logits": share}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from support.forks import print_in_forks

    torch.set_num_threads(1)
    print_in_forks(measured, zip(sys.argv[1::2], sys.argv[2::2], strict=True))
