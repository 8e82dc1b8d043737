"""
One rank of a launch that does several works, one after the other (`launches.Pair`). What takes long is imported once;
each work runs in a process that is forked from here, before anything was built or connected: it finds the state of a
fresh launch, and leaves none behind.

    torchrun ... rank.py FOLDER PID       # works come as FOLDER/0.json, 1.json, ...; `null` ends; PID is who asks
"""

import gc
import importlib
import itertools
import json
import os
import sys
import time
import traceback
from pathlib import Path

import torch


IMPORTED_ONCE = (
    "datasets",
    "peft",
    "transformers.models.qwen3.modeling_qwen3",
    "trl.trainer.grpo_trainer",
    "support.worker",
    "fire_opd_trl.demo.task",
    "fire_opd_trl.trainer.trainer",
)


def awaited(path: Path, asker: int, launcher: int) -> dict | None:
    """The order in a file, once it is there; None when there is no more to do, or nobody left to ask."""
    while not path.exists():
        if not Path(f"/proc/{asker}").exists() or os.getppid() != launcher:
            return None
        time.sleep(0.02)
    return json.loads(path.read_text())


def do(order: dict) -> int:
    """Runs in the forked process: the exit code of one work."""
    os.environ.update(order["environment"])
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # the launcher's store has the keys of the works before
    module, name = order["work"].split(":")
    try:
        getattr(importlib.import_module(module), name)(*order["arguments"])
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def main() -> None:
    folder, asker, launcher, rank = Path(sys.argv[1]), int(sys.argv[2]), os.getppid(), os.environ["RANK"]
    sys.path.insert(0, str(Path(__file__).parents[1]))
    torch.set_num_threads(1)
    for module in IMPORTED_ONCE if "bare" not in sys.argv[3:] else ():
        importlib.import_module(module)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        importlib.import_module("deepspeed")
    # A fork copies the thread that forks and no other: locks that another one held would stay locked. pyarrow's
    # allocator has a thread, and sees to forks itself.
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert [name for name in threads if not name.startswith("jemalloc")] == [threads[0]], threads
    gc.freeze()  # a collection in a fork then passes over what was imported
    for number in itertools.count():
        order = awaited(folder / f"{number}.json", asker, launcher)
        if order is None:
            os._exit(0)
        process = os.fork()
        if process == 0:
            # All is written and the group is closed. The interpreter's own teardown aborted once in some sixty
            # launches, in a thread that is not ours ("terminate called without an active exception").
            os._exit(do(order))
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        told = folder / f"{number}.told{rank}"
        told.write_text(str(code))
        told.rename(folder / f"{number}.exit{rank}")


if __name__ == "__main__":
    main()
