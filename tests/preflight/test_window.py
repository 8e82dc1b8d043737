"""The window in numbers, and what the filter drops of it."""

import re

import pytest
from support.inspections import TEACHER, looked, said

from fire_opd_trl.methods import METHODS


def test_the_window_is_counted():
    rows = [{"prompt": "123+456="}] * 10 + [{"prompt": "1+1="}]
    config = {
        "method": "fire", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_generations": 2,
        "steps_per_generation": 4, "drop_fraction": 0.3, "scoring_token_budget": 100, "max_completion_length": 20,
    }  # fmt: skip
    findings = said(looked(rows=rows, **config))
    assert findings["dataset"] == ("ok", "11 rows, the longest prompt has 8 tokens, completions up to 20")
    assert findings["window"] == (
        "ok",
        "8 trajectories = 1 process x 2 x 4 (per_device_train_batch_size x steps_per_generation): 4 prompts, 2 "
        "completions each; 2 optimizer steps; 2 windows an epoch",
    )
    assert findings["filter"] == ("ok", "fire drops 2 of 8 trajectories and updates on 6, if all are sound")
    assert findings["work"] == (  # 100 // (8 + 20) = 3 rows at once, and 8 rows
        "ok",
        "a window and rank: sampling; scoring in at most 3 forwards of 100 padded tokens under each of student + "
        "teacher; 4 micro-batches forward and backward",
    )


def test_a_method_without_a_filter_says_nothing_of_one():
    findings = said(looked())
    assert "filter" not in findings
    assert findings["work"][1].startswith("a window and rank: sampling; scoring in at most 1 forward of 16384 padded ")


@pytest.mark.parametrize(
    "given",
    [{"method": "fire", "method_kwargs": {"drop_fraction": 0.5}}, {"recipe": METHODS["fire"](drop_fraction=0.5)}],
)
def test_what_the_filter_drops_is_what_the_recipe_drops(given):
    """Also where the recipe has its arguments from elsewhere than the config's own field."""
    checked = looked(rows=[{"prompt": "1+1="}] * 8, per_device_train_batch_size=8, **given)
    assert "drops 4 of 8 trajectories" in said(checked)["filter"][1]


def test_a_filter_within_each_teacher_drops_a_share_of_each():
    rows = [{"prompt": "1+1=", "teacher_id": "a" if row < 5 else "b"} for row in range(8)]
    findings = said(looked({"a": TEACHER, "b": TEACHER}, rows=rows, per_device_train_batch_size=8,
                           method="fire", statistics_scope="teacher", drop_fraction=0.4))  # fmt: skip
    assert "drops 3 of 8 trajectories" in findings["filter"][1]  # floor(0.4 x 5) + floor(0.4 x 3)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        # 4 x 2 rows of at most 100 tokens, of each 128 numbers with 2 bytes: 204 800 bytes
        (
            {"method": "opd_full"},
            "teacher's hidden states again in the update: at most 205 kB a rank, in device memory",
        ),
        ({"method": "opd_full", "offload_teacher_states": True}, "at most 205 kB a rank, in host memory"),
        # 800 tokens, of each 16 ids and 16 log-probabilities with 4 bytes: 102 400 bytes
        ({"method": "eopd"}, "top 16 again in the update: at most 102 kB a rank"),
        ({"method": "opd"}, None),
    ],
)
def test_the_memory_of_what_the_loss_reads_of_a_teacher_is_said(config, size):
    rows = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_completion_length": 100}
    findings = said(looked(**rows, **config))
    assert ("teacher, states" in findings) == (size is not None)
    assert size is None or re.search(size, findings["teacher, states"][1])
