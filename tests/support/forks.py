"""
Measurements of memory, each in a process of its own: one process imports what takes seconds, and is forked for each.
"""

import importlib
import json
import os
import traceback
from collections.abc import Callable, Iterable


IMPORTED_ONCE = (
    "datasets",
    "peft",
    "transformers.models.qwen3.modeling_qwen3",
    "trl.trainer.grpo_trainer",
    "fire_opd_trl.trainer.trainer",
)


def print_in_forks(measured: Callable[..., dict], cases: Iterable[tuple]) -> None:
    """
    Print a line of JSON for each case, what `measured(*case)` returns in a process that is forked for it. The first
    that fails ends this process with its traceback.
    """
    for module in IMPORTED_ONCE:
        importlib.import_module(module)
    for case in cases:
        process = os.fork()
        if process == 0:
            try:
                print(json.dumps(measured(*case)) + "\n", end="", flush=True)  # one write
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
            raise SystemExit(f"{case} failed")
