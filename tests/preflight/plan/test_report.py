"""A plan as a screen, as markdown and for machines."""

import json
from dataclasses import replace

import pytest
from support.plans import CARD, EXACT, MODEL, RUN

from fire_opd_trl.preflight.plan import fit, report
from fire_opd_trl.preflight.plan.fit import Plan
from fire_opd_trl.preflight.plan.run import Assumed, Engine, Placed
from fire_opd_trl.preflight.plan.seconds import PHASES


GB = 10**9


@pytest.fixture(autouse=True)
def simple_memory(monkeypatch):
    monkeypatch.setattr(fit, "memory", lambda run, card: {phase: {"weights": 3 * GB * run.rows} for phase in PHASES})


def plan(run=RUN, memory: int = 10 * GB, **changes) -> Plan:
    return Plan(run, replace(CARD, memory=memory), EXACT, **changes)


def test_the_screen_is_no_wider_than_a_hundred_columns():
    assumed = (Assumed("mean completion", 4, "an assumption", "--mean_completion"),)
    for sources in (False, True):
        screen = report.text(plan(replace(RUN, assumed=assumed), steps=10, price=2.5), sources=sources, fit=True)
        assert max(map(len, screen.splitlines())) <= 100
    assert "--mean_completion 4" in screen and "by hand" in screen
    for head in ("memory of a card, GB", "time of a step", "teacher's weights", "cards"):
        assert head in screen


def test_what_does_not_fit_is_said_with_what_to_do():
    assert "Fits on 8 x hand: 6.0 of 10.0 GB" in report.verdict(plan())
    assert "Does not fit on 8 x hand: 6.0 of 5.0 GB" in report.verdict(plan(memory=5 * GB))
    stuck = plan(replace(RUN, engine=Engine("colocate", memory=1e-7)))
    assert "the engine's share, 1e-07 of a card, does not hold its weights" in report.verdict(stuck)
    assert "--fit" in report.verdict(plan(memory=5 * GB))
    assert "per_device_train_batch_size: 1" in report.proposal(plan(memory=5 * GB))
    assert report.proposal(plan(memory=GB)).startswith("# Nothing fits")


def test_hours_and_money_of_the_whole_run():
    one = plan(steps=72_000, price=2)
    hours = 20 * one.step_seconds
    assert one.hours == pytest.approx(hours)
    assert f"{8 * hours:.0f} card-hours" in report.whole_line(one) and "at 2 a card-hour" in report.whole_line(one)
    assert "100 steps" in report.whole_line(plan())
    hundred = plan(price=1e6)
    money = 8 * 100 * hundred.step_seconds / 3600 * 1e6
    assert f"{money:,.0f} at 1e+06 a card-hour" in report.whole_line(hundred)
    assert "64 cards: 16 completions cannot be divided by 64." in report.text(plan())
    assert "64 cards: 16 completions cannot be divided by 64." in report.markdown(plan())


def test_machines_get_bytes_and_seconds():
    told = json.loads(report.machine(plan(steps=3), fit=True))
    assert told["peak_bytes"] == 6 * GB and told["fits"] and told["largest_per_device_train_batch_size"] == 2
    assert told["step_seconds"] == pytest.approx(sum(told["seconds"][phase]["seconds"] for phase in PHASES))
    assert set(told["teacher_placements"]) == {"sharded", "replicated", "offload"}
    assert told["cards"]["16"]["fits"] and told["cards"]["64"] is None  # 16 rows cannot be cut for 64 cards
    assert all(assumption["source"] for assumption in told["assumptions"])


def test_an_engine_without_room_never_ends_and_json_says_null():
    stuck = plan(replace(RUN, engine=Engine("colocate", memory=1e-7)))
    stuck = replace(stuck, steps=3, price=2.0)

    def never(constant):
        raise AssertionError(f"{constant} is no JSON")

    told = json.loads(report.machine(stuck), parse_constant=never)
    assert (told["step_seconds"], told["hours"], told["money"]) == (None, None, None)
    assert "never" in report.text(stuck) and not stuck.fits
    assert "inf" not in [cell for row in report.scale_rows(stuck) for cell in row]


def test_markdown_has_whole_tables():
    lines = [line for line in report.markdown(plan()).splitlines() if line.startswith("|")]
    widths = {line.count("|") for line in lines[:3]}
    assert len(widths) == 1 and "| --- | ---: |" in "\n".join(lines)


@pytest.mark.parametrize(
    "seconds, said",
    [
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (42, "42 s"),
        (99.4, "99 s"),
        (150, "2.5 min"),
        (5999, "100 min"),
        (9000, "2.5 h"),
    ],
)
def test_durations(seconds, said):
    assert report.duration(seconds) == said


def test_a_model_without_a_teacher_has_no_placements():
    alone = plan(replace(RUN, teachers={}, student=MODEL))
    assert "teacher's weights" not in report.text(alone) and "no teacher" in report.title(alone)


def test_what_is_left_out_is_said_everywhere():
    assert report.left_out(plan()) == [] and "Images" not in report.text(plan())
    teacher = replace(RUN.teachers["teacher"], shape=replace(MODEL, name="teacher", sees_images=True))
    prompts, itself = "The teacher's own prompts (teacher_prompt_column) are planned as long", Placed(MODEL)
    for run, said in (
        (replace(RUN, teacher_prompts=True), prompts),
        (replace(RUN, teachers={"teacher": itself}), prompts),  # a model that teaches itself
        (replace(RUN, student=replace(MODEL, sees_images=True)), "Images are not planned: add the tokens of an image"),
        (replace(RUN, teachers={"teacher": teacher}), "Images are not planned: add the tokens of an image"),
        (replace(RUN, eager=True), "The scores of eager attention are in the memory of a card, and not in the time"),
    ):
        assert [line[: len(said)] for line in report.left_out(plan(run))] == [said]
        screen = report.text(plan(run))
        assert said in " ".join(screen.split()) and max(map(len, screen.splitlines())) <= 100
        assert said in report.markdown(plan(run)) and said in report.machine(plan(run))


def test_rows_that_are_longer_than_a_model_reads_are_named():
    def told(longest, **changes):  # behind prompts of 2 tokens
        return report.machine(plan(replace(RUN, completion_longest=longest, **changes)))

    assert json.loads(told(62))["too_long"] == [] and "lower max" not in told(62)
    said = "hand reads only 64 tokens: lower max_completion_length."
    one = plan(replace(RUN, completion_longest=63))
    assert json.loads(told(63))["too_long"] == [said]
    assert said in report.verdict(one) and said in report.verdict(replace(one, hardware=replace(CARD, memory=1)))
    assert report.text(one).count("reads only") == report.markdown(one).count("reads only") == 1
    # A prompt whose length nobody has said warns of nothing; a completion does.
    guess = (Assumed("longest prompt", 2, "an assumption", "--longest_prompt"),)
    assert json.loads(told(64, assumed=guess))["too_long"] == []
    assert json.loads(told(65, assumed=guess))["too_long"] == [said]


def test_rows_that_are_longer_than_the_engine_is_set_up_for_are_named():
    def said(mode, longest):  # behind prompts of 2 tokens
        return report.verdict(plan(replace(RUN, completion_longest=longest, engine=Engine(mode, length=32))))

    assert "vLLM ends a row after 32 tokens, its prompt among them" in said("colocate", 31)
    assert "vLLM ends" not in said("colocate", 30) and "vLLM ends" not in said("server", 31)
