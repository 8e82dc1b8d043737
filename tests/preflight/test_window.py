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


ONE_ROW_EACH = {"method": "fire", "drop_fraction": 0.2, "per_device_train_batch_size": 1}


def test_micro_batches_that_the_filter_leaves_empty_are_counted_and_a_split_without_them_is_proposed():
    config = {**ONE_ROW_EACH, "gradient_accumulation_steps": 20}
    # 20 rows, 16 are kept, in 20 micro-batches: 4 have none. In 5 micro-batches: 3.2 rows each, x 1.1 = 3.5.
    assert said(looked(rows=[{"prompt": "1+1="}] * 20, **config))["fillers"] == (
        "warning",
        "of the 20 micro-batches of an optimizer step, a rank has no row for 4 in the mean; each still costs a "
        "forward and a backward. Set per_device_train_batch_size=4, gradient_accumulation_steps=5: the same window in "
        "4 times fewer forwards, none of them empty. Short rows then share a micro-batch, and the longest row keeps "
        "one to itself, so that the peak of memory is the same where the longest row has at least 4 times the tokens "
        "of the mean row",
    )


@pytest.mark.parametrize(
    ("config", "proposed"),
    [
        ({"gradient_accumulation_steps": 10}, "per_device_train_batch_size=2, gradient_accumulation_steps=5:"),
        (  # two optimizer steps: the window is kept by steps_per_generation
            {"gradient_accumulation_steps": 20, "steps_per_generation": 40},
            "per_device_train_batch_size=4, gradient_accumulation_steps=5, steps_per_generation=10:",
        ),
        ({"gradient_accumulation_steps": 5}, "Raise per_device_train_batch_size and lower gradient_accumulation"),
        ({"gradient_accumulation_steps": 20, "drop_fraction": 0.8}, "Raise per_device_train_batch_size and lower"),
    ],
)
def test_a_split_that_is_proposed_keeps_the_window_and_has_no_empty_micro_batch(config, proposed):
    outcome, text = said(looked(rows=[{"prompt": "1+1="}] * 40, **{**ONE_ROW_EACH, **config}))["fillers"]
    assert outcome == "warning" and proposed in text


@pytest.mark.parametrize(
    "config",
    [
        {"drop_fraction": 0.0},
        {"drop_fraction": 0.05},  # one of 20: few
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 5},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1},  # there is no other split
    ],
)
def test_few_or_no_empty_micro_batches_are_no_warning(config):
    config = {**ONE_ROW_EACH, "gradient_accumulation_steps": 20, **config}
    assert "fillers" not in said(looked(rows=[{"prompt": "1+1="}] * 20, **config))
