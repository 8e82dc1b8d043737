"""Seconds of each phase, counted by hand."""

from dataclasses import replace

import pytest
from support.plans import CARD, EXACT, MODEL, RUN, moved

from fire_opd_trl.preflight.plan.cost import Work
from fire_opd_trl.preflight.plan.hardware import HARDWARE
from fire_opd_trl.preflight.plan.run import Engine
from fire_opd_trl.preflight.plan.seconds import (
    Cost,
    completion_lengths,
    concurrent_rows,
    engine_decode,
    gather,
    operations,
    read_weights,
    rollout,
    seconds,
    static_decode,
    student_scoring,
    teacher_scoring,
    update,
    with_longest,
    work_of,
)


# Of two rows of 6 tokens: 900 parameters of the layers on 12 tokens, 100 of the head on 8, and in each of 2 layers 2
# heads of 3 with 2 products for each of 21 pairs a row.
FORWARD = 2 * 900 * 12 + 2 * 100 * 8 + 2 * 2 * 3 * 2 * 2 * 42
GATHER = 1000 * 2 * 7 / 8 / 1e5  # 1000 weights of 2 bytes, of which 7 of 8 parts are elsewhere


def test_operations_of_a_forward_counted_by_hand():
    work = work_of(RUN, [4, 2])
    assert work == Work(rows=2, tokens=10, padded=10, pairs=21 + 10, scored=6)
    assert operations(MODEL, work) == 2 * 900 * 10 + 2 * 100 * 6 + 4 * 2 * 2 * 3 * 31 == 20688
    assert operations(MODEL, work_of(RUN, [4, 4])) == FORWARD == 25216


def test_a_gather_uses_the_network_where_there_are_several_machines():
    assert gather(1000, 2, RUN, CARD, EXACT) == pytest.approx(GATHER) == pytest.approx(0.0175)
    # Eight cards of a machine share what comes over 8 x 1e4 bytes a second of network.
    assert gather(1000, 2, replace(RUN, gpus=16), CARD, EXACT) == pytest.approx(2000 * 15 / 16 / 8e4)
    assert gather(1000, 2, replace(RUN, gpus=1), CARD, EXACT) == 0


def test_a_partitioned_teacher_comes_for_every_forward():
    two = teacher_scoring(RUN, CARD, EXACT)  # 12 tokens under a budget of 6
    assert (two.compute, two.links) == (pytest.approx(0.025216), pytest.approx(2 * GATHER))
    one = teacher_scoring(replace(RUN, scoring_token_budget=12), CARD, EXACT)
    assert one.links == pytest.approx(GATHER) and one.dominant == "operations" and two.dominant == "links"
    half = teacher_scoring(RUN, CARD, replace(EXACT, overlap=0.5))
    assert half.seconds == pytest.approx(0.025216 + GATHER)  # one of two gathers hides behind the arithmetic


def test_a_teacher_elsewhere():
    assert teacher_scoring(moved("replicated"), CARD, EXACT).links == 0
    whole = 2000 / 1e4  # from the host
    assert teacher_scoring(moved("offload"), CARD, EXACT).links == pytest.approx(2 * (whole / 8 + GATHER))
    assert teacher_scoring(moved("offload", sharding="zero2"), CARD, EXACT).links == pytest.approx(2 * whole)


def test_two_teachers_read_half_of_the_rows_each():
    (teacher,) = RUN.teachers.values()
    two = replace(RUN, teachers={"a": teacher, "b": teacher})
    assert teacher_scoring(two, CARD, EXACT).compute == pytest.approx(FORWARD / 1e6)
    assert teacher_scoring(two, CARD, EXACT).links == pytest.approx(2 * GATHER)


def test_the_student_is_scored_and_the_reference_beside_it():
    (teacher,) = RUN.teachers.values()
    alone = student_scoring(RUN, CARD, EXACT)
    assert (alone.compute, alone.links) == (pytest.approx(FORWARD / 1e6), pytest.approx(2 * GATHER))
    assert student_scoring(replace(RUN, reference=teacher), CARD, EXACT).seconds == pytest.approx(2 * alone.seconds)


