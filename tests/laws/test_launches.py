"""What several ranks do in tests: no work inherits anything of the work before it, and none can hang."""

import contextlib
import time
from pathlib import Path

import psutil
import pytest
from support.launches import Pair


@pytest.fixture
def pair():
    pair = Pair("ddp", bare=True)
    yield pair
    pair.no_more()
    pair.close()


def marks(path) -> list[list[int]]:
    """Process, process group and port of each rank that did a work."""
    return [[int(number) for number in Path(f"{path}{rank}").read_text().split()] for rank in (0, 1)]


def alive(process: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.launch
def test_works_share_a_launch_and_a_work_that_fails_or_hangs_costs_itself_alone(pair, tmp_path):
    for name in ("one", "two"):
        pair.run("support.works:leave_a_mark", str(tmp_path / name))
    one, two = marks(tmp_path / "one"), marks(tmp_path / "two")
    assert len({process for process, _, _ in (*one, *two)}) == 4  # a process for each rank of each work
    assert [group for _, group, _ in one] == [group for _, group, _ in two]  # and one launch for both works
    assert one[0][2] == one[1][2] != two[0][2] == two[1][2]  # a rendezvous for each work

    begin = time.monotonic()
    with pytest.raises(pytest.fail.Exception, match="ddp, work 2: .*killed after 3 s"):
        pair.run("support.works:never_end", str(tmp_path / "three"), timeout=3)
    assert time.monotonic() - begin < 13
    assert pair.process is None
    assert not any(alive(process) for process, _, _ in marks(tmp_path / "three"))

    # Launched anew: the works before have left nothing, and the one that hung cost itself alone.
    pair.run("support.works:leave_a_mark", str(tmp_path / "four"))
    assert not {group for _, group, _ in marks(tmp_path / "four")} & {group for _, group, _ in one}
    with pytest.raises(
        pytest.fail.Exception, match=r"(?s)ddp, work 1: .*exit codes \[1\].*ValueError: said by rank 1"
    ):
        pair.run("support.works:fail_on_the_second_rank", str(tmp_path / "failed"), "said by rank 1")
    assert pair.process is None  # so that the next work is launched anew too
    assert not any(alive(process) for process, _, _ in marks(tmp_path / "failed"))  # the one that waited is killed
