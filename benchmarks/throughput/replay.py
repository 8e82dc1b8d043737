"""What all arms share: two models, prompts, and completions that are replayed instead of sampled."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from .sizes import Size, unlikely_rows


PAD, END, FIRST_WORD = 0, 1, 2
LIKING = 12.0  # logit of a repeated word, were the hidden state nothing but its embedding
TEMPLATE = "{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}"


def model_of(size: Size, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 model with random weights, whose tied embeddings make it like to repeat itself."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        intermediate_size=size.intermediate,
        max_position_embeddings=2 * (size.prompt + max(size.lengths)),
        tie_word_embeddings=True,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(std=LIKING / size.hidden)
    return model


def tokenizer_of(size: Size, folder: str) -> PreTrainedTokenizerFast:
    """A tokenizer in which `w7` is token 7, also saved in the folder, where IWOPDTrainer looks for the teacher's."""
    words = {"<pad>": PAD, "<eos>": END, **{f"w{token}": token for token in range(FIRST_WORD, size.vocabulary)}}
    core = Tokenizer(models.WordLevel(words, "<pad>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


@dataclass
class Replay:
    """
    Prompts, and the completion of each. `generate` replaces the student's own: every trainer gets the same tokens, in
    whatever order and portions it asks for them.

    The filter drops the rows that the teacher finds least likely. With random weights it would drop short rows, whose
    means scatter most. So every completion repeats the last word of its prompt, which the models like. Only the rows
    of [`~benchmarks.throughput.sizes.unlikely_rows`], which are as long as the others, are made of different words.

    Args:
        prompts (`list[list[int]]`): Tokens of each prompt; no two are equal.
        completions (`list[list[int]]`): Tokens of each completion; the last one is the end.
    """

    prompts: list[list[int]]
    completions: list[list[int]]

    def __post_init__(self):
        self.by_prompt = {tuple(ids): done for ids, done in zip(self.prompts, self.completions, strict=True)}

    @classmethod
    def of(cls, size: Size) -> "Replay":
        draw = torch.Generator().manual_seed(0)
        words = size.vocabulary - FIRST_WORD

        def drawn(count: int) -> list[int]:
            return (FIRST_WORD + torch.randint(words, (count,), generator=draw)).tolist()

        # the first word numbers the prompt: rows are fewer than words
        prompts = [[FIRST_WORD + row, *drawn(size.prompt - 1)] for row in range(size.rows)]
        unlikely = set(unlikely_rows(size.rows))
        completions = [
            [*(drawn(length - 1) if row in unlikely else prompts[row][-1:] * (length - 1)), END]
            for row, length in enumerate(size.lengths)
        ]
        return cls(prompts, completions)

    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any):
        """Prompts and completions, as wide as the longest of them, in place of `GenerationMixin.generate`."""
        mask = attention_mask if attention_mask is not None else input_ids != PAD
        asked = [tuple(ids[kept.bool()].tolist()) for ids, kept in zip(input_ids, mask, strict=True)]
        rows = [torch.tensor(self.by_prompt[prompt], device=input_ids.device) for prompt in asked]
        completion = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
        sequences = torch.cat([input_ids, completion], dim=1)
        return SimpleNamespace(sequences=sequences) if kwargs.get("return_dict_in_generate") else sequences

    def dataset(self) -> Dataset:
        """One row for each prompt, as text."""
        return Dataset.from_list([{"prompt": text(ids)} for ids in self.prompts])

    def conversations(self) -> Dataset:
        """The same as conversations with their answers, because IWOPDTrainer counts the tokens of the answers."""
        pairs = zip(self.prompts, self.completions, strict=True)
        return Dataset.from_list([{"messages": turns(prompt, completion)} for prompt, completion in pairs])


def text(ids: list[int]) -> str:
    """The words of some tokens."""
    return " ".join("<eos>" if token == END else f"w{token}" for token in ids)


def turns(prompt: list[int], completion: list[int]) -> list[dict[str, str]]:
    """A question and its answer."""
    return [{"role": "user", "content": text(prompt)}, {"role": "assistant", "content": text(completion)}]
