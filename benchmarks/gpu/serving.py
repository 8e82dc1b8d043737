"""What the process of a section runs. It imports nothing that takes time but the section itself."""

import logging
import pkgutil
import traceback
from multiprocessing.connection import Connection


DONE, SKIPPED, FAILED = "done", "skipped", "failed"


class CannotRun(Exception):
    """A section needs what this machine does not have; the message says what."""


def serve(link: Connection, function: str, arguments: tuple) -> None:
    """Run a section, a generator of rows: send each row as soon as it is known, then how it ended."""
    logging.disable(logging.WARNING)
    end: tuple[str, ...]
    try:
        for row in pkgutil.resolve_name(function)(*arguments):
            link.send(("row", row))
        end = (DONE,)
    except CannotRun as reason:
        end = (SKIPPED, str(reason))
    except Exception as error:  # whatever it is, it is this section's alone: it goes into the results with its name
        traceback.print_exc()
        end = (FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    link.send(("end", end))
