"""What it costs to watch a run is measured where the trainer watches, and stays small where the work is large."""

from time import sleep
from types import SimpleNamespace

import pytest
import torch

from benchmarks.observing import OBSERVERS, of_the_mathematics, table, timed
from fire_opd_trl.stages import looped_tail_B
from fire_opd_trl.stages.metrics import top_decile_share
from fire_opd_trl.stages.world import World


def test_every_observer_is_where_the_trainer_finds_it_and_is_put_back():
    before = {name: getattr(*place) for name, place in OBSERVERS.items()}
    with timed() as seconds:
        assert all(getattr(*place) is not before[name] for name, place in OBSERVERS.items())
    assert {name: getattr(*place) for name, place in OBSERVERS.items()} == before and not seconds
    place = SimpleNamespace(slow=lambda: sleep(0.01))
    with timed({"slow": (place, "slow")}) as seconds:
        place.slow()
    assert 0.01 <= seconds["slow"][0] < 1


def test_a_large_window_takes_less_than_a_tenth_of_a_second_for_each_row():
    # Three tries of all the mathematics together took 0.2 s here. The bound is generous, for busy machines.
    seconds = of_the_mathematics(16, 16_384)
    assert seconds["loops"] + seconds["metrics of the window"] < 16 * 0.1
    assert table({"step": 2.0, "loops": 0.01}, "a step").splitlines()[-1] == "| loops | 10.00 | 0.50% |"


@pytest.mark.parametrize("tokens", [64, 16_384])
def test_the_work_of_watching_does_not_grow_faster_than_the_window(tokens):
    """Operations of torch are counted, not seconds: as many for a long window as for a short one."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.operations += 1
            return function(*args, **(kwargs or {}))

    token_BT = torch.arange(4 * tokens).reshape(4, tokens)
    with Count() as count:
        looped_tail_B(token_BT, token_BT >= 0)
        top_decile_share(token_BT.float(), 4 * tokens, World())
    assert count.operations < 50 + 7 * min(128, tokens // 3)  # slices, a comparison, all and or of each period
