"""
A student that calls a calculator while it answers: two models, a tool, and what of an answer trains.

TRL runs the tool and writes its result into the answer; the student goes on from there. The teacher reads all of it.
Only the tokens that the student wrote itself are trained, weighed and counted: those of the tool have a mask of 0.
A tiny teacher, and a student that makes mistakes, are made here in some seconds. Nothing is downloaded:

    python examples/tools.py

With real models, on a GPU:

    python examples/tools.py --model_name_or_path Qwen/Qwen3-0.6B --teacher Qwen/Qwen3-4B --steps 50 --rows 64

At the end it prints who wrote what, and `fire-opd inspect outputs/tools` shows the answers token by token.
docs/tools_and_images.md explains it.
"""

import argparse
import ast
import operator
import random
import re
from copy import deepcopy
from pathlib import Path

import pyarrow.parquet as pq
import torch
import trl
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl.chat_template_utils import get_training_chat_template

from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
from fire_opd_trl.trainer.ending import Ending, refusals


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.USub: operator.neg}
LONGEST, LARGEST = 100, 10**12  # characters of an expression, and the size of a number in it
UPDATES, NOISE = 180, 0.05  # of the tiny teacher; the student is the teacher with noise on its weights


def calculator(expression: str) -> str:
    """
    Calculates an arithmetic expression.

    Args:
        expression: Whole numbers with + - * and parentheses, for example "12 * 7".

    Returns:
        The value.
    """
    # A model wrote the expression. It is read as a tree, of which only numbers and four operators are followed:
    # nothing of it is executed, and its length and its numbers are bounded. TRL tells the student of an error.
    if len(expression) > LONGEST:
        raise ValueError(f"the expression has {len(expression)} characters, more than {LONGEST}")

    def value(node: ast.AST) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            result = node.value
        elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            result = OPERATORS[type(node.op)](value(node.left), value(node.right))
        elif isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
            result = OPERATORS[type(node.op)](value(node.operand))
        else:
            raise ValueError("only whole numbers, + - * and parentheses are allowed")
        if abs(result) > LARGEST:
            raise ValueError(f"a number is larger than {LARGEST}")
        return result

    return str(value(ast.parse(expression.strip(), mode="eval").body))


def problems(count: int, seed: int) -> list[str]:
    """Returns expressions such as `7 * 6`."""
    draw = random.Random(seed)
    pairs = [sorted((draw.randint(2, 9), draw.randint(2, 9)), reverse=True) for _ in range(count)]
    return [f"{a} {draw.choice('+-*')} {b}" for a, b in pairs]


def question(problem: str) -> dict:
    """Returns the message of the user."""
    return {"role": "user", "content": f"What is {problem}?"}


def conversation(problem: str) -> list[dict]:
    """Returns the right one: the question, a call of the tool, its result, the answer."""
    call = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": problem}}}
    return [
        question(problem),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "calculator", "content": calculator(problem)},
        {"role": "assistant", "content": f"It is {calculator(problem)}."},
    ]


