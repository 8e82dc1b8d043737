"""What `fire-opd plan` does: it reads the arguments of a training, and says what they need and take."""

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import transformers

from .plan.report import machine, markdown, text


def run(script: Any, rest: list[str], accelerate_config: Path | None, options: argparse.Namespace, parser: Any) -> int:
    """Plan, print, and return the exit code: 0 if the run fits, 1 if it does not."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        plan = plan_of(script, rest, accelerate_config, options)
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    if options.json:
        print(machine(plan, options.fit))
    elif options.markdown:
        print(markdown(plan, options.fit))
    else:
        print(text(plan, options.sources, options.fit))
    return 0 if plan.fits else 1