def test_an_update_of_the_rows_that_are_left():
    cost = update(replace(RUN, drop_fraction=0.25), CARD, EXACT)
    assert cost.compute == pytest.approx(4 * 0.75 * FORWARD / 1e6)  # forward, twice that, and once again
    assert cost.links == pytest.approx(3 * GATHER + GATHER)  # weights three times, gradients once
    assert cost.memory == pytest.approx(7 * 4 * 1000 / 8 / 1e6)  # AdamW on an eighth
    without = update(replace(RUN, gradient_checkpointing=False), CARD, EXACT)
    assert without.compute == pytest.approx(3 * FORWARD / 1e6) and without.links == pytest.approx(3 * GATHER)


def test_more_micro_batches_gather_more_often_but_whole_models_reduce_once():
    four = replace(RUN, rows=1, accumulation=2, steps_per_generation=2)
    assert update(four, CARD, EXACT).links == pytest.approx(2 * update(RUN, CARD, EXACT).links)
    whole = replace(four, sharding="none")
    assert update(whole, CARD, EXACT).links == update(replace(RUN, sharding="none"), CARD, EXACT).links
    assert update(whole, CARD, EXACT).links == pytest.approx(2 * GATHER)  # an all-reduce is two of them


def test_an_adapter_needs_no_gradients_of_weights():
    cost = update(replace(RUN, adapter=10, gradient_checkpointing=False), CARD, EXACT)
    assert cost.compute == pytest.approx(2 * FORWARD / 1e6)
    assert cost.memory == pytest.approx(7 * 4 * 10 / 8 / 1e6)


def test_several_optimizer_steps_share_a_window():
    two = replace(RUN, rows=1, accumulation=1, steps_per_generation=2)  # the same two rows
    for phase in (rollout, teacher_scoring, student_scoring):
        assert phase(two, CARD, EXACT).seconds == pytest.approx(phase(RUN, CARD, EXACT).seconds / 2)


def test_decoding_reads_weights_and_cache_or_computes():
    engine = Engine("colocate", memory=0.5)
    run = replace(RUN, engine=engine)
    # In the mean of four steps two rows have 2 + 2 tokens, each with keys and values of 2 layers x 3 x 2 bytes.
    read = (1000 * 2 + 2 * 4 * 2 * 2 * 3 * 2) / 1e6
    fast = replace(CARD, operations=1e9)
    assert engine_decode(run, engine, [4, 4], fast, EXACT).memory == pytest.approx(4 * read)
    slow = engine_decode(run, engine, [4, 4], CARD, EXACT)
    assert slow.compute == pytest.approx(4 * 2 * 1000 * 2 / 1e6) and slow.memory == 0
    late = engine_decode(run, engine, [4, 4], fast, replace(EXACT, decode_overhead=0.001))
    assert late.seconds == pytest.approx(4 * read + 0.004)


def test_a_full_cache_makes_rows_wait():
    room = 2000 + (2 + 2) * 24 + 1  # weights, and half of one row's keys and values
    engine = Engine("colocate", memory=room / CARD.memory)
    run = replace(RUN, engine=engine)
    assert concurrent_rows(run, engine, [4, 4], CARD) == 1
    assert concurrent_rows(run, replace(engine, memory=1.0), [4, 4], CARD) == 2
    assert concurrent_rows(run, replace(engine, memory=0.001), [4, 4], CARD) == 0
    fast = replace(CARD, operations=1e9)
    waits = engine_decode(run, engine, [4, 4], fast, EXACT).seconds
    assert waits == pytest.approx(8 * (2000 + 4 * 24) / 1e6)  # one after the other
    assert engine_decode(run, replace(engine, memory=0.001), [4, 4], CARD, EXACT).seconds == float("inf")


def test_without_an_engine_all_rows_are_computed_until_the_longest_ends():
    run = replace(RUN, device="cuda")
    launched = static_decode(run, [4, 1], CARD, replace(EXACT, eager_layer=0.5))
    assert launched.seconds == pytest.approx(4 * 2 * 0.5)  # four steps of two layers
    read = (1000 * 2 + 2 * (2 + 2) * 24) / 1e6
    assert static_decode(run, [4, 1], replace(CARD, operations=1e9), EXACT).memory == pytest.approx(4 * read)


def test_a_mixture_reads_more_of_its_experts_the_more_rows_it_has():
    mixture = replace(MODEL, active=400, experts=4, experts_per_token=1)
    # 600 parameters are not active: three of four parts of the experts, which have 800. A token uses 200 of them.
    assert read_weights(mixture, 1, 2) == pytest.approx(400 * 2)
    assert read_weights(mixture, 2, 2) == pytest.approx((200 + 800 * 7 / 16) * 2)
    assert read_weights(mixture, 1000, 2) == pytest.approx(1000 * 2)


