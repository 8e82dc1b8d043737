"""What fits and what is cheapest, with a memory that is simple enough to see it."""

from dataclasses import replace

import pytest
from support.plans import CARD, EXACT, MODEL, RUN, moved

from fire_opd_trl.preflight.plan import fit
from fire_opd_trl.preflight.plan.fit import (
    Plan,
    changed_settings,
    fitted,
    largest_budget,
    largest_rows,
    placed,
    scaled,
)
from fire_opd_trl.preflight.plan.run import Engine, Placed
from fire_opd_trl.preflight.plan.seconds import PHASES


TEACHER = {"sharded": 100, "replicated": 800, "offload": 0}


@pytest.fixture(autouse=True)
def simple_memory(monkeypatch):
    """A hundred bytes a row in the update, one a token in scoring, and the teacher as it is placed."""

    def memory(run, card):
        (teacher,) = run.teachers.values()
        parts = {"teacher": TEACHER[teacher.placement]}
        return {
            "rollout": parts,
            "teacher scoring": {**parts, "tokens": run.scoring_token_budget},
            "student scoring": {**parts, "tokens": run.scoring_token_budget},
            "update": {**parts, "rows": 100 * run.rows * (1 if run.gradient_checkpointing else 10)},
        }

    monkeypatch.setattr(fit, "memory", memory)


def plan(run=RUN, room: int = 10_000) -> Plan:
    return Plan(run, replace(CARD, memory=room), EXACT, steps=100, price=3.0)


EIGHT = replace(RUN, rows=2, accumulation=4, steps_per_generation=4)


def test_the_peak_is_that_of_the_largest_phase():
    assert plan().peaks == dict(zip(PHASES, (100, 106, 106, 300), strict=True))
    assert (plan().peak, plan().peak_phase, plan().fits) == (300, "update", True)
    assert not plan(room=299).fits and plan(room=300).fits
    reserved = Plan(RUN, replace(CARD, memory=350), replace(EXACT, reserve=60))
    assert reserved.room == 290 and not reserved.fits


def test_an_engine_whose_weights_do_not_fit_does_not_fit():
    assert plan(replace(RUN, engine=Engine("colocate", memory=0.3))).fits  # 3000 for weights of 2000
    assert not plan(replace(RUN, engine=Engine("colocate", memory=0.19))).fits


def test_hours_cards_and_money():
    whole = plan()
    assert whole.hours == pytest.approx(100 * whole.step_seconds / 3600)
    assert whole.card_hours == pytest.approx(8 * whole.hours)
    served = plan(replace(RUN, engine=Engine("server", memory=0.9, gpus=4)))
    assert served.cards == 12 and replace(whole, steps=None).hours is None


def test_the_largest_micro_batch_divides_the_window():
    assert largest_rows(plan(EIGHT, room=100 + 799)) == 4  # 8 would need 900
    assert largest_rows(plan(EIGHT, room=900)) == 8
    assert largest_rows(plan(EIGHT, room=199)) is None


def test_the_largest_budget_is_a_power_of_two_and_no_larger_than_is_of_use():
    long = replace(RUN, completion_longest=4000, completion_mean=2000)  # two rows have at most 8004 tokens
    assert largest_budget(plan(long, room=4500)) == 4096
    assert largest_budget(plan(long, room=1_000_000)) == 8192
    assert largest_budget(plan(long, room=2000)) is None


def test_a_placement_that_cannot_be_is_not_compared():
    assert list(placed(plan())) == ["sharded", "replicated", "offload"]
    assert list(placed(plan(moved("replicated", sharding="zero2")))) == ["replicated", "offload"]
    packed = replace(RUN, teachers={"teacher": Placed(MODEL, 4.5, "replicated")})
    assert placed(plan(packed)) == {}
    itself = replace(RUN, teachers={"teacher": Placed(MODEL, 16, "student")})
    assert placed(plan(itself)) == {}


def test_the_cheapest_is_fastest_of_those_that_fit():
    plans = placed(plan())
    assert fit.cheapest(plans, "sharded") == "replicated"  # nothing comes over links
    assert fit.cheapest(placed(plan(room=700)), "sharded") == "sharded"
    assert fit.cheapest(placed(plan(room=1)), "sharded") is None


def test_what_is_alike_stays():
    alike = {"a": plan(), "b": plan(), "c": plan(moved("replicated"), room=10)}
    assert fit.cheapest(alike, "b") == "b"
    assert fit.cheapest({**alike, "b": plan(replace(RUN, gradient_checkpointing=True, rows=1))}, "c") == "b"


def test_other_numbers_of_cards_keep_the_window():
    for gpus, rows, accumulation in ((4, 2, 8), (8, 2, 4), (16, 2, 2), (64, 1, 1)):
        run = scaled(plan(EIGHT), gpus).run
        assert (run.gpus, run.rows, run.accumulation, run.window) == (gpus, rows, accumulation, 64)
    assert scaled(plan(EIGHT), 128) is None and scaled(plan(EIGHT), 24) is None
    assert scaled(plan(replace(EIGHT, engine=Engine("colocate", tensor_parallel=8))), 4) is None


def test_a_window_of_several_steps_keeps_them():
    run = scaled(plan(replace(EIGHT, steps_per_generation=8)), 4).run
    assert (run.accumulation, run.steps_per_generation) == (8, 16)


def test_settings_that_fit_are_proposed():
    tight = plan(replace(EIGHT, rows=8, accumulation=1, steps_per_generation=1), room=899)
    assert not tight.fits
    best = fitted(tight)
    assert best.fits and best.run.rows <= 8 and best.run.window == tight.run.window
    assert changed_settings(tight.run, best.run)["per_device_train_batch_size"] == best.run.rows
    assert fitted(plan(room=10)) is None


def test_an_engine_gets_a_share_that_holds_its_weights():
    small = plan(replace(RUN, engine=Engine("colocate", memory=0.05)))
    assert not small.fits
    best = fitted(small)
    assert best.fits and changed_settings(small.run, best.run)["vllm_gpu_memory_utilization"] == best.run.engine.memory


def test_what_is_cheapest_already_is_not_changed():
    best = fitted(plan(EIGHT))
    assert changed_settings(best.run, fitted(plan(best.run)).run) == {}
