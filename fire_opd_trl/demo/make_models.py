"""Trains the demo's teacher and student from scratch, saves them and writes their card.

    python -m fire_opd_trl.demo.make_models --output DIR

Both learn the same text by next-token prediction. The student is smaller and stops halfway up its learning curve: it
writes the right form and slips on digits, so it has both the room to learn from the teacher and the capacity.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM
from transformers import PreTrainedTokenizerFast as Tokenizer

from . import task


BATCH_SIZE = 128
WARMUP_STEPS, LOSS_SMOOTHING = 50, 0.8
TEST_PROBLEMS, TEST_SEED = 4000, 0

CARD = """# Demo models

Two Qwen3-type models for the addition task of `fire_opd_trl/demo/task.py`, trained from random weights on nothing but
that task, and of no other use. The teacher is almost always right. The student is smaller and was stopped early: it
writes the right form and slips on digits and carries, so on-policy distillation has something to teach it.

| | teacher | student |
| --- | --- | --- |
{rows}

Accuracy is exact match of the final sum over {problems} held-out problems, one completion each, with a 95 % interval,
by the saved bfloat16 weights loaded as float32. No training problem is among them: a hash of the pair decides its
split. The vocabulary is {vocabulary} single characters and special tokens; a completion is 30 to 32 tokens with its
end token.

Made on {threads} CPU threads with torch {torch} by

    python -m fire_opd_trl.demo.make_models --output DIR

with AdamW, batches of {batch_size} distinct training problems and a loss on the completion and its end token only. The
seeds are fixed, but another machine or torch version rounds differently and makes slightly different models.
"""


@dataclass(frozen=True)
class Recipe:
    """Shape and training of one model."""

    hidden_size: int
    intermediate_size: int
    layers: int
    learning_rate: float
    steps: int
    seed: int
    stop_loss: float = 0.0  # ends training before its last step once the smoothed loss is below


RECIPES = {
    "teacher": Recipe(128, 384, 4, learning_rate=2e-3, steps=500, seed=1),
    "student": Recipe(64, 192, 3, learning_rate=3e-3, steps=600, seed=3, stop_loss=0.03),
}


def untrained_model(recipe: Recipe, tokenizer: Tokenizer) -> Qwen3ForCausalLM:
    """Returns a model of the recipe's shape with random weights from its seed."""
    torch.manual_seed(recipe.seed)
    end_tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,  # the smallest that vLLM's attention kernels run everywhere
        max_position_embeddings=128,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
        **end_tokens,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, **end_tokens)
    return model


def completion_loss(model: Qwen3ForCausalLM, tokenizer: Tokenizer, pairs: list[tuple[int, int]]) -> torch.Tensor:
    """Returns the mean cross-entropy over the tokens of the completions and their end tokens."""
    prompts = [task.prompt(a, b) for a, b in pairs]
    texts = [text + task.working(a, b) + task.EOS for text, (a, b) in zip(prompts, pairs, strict=True)]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    prompt_lengths = torch.tensor([[len(text)] for text in prompts])  # one token a character
    ignored = (torch.arange(batch["input_ids"].shape[1]) < prompt_lengths) | (batch["attention_mask"] == 0)
    labels = batch["input_ids"].masked_fill(ignored, -100)
    # Padding comes last, where no token that counts can see it, so the attention mask is not needed.
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())


def train(model: Qwen3ForCausalLM, tokenizer: Tokenizer, recipe: Recipe, name: str) -> int:
    """Trains `model` in place and returns after how many steps it stopped."""
    pairs = task.problems("train", recipe.steps * BATCH_SIZE, recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(  # a warm-up, then a straight line to zero
        optimizer, lambda step: min(1, (step + 1) / WARMUP_STEPS) * (1 - step / recipe.steps)
    )
    smoothed_loss = math.log(len(tokenizer))  # of a model that knows nothing
    model.train()
    progress = tqdm(range(recipe.steps), desc=name, unit="step")
    for step in progress:
        loss = completion_loss(model, tokenizer, pairs[step * BATCH_SIZE : (step + 1) * BATCH_SIZE])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        smoothed_loss += (1 - LOSS_SMOOTHING) * (loss.item() - smoothed_loss)
        progress.set_postfix(loss=f"{smoothed_loss:.4f}")
        # The curve is steep: a fixed number of steps made a student of 40 % with one seed, of 90 % with another.
        if smoothed_loss < recipe.stop_loss:
            break
    return step + 1


def measure(folder: Path) -> dict[str, str]:
    """Measures a saved model, and returns the lines of its card."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = task.problems("test", TEST_PROBLEMS, TEST_SEED)
    shares = {temperature: task.accuracy(model, tokenizer, pairs, temperature) for temperature in (1.0, 0.0)}
    half_width = {key: 1.96 * (share * (1 - share) / len(pairs)) ** 0.5 for key, share in shares.items()}
    size = sum(file.stat().st_size for file in folder.iterdir())
    return {
        "accuracy at temperature 1": f"{shares[1.0]:.1%} ± {half_width[1.0]:.1%}",
        "accuracy, likeliest token": f"{shares[0.0]:.1%} ± {half_width[0.0]:.1%}",
        "parameters": f"{model.num_parameters():,}",
        "layers, hidden size": f"{model.config.num_hidden_layers}, {model.config.hidden_size}",
        "size of the folder": f"{size / 1e6:.2f} MB",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's teacher and student on the CPU, in a few minutes.")
    parser.add_argument("--output", type=Path, required=True, help="folder for teacher/, student/ and MODELS.md")
    output = parser.parse_args().output

    tokenizer = task.build_tokenizer()
    columns: dict[str, dict[str, str]] = {}
    for name, recipe in RECIPES.items():
        started = time.perf_counter()
        model = untrained_model(recipe, tokenizer)
        steps = train(model, tokenizer, recipe, name)
        seconds = time.perf_counter() - started
        model.to(torch.bfloat16).save_pretrained(output / name)
        tokenizer.save_pretrained(output / name)
        columns[name] = measure(output / name) | {
            "training steps": f"{steps}" + (f", loss below {recipe.stop_loss}" if recipe.stop_loss else ""),
            "learning rate": str(recipe.learning_rate),
            "seed": str(recipe.seed),
            "training time": f"{seconds:.0f} s",
        }
        print(f"{name}: {columns[name]['accuracy at temperature 1']} at temperature 1")

    rows = [f"| {label} | {columns['teacher'][label]} | {columns['student'][label]} |" for label in columns["teacher"]]
    facts: dict[str, object] = {"problems": TEST_PROBLEMS, "vocabulary": len(tokenizer), "batch_size": BATCH_SIZE}
    facts |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "rows": "\n".join(rows)}
    (output / "MODELS.md").write_text(CARD.format(**facts), encoding="utf-8")


if __name__ == "__main__":
    main()