def right_answer(completions: list[list[dict]], answer: list[str], **columns) -> list[float]:
    """The reward, which is logged and does not train: 1 where the last message of an answer has the result."""
    said = [messages[-1]["content"] or "" for messages in completions]
    return [float(right in re.findall(r"\d+", text)) for text, right in zip(said, answer, strict=True)]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer with a template of Qwen3, whose tokens are numbers and pieces of these conversations."""
    special = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen3_instruct_2507.jinja").read_text(encoding="utf-8")
    core = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(r"\d+| ?[+*-] ?|\n|[^\d+*\n-]+"), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    text = PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template).apply_chat_template(
        conversation("7 * 2"), tools=[calculator], tokenize=False
    )
    core.train_from_iterator([text, *map(str, range(100)), " + ", " - ", " * "] * 9, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=special[0],
        eos_token=special[1],
        additional_special_tokens=special[2:],
        padding_side="left",
        chat_template=template,
    )


def tiny_teacher(tokenizer: PreTrainedTokenizerFast, updates: int) -> Qwen3ForCausalLM:
    """Returns a model of one layer after so many updates on right conversations, of which the model's turns count."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=1, head_dim=32,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=True,
            initializer_range=0.1, eos_token_id=1, pad_token_id=0, bos_token_id=None,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=updates + 1, pct_start=0.15)
    chats = tokenizer.apply_chat_template(
        [conversation(problem) for problem in problems(16 * updates, seed=0)],
        tools=[calculator],
        chat_template=get_training_chat_template(tokenizer),  # it says which tokens are the model's
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    rows = [torch.tensor(pair).T for pair in zip(chats["input_ids"], chats["assistant_masks"], strict=True)]
    for update in range(updates):
        ids, own = pad_sequence(rows[16 * update :][:16], batch_first=True).unbind(dim=2)
        model(input_ids=ids, labels=ids.where(own.bool(), -100)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


def spoilt(model: Qwen3ForCausalLM, noise: float) -> Qwen3ForCausalLM:
    """Returns a copy with noise on its weights, which makes mistakes that the original finds unlikely."""
    copy, generator = deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in copy.parameters():
            weights += noise * torch.randn(weights.shape, generator=generator)
    return copy


def who_wrote_what(run: Path) -> list[str]:
    """Returns one of the answers that were recorded last, and a table: their tokens by author, and what they weigh."""
    rows = pq.read_table(max((run / "rollouts").glob("*.parquet"))).to_pylist()
    kept = [row for row in rows if row["kept"]] or rows
    lines = [kept[0]["completion"], "", f"{'written by':<12}{'tokens':>8}{'mean weight':>13}{'trained':>9}"]
    for author, own in (("the student", True), ("the tool", False)):
        weights = [w for row in kept for w, trains in zip(row["weight"], row["trains"], strict=True) if trains == own]
        trained, mean = sum(weight != 0 for weight in weights), sum(weights) / max(1, len(weights))
        lines.append(f"{author:<12}{len(weights):>8}{mean:>13.3f}{trained:>9}")
    return lines


def main(argv: list[str] | None = None) -> FiReOPDTrainer:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--model_name_or_path", help="Student. By default a tiny one is made here.")
    parser.add_argument("--teacher", help="Teacher. It is needed with --model_name_or_path.")
    parser.add_argument("--method", default="fire", help="Recipe of fire_opd_trl. Default: %(default)s.")
    parser.add_argument("--steps", type=int, default=12, help="Optimizer steps. Default: %(default)s.")
    parser.add_argument("--rows", type=int, default=32, help="Answers of a step. Default: %(default)s.")
    parser.add_argument("--use_vllm", action="store_true", help="Sample with vLLM, in the same process.")
    parser.add_argument("--use_cpu", action="store_true", help="Train on the CPU, as the tiny models do.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/tools"), help="Default: %(default)s.")
    options = parser.parse_args(argv)
    real = options.model_name_or_path is not None
    if real != (options.teacher is not None):
        parser.error("give both --model_name_or_path and --teacher, or neither of them")
    if options.use_vllm and not real:
        parser.error("--use_vllm has no effect on the tiny models; give --model_name_or_path and --teacher")
    if options.rows < 4 or options.rows % 4:
        parser.error(f"--rows {options.rows}: give a multiple of 4, the rows of a forward")
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: give at least 1")

    rows = [
        {"prompt": [question(problem)], "answer": calculator(problem)}
        for problem in problems(options.steps * options.rows, seed=1)
    ]
    on_cpu = options.use_cpu or not real
    with refusals():  # what you can mend is said in a sentence, before a model is made or loaded
        args = FiReOPDConfig(
            str(options.output_dir),
            method=options.method,
            max_steps=options.steps,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=options.rows // 4,
            max_completion_length=512 if real else 96,
            max_tool_calling_iterations=3,
            learning_rate=1e-6 if real else 2e-3,
            use_vllm=options.use_vllm,
            use_cpu=on_cpu,
            bf16=not on_cpu,
            log_rollouts=8,
            logging_steps=1,
            save_strategy="no",
        )
        options.output_dir.mkdir(parents=True, exist_ok=True)
        if real:
            student, teacher, tokenizer = options.model_name_or_path, options.teacher, None
        else:
            tokenizer = tiny_tokenizer()
            teacher = tiny_teacher(tokenizer, UPDATES)
            student = spoilt(teacher, NOISE)
        trainer = FiReOPDTrainer(
            model=student,
            teacher_model=teacher,
            args=args,
            train_dataset=Dataset.from_list(rows),
            reward_funcs=right_answer,
            processing_class=tokenizer,
            tools=[calculator],
        )
    trainer.train()
    trainer.save_model()
    calls = [log["tools/call_frequency"] for log in trainer.state.log_history if "tools/call_frequency" in log]
    print(f"\nCalls of the tool in an answer: {calls[0]:.2f} in the first step, {calls[-1]:.2f} in the last.")
    print("An answer of the last step, and the kept answers that were recorded of it:\n")
    print("\n".join(who_wrote_what(options.output_dir)))
    return trainer


if __name__ == "__main__":
    with Ending():
        main()
