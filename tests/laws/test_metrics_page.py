"""docs/metrics.md has a row for every key that a run logs, and no row for a key that none does."""

import re
from pathlib import Path

import pytest
from support.trainers import sampling_trainer
from support.worker import trained
from transformers import TrainerCallback

from fire_opd_trl.demo import task


ROOT = Path(__file__).parents[2]
# Rows of keys that no run here logs: the test file that shows them, or the reason.
ELSEWHERE = {
    **{
        f"accuracy/{{task}}/{name}": "tests/evaluation/evaluate/test_accuracy.py"
        for name in ("avg@{n}", "stderr", "truncated", "no_answer", "ungraded", "tokens", "seconds")
    },
    "aux_loss": "tests/trainer/test_mixtures.py",
    "fire/empty_steps": "tests/trainer/test_callbacks.py",
    "fire/keep_ratio_looped": "no answer to the embedded task loops; tests/stages/test_metrics.py has some that do",
    "fire/left_out": "tests/preflight/test_streams.py",
    "fire/sampling_gap": "tests/engine/test_colocate.py",
    "fire/sampling_kl": "tests/rollouts/test_engine_gap.py",
    "fire/sampling_unknown": "tests/rollouts/test_engine_gap.py",
    "sick/{watchdog}": "tests/trainer/test_watchdogs.py",
    "tools/call_frequency": "TRL logs it where the student has tools",
    "tools/failure_frequency": "TRL logs it where the student has tools",
    "sampling/sampling_logp_difference/{mean|max}": "TRL logs it with vLLM, which these tests do not need",
    "sampling/importance_sampling_ratio/{min|mean|max}": "TRL logs it with vLLM, which these tests do not need",
    "profiling/Time taken: {function}": "TRL sends it to wandb and MLflow alone, past the trainer's logs",
    "num_input_tokens_seen": "transformers logs it with include_num_input_tokens_seen",
    "train_tokens_per_second": "transformers logs it with include_num_input_tokens_seen",
}


class Tracker(TrainerCallback):
    """What wandb, trackio and TensorBoard are to a trainer: a callback that is given each log."""

    def __init__(self):
        self.logs: list[dict] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def rows_of_the_page() -> list[str]:
    """The key of each row, from the tables whose first column is called so."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    tables = re.findall(r"^\| key \|.*\n\|[ -|]*\n((?:\|.*\n)+)", text, re.M)
    rows = [row.replace("\\|", "|") for table in tables for row in table.splitlines()]  # Markdown's way to write it
    return [re.match(r"\| `([^`]+)`", row)[1] for row in rows]


def pattern(row: str) -> str:
    """What keys a row is about: `{mean|max}` is one of these words, `{teacher}` any name."""
    parts = re.split(r"\{([^}]*)\}", row)  # what stands in braces has odd places
    parts[::2] = [re.escape(part) for part in parts[::2]]
    parts[1::2] = [f"({part})" if "|" in part else "[^/]+" for part in parts[1::2]]
    return "".join(parts)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[list[dict]]:
    """The logs of two small runs that between them do nearly everything, as a tracker is given them."""
    tracker, other = Tracker(), Tracker()
    trainer = sampling_trainer(
        tmp_path_factory.mktemp("rewarded"),
        rows=16,
        max_steps=2,
        reward_funcs=[task.exact_match],
        num_generations=4,
        num_iterations=2,
        beta=0.01,
        evaluates=True,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.add_callback(tracker)
    trainer.train()
    case = {"rows": 32, "batch": 16, "accumulation": 2, "method": "eopd", "two_teachers": True, "max_steps": 1}
    trained(case, str(tmp_path_factory.mktemp("teachers")), callbacks=[other])
    return [tracker.logs, other.logs]


def test_the_page_has_a_row_for_every_key_that_a_run_logs_and_every_row_is_of_such_a_key(runs):
    rows = rows_of_the_page()
    assert len(rows) == len(set(rows)) > 60
    assert "eval_{key}" in rows
    keys = {key for logs in runs for log in logs for key in log}
    asked = {row: {key for key in keys if re.fullmatch(f"(eval_)?{pattern(row)}", key)} for row in rows}
    assert keys - set().union(*asked.values()) == set(), "docs/metrics.md has no row for them"
    never = {row for row, found in asked.items() if not found} - {"eval_{key}"}
    assert never == set(ELSEWHERE), "rows of keys that no run logs, and the reasons for it"


def test_what_no_run_here_logs_is_shown_by_another_test():
    for key, where in ELSEWHERE.items():
        named = key.split("{")[0].removeprefix("fire/")
        assert not where.startswith("tests/") or named in (ROOT / where).read_text(), key


def test_every_number_reaches_the_trackers_and_metrics_of_a_window_come_once_a_window(runs):
    steps = [log for log in runs[0] if "grad_norm" in log]
    assert len(steps) == 2  # of one window, since num_iterations=2
    assert all(isinstance(value, int | float | None) for log in runs[0] for value in log.values())
    for key in ("fire/looped_ratio", "fire/advantage_top_decile", "fire/keep_ratio", "time/rollout"):
        assert [key in log for log in steps] == [True, False]  # its first step
    for key in ("tokens_per_second", "share/rollout", "share/score", "share/update", "share/other"):
        assert [key in log for log in steps] == [False, True]  # its last one
    shares = [steps[1][f"share/{phase}"] for phase in ("rollout", "score", "update", "other")]
    assert sum(shares) == pytest.approx(1) and min(shares) > 0
