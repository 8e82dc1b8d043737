"""Empty completions are filled with a token that never trains; which rows end in a loop is seen past EOS and tools."""

import torch
from support.trainers import CASE, logs_of
from support.worker import built

from fire_opd_trl.rollouts.from_trl import fill_empty_completions, rollout_from_trl
from fire_opd_trl.stages import World


def test_f5_empty_completions_are_filled_with_a_token_that_never_trains():
    output = {
        "completion_ids": [[5], [], [6, 7]],
        "logprobs": [[-1.0], [], [-2.0, -3.0]],
        "env_mask": [[1], [], [1, 1]],
    }
    filled = fill_empty_completions(output, pad_token_id=0)
    assert filled["completion_ids"] == [[5], [0], [6, 7]]
    assert filled["logprobs"] == [[-1.0], [0.0], [-2.0, -3.0]] and filled["env_mask"] == [[1], [0], [1, 1]]
    assert output["completion_ids"][1] == []  # the caller's own lists stay


def test_f5_empty_and_eos_only_rows_are_counted_and_never_kept(tmp_path):
    trainer = built({**CASE, "max_steps": 1}, str(tmp_path))
    rollout = trainer.rollout_func

    def some_eos(prompts, trainer):
        output = rollout(prompts, trainer)
        ids = [[1] if place < 4 else row for place, row in enumerate(output["completion_ids"])]  # <eos>
        return {**output, "completion_ids": ids}

    trainer.rollout_func = some_eos
    trainer.train()
    (log,) = logs_of(trainer)
    assert log["fire/empty"] == 9  # four of nothing but EOS, five of nothing at all
    assert log["fire/kept_rows"] == 23 - 4  # floor(0.2 * 23) = 4 dropped


def test_a_loop_is_seen_before_the_end_token_and_past_the_output_of_tools():
    loop, counting, padding, eos, tool = [7, 8, 9] * 11, list(range(10, 43)), 0, 1, 5
    called = [
        token for three in range(0, 33, 3) for token in [*loop[three : three + 3], tool]
    ]  # a tool after each piece
    rows = [[*loop, eos], [*counting, eos], called, loop, [*counting, tool, *[tool] * 40]]
    width = max(map(len, rows))
    id_BT = torch.tensor([row + [padding] * (width - len(row)) for row in rows])
    batch = {
        "completion_ids": id_BT,
        "completion_mask": (id_BT != padding).long(),
        "tool_mask": (id_BT != tool).long(),
        "teacher_number": torch.zeros(5, dtype=torch.long),
    }
    rollout = rollout_from_trl(batch, [eos, padding], 1, None, torch.ones(1), World())
    assert rollout.looped_B.tolist() == [True, False, True, True, False]
    assert rollout.finished_B.tolist() == [True, True, False, False, False]
