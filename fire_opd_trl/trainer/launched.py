"""What `fire-opd train` has started: it gets the signals, and nothing of it survives."""

import logging
import signal
import subprocess
import threading
import time
from collections.abc import Callable

import psutil

from .ending import REFUSED, name_of


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
PATIENCE = 30  # seconds in which processes end by themselves, as with torchrun


class Launched:
    """
    Runs a launcher in a thread, so that signals reach this object alone and not the midst of somebody's code: the
    first one is passed on to all children, a second one kills whatever there is.

    Args:
        launch (`Callable`): Starts processes, and returns when they have ended.
    """

    def __init__(self, launch: Callable[[], None]):
        self.launch = launch
        self.signals: list[int] = []
        self.error: BaseException | None = None

    def run(self) -> int:
        """Launch, wait, and return the exit code: that of the process that failed first, or 128 and a signal's."""
        for name in ("agent", "multiprocessing"):  # what they say of a failure is said by `failure`
            logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL + 1)
        before = {
            number: signal.signal(number, lambda number, frame: self.signals.append(number))
            for number in SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN  # nohup
        }
        thread = threading.Thread(target=self.remember_error, daemon=True)
        thread.start()
        try:
            while thread.is_alive() and not self.signals:
                thread.join(0.1)
            if self.signals:
                self.end(thread)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.signals:
            return 128 + self.signals[0]
        code = failure(self.error)[0]
        return 128 - code if code < 0 else code

    def what_happened(self) -> str:
        """Returns what ended the run early, in words; nothing if it said so itself, or came to its end."""
        if self.signals:
            return f"stopped by {name_of(self.signals[0])}."
        code, who = failure(self.error)
        if code < 0:
            killed = f"{who} was killed by {name_of(-code)}"
            return f"{killed}, most often for want of memory." if code == -signal.SIGKILL else f"{killed}."
        if code - 128 in SIGNALS:
            return f"stopped by {name_of(code - 128)}."
        return "" if code in (0, REFUSED) else f"{who} failed."

    def remember_error(self) -> None:
        """The thread: launches, and keeps what it raised."""
        try:
            self.launch()
        except BaseException as error:
            self.error = error

    def end(self, thread: threading.Thread) -> None:
        """Pass the first signal on; at a second one, or when patience is over, kill what is left."""
        told, started, deadline = descendants(direct=True), descendants(), time.monotonic() + PATIENCE
        for child in told:
            send(child, self.signals[0])
        while thread.is_alive() and len(self.signals) == 1 and time.monotonic() < deadline:
            thread.join(0.1)
            for child in set(descendants(direct=True)) - set(told):
                send(child, signal.SIGKILL)  # started after the signal, or again
        deadline = time.monotonic() + PATIENCE
        while (left := [p for p in {*started, *descendants()} if alive(p)]) and time.monotonic() < deadline:
            for process in left:
                send(process, signal.SIGKILL)
            psutil.wait_procs(left, timeout=1)
        thread.join(1)


def descendants(direct: bool = False) -> list[psutil.Process]:
    """Returns what this process has started, and what they have."""
    return psutil.Process().children(recursive=not direct)


def alive(process: psutil.Process) -> bool:
    """Returns whether a process still runs."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def send(process: psutil.Process, number: int) -> None:
    """Send a signal to a process that may have ended."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass


def failure(error: BaseException | None) -> tuple[int, str]:
    """Returns the exit code of the process that failed first, negative if a signal has killed it, and its name."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if error is None:
        return 0, ""
    if isinstance(error, subprocess.CalledProcessError):
        return error.returncode, "the run"
    if isinstance(error, ChildFailedError):
        rank, first = error.get_first_failure()
        return first.exitcode, f"rank {rank}"
    raise error
