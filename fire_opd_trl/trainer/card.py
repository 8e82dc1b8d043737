"""The model card: what was distilled into what, from which data, how, and with which result."""

import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ..config import FiReOPDConfig
from ..methods import PAPERS
from .progress import shown
from .record import first_and_last, versions


TEMPLATE = Path(__file__).with_name("card.md.j2")
LINKS = re.compile(r"^\[<img .*\n?", re.MULTILINE)  # of trackers, in TRL's card


def write_model_card(args: FiReOPDConfig, state: Any, facts: dict[str, Any], is_adapter: bool) -> None:
    """
    The trainer calls this when TRL has written its card. The head of it stays, with its tags, and links to trackers;
    the rest becomes this run's.

    Args:
        state ([`~transformers.TrainerState`]): How far the run is, and its logs.
        facts (`dict`): From [`record.facts_of`].
        is_adapter (`bool`): Whether what was trained is an adapter.
    """
    path = os.path.join(args.output_dir, "README.md")
    card = ModelCard.load(path)
    head, logs = card.data, first_and_last(state.log_history)
    head.tags = sorted({*(head.tags or []), "on-policy-distillation", *(["lora"] if is_adapter else [])})
    head.library_name = "peft" if is_adapter else "transformers"
    head.pipeline_tag = "image-text-to-text" if facts["student"]["sees"] else "text-generation"
    head.datasets = head.datasets or facts["data"]["hub"] or None
    head.licence = None  # TRL's "license"; it is the student's, and a person must say which
    method = facts["method"]
    text = ModelCard.from_template(
        head,
        template_path=str(TEMPLATE),
        name=head.model_name,
        hub_id=args.hub_model_id or ".",
        links=LINKS.findall(card.text),
        trl=card.text.partition("Cite TRL as:")[2].strip(),
        student=described(facts["student"]),
        teachers={name: described(teacher) for name, teacher in facts["teachers"].items()},
        datasets=[head.datasets] if isinstance(head.datasets, str) else head.datasets or [],
        rows=facts["data"]["rows"],
        method=method,
        source=PAPERS.get(method["paper"], ("", ""))[0],
        state=state,
        settings=settings_of(args),
        metrics={name: shown(log, "eval_" * (name == "evaluation")) for name, log in logs.items()},
        versions=versions(),
        bibtex=bibtex(method["paper"]) if method["paper"] in PAPERS else "",
        task=head.pipeline_tag,
        chat=facts["student"]["chats"],
    )
    text.save(path)


def public(name: str | None) -> str:
    """Returns a name that others can find; a local path has no place in a card."""
    return "" if not name or os.path.exists(name) or name.startswith((".", "/", "~")) or "\\" in name else name


def described(model: dict[str, Any]) -> str:
    """Returns a model in words: a link to the Hub, or what it is."""
    name, adapter = public(model["name"]), public(model.get("adapter"))
    known = f"[{name}](https://huggingface.co/{name})" if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) else name
    base = (known or "a local model") + (f" ({model['is']})" if model["is"] else "")
    if model.get("adapter") is None:
        return base
    on_top = f"the adapter [{adapter}](https://huggingface.co/{adapter})" if adapter else "a local adapter"
    return f"{on_top} on {base}"


def settings_of(args: FiReOPDConfig) -> dict[str, str]:
    """Returns the settings that one asks for first."""
    precision = "bfloat16" if args.bf16 else "float16" if args.fp16 else "none"
    return {
        "window": f"{args.generation_batch_size} answers, {args.num_generations} to a prompt",
        "answers": f"at most {args.max_completion_length} tokens, at temperature {args.temperature:g}",
        "optimizer": f"{getattr(args.optim, 'value', args.optim)}, learning rate {args.learning_rate:g}, "
        f"{getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)} schedule",
        "loss": f"mean over {'tokens' if args.loss_type == 'dapo' else 'the tokens of an answer, then over answers'}",
        "compute": f"{args.world_size} process{'es' * (args.world_size > 1)}, mixed precision: {precision}",
        "seed": str(args.seed),
    }


def bibtex(number: str) -> str:
    """Returns how to cite a paper of arXiv that a recipe comes from."""
    title, author = PAPERS[number]
    year, key = f"20{number[:2]}", author.split()[-1].lower()
    return (
        f"@misc{{{key}{year},\n  title = {{{{{title}}}}},\n  author = {{{author} and others}},\n  year = {{{year}}},\n"
        f"  eprint = {{{number}}},\n  archivePrefix = {{arXiv}},\n}}"
    )
