"""Watches a run while it trains: warns when it falls ill, or stops it."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from ..config import FiReOPDConfig
from ..stages.watchdogs import WATCHDOGS, WINDOW, Alarm, Watchdogs
from .record import RunRecord, keep_lines_until


KEPT = "fire_watchdogs"  # where a checkpoint's trainer_state.json holds how the run began


class WatchdogCallback(TrainerCallback):
    """
    Shows each window to the watchdogs when its first step has ended. All ranks see the same numbers, so that all stop
    alike; the main process prints and writes.

    Args:
        args ([`FiReOPDConfig`]): What to do with a sick run, and other limits.
        record ([`RunRecord`]): run.json, which names what was seen.
        log (`Callable`): Logs a metric of the window.
    """

    def __init__(self, args: FiReOPDConfig, record: RunRecord, log: Callable[[str, float], None]):
        off = dict.fromkeys(WATCHDOGS) if args.on_sick == "ignore" else {}
        assert not isinstance(args.watchdogs, str)  # TrainingArguments has parsed the CLI's JSON
        self.limits = {**(args.watchdogs or {}), **off}
        self.record, self.log = record, log
        self.dogs = Watchdogs(self.limits)
        self.window: dict[str, float] = {}
        self.warned: dict[str, list[int]] = {}

    def see(self, metrics: Mapping[str, float]) -> None:
        """The trainer calls this with what it logs of a window and of its first step."""
        self.window = {**metrics, **self.window}  # a later step of the same window changes nothing

    def on_train_begin(self, args, state, control, **kwargs):
        self.window, self.warned = {}, {}
        self.dogs = Watchdogs(self.limits, state.stateful_callbacks.get(KEPT))
        path = watchdogs_file(args.output_dir)
        if state.is_world_process_zero and os.path.exists(path):
            keep_lines_until(state.global_step, path)
            with open(path, encoding="utf-8") as file:
                for line in map(json.loads, file):
                    self.warned.setdefault(line["watchdog"], []).append(line["step"])
        self.record.note(args, watchdogs=self.warned)

    def on_step_end(self, args, state, control, **kwargs):
        window, self.window = self.window, {}
        if WINDOW not in window:  # a later step of a window
            return
        alarms = self.dogs.observe(state.global_step, window)
        state.stateful_callbacks[KEPT] = self.dogs.past.to_keep()
        for name, sick in self.dogs.sick.items():
            self.log(f"sick/{name}", float(sick))
        if alarms and args.on_sick == "stop":
            control.should_training_stop = True
            control.should_save = control.should_save or args.save_strategy in (SaveStrategy.STEPS, SaveStrategy.EPOCH)
        if alarms and state.is_world_process_zero:
            self.tell(args, alarms)

    def tell(self, args: FiReOPDConfig, alarms: list[Alarm]) -> None:
        """Print each alarm, above a progress bar if there is one, and write it down."""
        stops = args.on_sick == "stop"
        for alarm in alarms:
            tqdm.write(warning(alarm, stops))
            self.warned.setdefault(alarm.watchdog, []).append(alarm.step)
        os.makedirs(args.output_dir, exist_ok=True)
        with open(watchdogs_file(args.output_dir), "a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(alarm)) + "\n" for alarm in alarms)
        because = " ".join(f"step {alarm.step}: watchdog {alarm.watchdog}: {alarm.says}" for alarm in alarms)
        stopped = {"stopped_because": because} if stops else {}
        self.record.note(args, watchdogs=self.warned, **stopped)


def watchdogs_file(output_dir: str) -> str:
    """Returns where each alarm becomes a line."""
    return os.path.join(output_dir, "watchdogs.jsonl")


def warning(alarm: Alarm, stops: bool) -> str:
    """Returns what a person reads: what was seen, and below it what to do."""
    then = " Training stops here (on_sick)." if stops else ""
    allowed = json.dumps({alarm.watchdog: None})
    return (
        f"step {alarm.step}: watchdog {alarm.watchdog}: {alarm.says}{then}\n  {alarm.remedy}\n"
        f"  If this is as it should be: watchdogs={allowed}, or another limit. See docs/symptoms.md."
    )