def test_lengths_have_their_mean_their_limit_and_their_tail():
    run = replace(RUN, completion_mean=100, completion_longest=100_000)
    lengths = completion_lengths(128, run, spread=0.6)
    assert sum(lengths) / 128 == pytest.approx(100) and lengths == sorted(lengths, reverse=True)
    # The highest of 128 quantiles is 2.66 standard deviations out: exp(0.6 * 2.66 - 0.6 ** 2 / 2) = 4.1.
    assert lengths[0] == pytest.approx(412, rel=0.02)
    cut = completion_lengths(128, replace(run, completion_longest=150), spread=0.6)
    assert max(cut) == 150 and sum(cut) / 128 == pytest.approx(100)


def test_a_step_is_its_phases_and_costs_add_up():
    costs = seconds(RUN, CARD, EXACT)
    assert list(costs) == ["rollout", "teacher scoring", "student scoring", "update"]
    total = Cost(1, 2, 3, 1) + Cost(1, 0, 0, 0)
    assert total.seconds == 6 and total.times(2).seconds == 12 and total.dominant == "operations"
    assert Cost().dominant == "nothing"


def test_all_ranks_wait_for_the_longest_completion_of_the_window():
    run = replace(RUN, rows=128, gpus=8, completion_mean=100, completion_longest=100_000)
    rank = completion_lengths(128, run, spread=0.6)
    waited = with_longest(rank, run, spread=0.6)
    # Of 1024 rows the highest quantile is 3.30 standard deviations out, of 128 it is 2.66.
    assert waited[0] / rank[0] == pytest.approx(2.718281828 ** (0.6 * (3.297 - 2.660)), rel=0.01)
    assert waited[1:] == rank[1:]
    assert with_longest(rank, replace(run, completion_longest=500), spread=0.6)[0] == 500
    assert with_longest([4.0, 4.0], RUN, spread=0.6) == [4.0, 4.0]  # all are as long as can be


def test_a_window_that_is_trained_on_twice_is_sampled_and_scored_once():
    once, twice = (seconds(replace(RUN, num_iterations=times), CARD, EXACT) for times in (1, 2))
    for phase in ("rollout", "teacher scoring", "student scoring"):
        assert twice[phase].seconds == pytest.approx(once[phase].seconds / 2)
    assert twice["update"].seconds == pytest.approx(once["update"].seconds)


def test_a_server_takes_as_many_rows_as_vllm_tells_it_for_the_card():
    run = replace(RUN, engine=Engine("server", memory=0.9, gpus=1))
    cards = [(HARDWARE["h100"], 1024), (HARDWARE["a100"], 256), (HARDWARE["rtx4090"], 256)]
    for card, rows in [*cards, (replace(HARDWARE["a100"], name="NVIDIA A100-SXM4-80GB"), 256)]:  # as it is calibrated
        assert concurrent_rows(run, run.engine, [4.0] * 5000, card) == rows


def test_a_student_on_the_host_comes_from_there_for_every_pass():
    on_host = replace(RUN, offload_parameters=True)
    own = 2000 / 8 / 1e4  # an eighth of 1000 weights of 2 bytes, at the host's 1e4 bytes a second
    for phase, passes in ((rollout, 1), (student_scoring, 2), (update, 3)):
        more = phase(on_host, CARD, EXACT).links - phase(RUN, CARD, EXACT).links
        assert more == pytest.approx(passes * own)  # two forwards of scoring; forward, again, and backward


def test_whole_distributions_need_the_heads_once_more():
    compared = replace(RUN, whole_distributions=True, divergence=True)
    # The teacher's head forward and backward, and the student's forward: 3 x 100 parameters for each of 8 tokens.
    more = update(compared, CARD, EXACT).compute - update(RUN, CARD, EXACT).compute
    assert more == pytest.approx(2 * 300 * 8 / 1e6)
    # A mixture of both is found in a second pass over both heads.
    mixed = replace(compared, mixture=0.5)
    assert update(mixed, CARD, EXACT).compute - update(RUN, CARD, EXACT).compute == pytest.approx(2 * 500 * 8 / 1e6)
