"""What is logged, and the table of completions."""

import torch
from support.trainers import furthest, parameters, sampling_trainer

from fire_opd_trl.demo import task


def test_the_completions_table_says_what_was_kept(tmp_path):
    trainer = sampling_trainer(tmp_path, log_completions=True, num_completions_to_print=1)
    trainer.train()
    import pandas as pd

    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert len(table) == 8 and table["kept"].sum() == 7  # floor(0.2 * 8) = 1 is dropped
    assert table.loc[~table["kept"], "teacher_logp"].item() == table["teacher_logp"].min()
    assert "no_reward" not in table


def test_without_rewards_the_logs_say_nothing_of_rewards(tmp_path):
    trainer = sampling_trainer(tmp_path)
    trainer.train()
    assert not [name for log in trainer.state.log_history for name in log if "reward" in name]
    assert trainer._logs["rewards"] == {}
    assert len(trainer._logs["advantages"]) == len(trainer._logs["extra"]["kept"]) == 8


def test_rewards_are_logged_and_do_not_train_unless_mixed_in(tmp_path):
    ends = {}
    for name, rewards, coefficient in (("none", None, 0.0), ("logged", 1, 0.0), ("mixed", 1, 0.5)):
        torch.manual_seed(0)
        reward_funcs = [task.exact_match] if rewards else None
        trainer = sampling_trainer(
            tmp_path / name, reward_funcs=reward_funcs, num_generations=4, reward_coef=coefficient, rows=16
        )
        trainer.train()
        ends[name] = parameters(trainer)
        assert ("reward" in trainer.state.log_history[0]) == bool(rewards)
    assert furthest(ends["none"], ends["logged"]) == 0.0
    assert furthest(ends["logged"], ends["mixed"]) > 1e-5
