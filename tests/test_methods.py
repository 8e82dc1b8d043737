"""The recipes: the defaults of the literature, what each refuses, and the random control of each."""

import inspect
import re
from dataclasses import replace

import pytest
import torch
from support.recipes import EXPECTED
from support.windows import INF, NAN, emptied, hash_in_plain_python, on_ranks, parts_of, rows_of, window

from fire_opd_trl import METHODS, Context, Divergence, Method, Signal, control, distil
from fire_opd_trl.methods import CONTROLS, PAPERS
from fire_opd_trl.stages import early_tokens, keep_all, log_ratio, uniform


CONTEXT = Context(seed=7)


# Defaults


def test_every_method_stands_in_the_literature():
    assert set(EXPECTED) == set(METHODS) and all(expected.section for expected in EXPECTED.values())


@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_those_of_the_literature(name):
    parameters = inspect.signature(METHODS[name]).parameters
    assert {key: parameter.default for key, parameter in parameters.items()} == EXPECTED[name].defaults
    method = METHODS[name]()
    assert method.name == name and inspect.getdoc(METHODS[name])
    settings = EXPECTED[name].defaults
    if method.divergence:
        assert method.divergence.top_k == settings.get("top_k", 0)
        assert method.divergence.mixture == settings.get("mixture", 1.0)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_asks_for_no_more_than_it_reads(name):
    method, expected = METHODS[name](), EXPECTED[name]
    assert sorted(method.signals) == sorted(("teacher_logp_BT", "student_logp_BT", *expected.reads))
    assert method.needs == expected.needs


def test_a_method_over_groups_needs_them():
    assert METHODS["opdvr"](group=True).needs == ("reward_B", "group_B")


def test_the_settings_of_a_divergence_reach_it():
    assert METHODS["eopd"](top_k=3).divergence.top_k == 3
    assert METHODS["tropd"](top_k=5).divergence.top_k == 5
    assert METHODS["opd_full"](0.25).divergence == Divergence(0, 0.25)
    assert METHODS["tip"]().divergence.top_k == METHODS["fire_full"]().divergence.top_k == 0


def test_the_engine_ratio_is_applied_by_all_methods_but_the_released_one():
    without = [name for name, recipe in METHODS.items() if not recipe().rollout_correction]
    assert without == ["fire_released"]


# Refusals

FIRES = ("fire", "fire_released", "fire_full", "random")
WRONG = [
    *[(name, {"drop_fraction": value}, "for example 0.2") for name in FIRES for value in (1.0, -0.1, NAN)],
    *[(n, {k: v}, "for example 1.0") for n in FIRES for k in ("confidence", "confusion") for v in (-0.1, INF, NAN)],
    *[(name, {"scope": "row"}, "batch, teacher, trajectory") for name in ("fire", "fire_full", "random")],
    ("fire", {"rows": "none"}, "hard, soft"),
    ("fire", {"tokens": "none"}, "hard, soft"),
    *[("fire", {"keep_tokens": value}, "for example 0.5") for value in (0.0, 1.1, NAN)],
    *[("fire", {"scope": scope, "rows": "soft"}, "Use scope='batch'") for scope in ("teacher", "trajectory")],
    ("fire", {"tokens": "hard", "confidence": 0, "confusion": 0}, "set confidence or confusion above 0"),
    *[("exopd", {"extrapolation": value}, "for example 1.25") for value in (-0.1, INF, NAN)],
    *[("tip", {"keep": value}, "for example 0.5") for value in (0.0, 1.1, NAN)],
    *[("tip", {"clip_quantile": value}, "for example 0.98") for value in (0.0, 1.1, NAN)],
    *[("eopd", {"threshold": value}, "for example 0.8") for value in (-0.1, INF, NAN)],
    *[("eopd", {"top_k": value}, "for example 16") for value in (0, 1025, 2.5, True)],
    *[("eopd", {"coef": value}, "for example 1.0") for value in (-0.1, INF, NAN)],
    *[("reopold", {"floor": value}, "for example 0.2") for value in (-0.1, 1.0, NAN)],
    *[("reopold", {"keep": value}, "for example 0.5") for value in (0.0, 1.1, NAN)],
    *[("reopold", {"switch": value}, "for example 0.5") for value in (-0.1, 1.1, NAN)],
    *[("uni_opd", {"margin": value}, "for example 0.4") for value in (INF, NAN)],
    ("uni_opd", {"statistic": "median"}, "mean, minmax"),
    ("uni_opd", {"direction": "up"}, "both, correct_up, incorrect_down"),
    ("uni_opd", {"calibrate": "drop"}, "shift, mask"),
    *[("opd_full", {"mixture": value}, "for example 1.0") for value in (-0.1, 1.1, NAN)],
    *[("iw_opd", {"strength": value}, "for example 0.5") for value in (-0.1, INF, NAN)],
    *[("power_opd", {"power": value}, "for example 5.0") for value in (-0.1, INF, NAN)],
    *[("gc_opd", {"strength": value}, "for example 0.1") for value in (-0.1, INF, NAN)],
    *[("gc_opd", {"largest": value}, "for example 10.0") for value in (0.0, -1.0, NAN)],
    *[("scope", {"temperature": value}, "for example 1.0") for value in (0.0, -1.0, NAN)],
    *[("opdvr", {"conflict": value}, "for example 0.0") for value in (-0.1, INF, NAN)],
    *[("tropd", {"top_k": value}, "for example 64") for value in (0, 1025, 2.5, True)],
    *[(n, {k: 1}, "True, False") for n, k in (("tip", "full"), ("scope", "imitate"), ("opdvr", "group"))],
    ("exopd", {"extrapolation": "1"}, "for example 1.25"),
    ("opdvr", {"conflict": None}, "for example 0.0"),
    ("tropd", {"outliers": "clip"}, "forward_kl, mask, opd"),
]


@pytest.mark.parametrize(("name", "wrong", "fix"), WRONG, ids=str)
def test_a_setting_without_meaning_is_refused_with_name_value_and_fix(name, wrong, fix):
    (field, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=re.escape(f"{field}={value!r}") + ".*" + re.escape(fix)):
        METHODS[name](**wrong)


def test_every_number_and_every_choice_of_a_method_can_be_refused():
    refused = {(name, field) for name, wrong, _ in WRONG for field in wrong}
    assert {(name, key) for name, expected in EXPECTED.items() for key in expected.defaults} <= refused


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fire", {"drop_fraction": 0.999, "confidence": 0, "keep_tokens": 1}),
        ("exopd", {"extrapolation": 0}),
        ("tip", {"keep": 1, "clip_quantile": 1}),
        ("reopold", {"floor": 0.999, "switch": 1}),
        ("uni_opd", {"margin": -3.0}),
        ("scope", {"temperature": INF}),
        ("opdvr", {"conflict": 2.0}),
    ],
    ids=str,
)
def test_the_ends_of_what_is_allowed_give_finite_signals(name, settings):
    signal = distil(*window(), METHODS[name](**settings), CONTEXT)
    assert torch.isfinite(signal.advantage_BT).all() and torch.isfinite(signal.weight_BT).all()


# Controls


def dealt(signal: Signal) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights of tokens and divergence, token by token."""
    divergence_BT = signal.divergence_BT
    return signal.weight_BT, torch.zeros_like(signal.weight_BT) if divergence_BT is None else divergence_BT


def pairs_of(signal: Signal, row: int, mask_BT: torch.Tensor) -> list[tuple[float, float]]:
    """What each token of a row gets, the two weights together, without their order."""
    weight_BT, divergence_BT = dealt(signal)
    return sorted(zip(weight_BT[row, mask_BT[row]].tolist(), divergence_BT[row, mask_BT[row]].tolist(), strict=True))


WEIGHING = {
    **{name: METHODS[name]() for name in ("fire", "fire_released", "fire_full", "tip", "eopd", "reopold", "iw_opd")},
    **{name: METHODS[name]() for name in ("opdvr", "tropd")},
    "fire, hard tokens": METHODS["fire"](tokens="hard"),
    "fire, soft rows": METHODS["fire"](rows="soft"),
    "tip, sampled token": METHODS["tip"](full=False),
}
FILTERING = {
    **{name: METHODS[name]() for name in ("fire", "fire_full")},
    "fire, per teacher": METHODS["fire"](scope="teacher"),
    "uni_opd, paper": METHODS["uni_opd"](calibrate="mask", statistic="minmax"),
    "opdvr, group": METHODS["opdvr"](group=True),
}
weighing = pytest.mark.parametrize("method", WEIGHING.values(), ids=WEIGHING)
filtering = pytest.mark.parametrize("method", FILTERING.values(), ids=FILTERING)


@weighing
def test_shuffled_tokens_keep_the_weights_of_their_row_in_pairs(method):
    # Weight and divergence of a token move together: a token that tropd trusts has no divergence, before and after.
    (rollout, scores), other = window(seed=2), control(method, "tokens")
    one, two = (distil(rollout, scores, m, CONTEXT) for m in (method, other))
    assert torch.equal(one.keep_B, two.keep_B) and other.filter is method.filter
    for row in range(40):
        assert pairs_of(one, row, rollout.mask_BT) == pairs_of(two, row, rollout.mask_BT)
    moved = sum(float((a != b).sum()) for a, b in zip(dealt(one), dealt(two), strict=True))
    assert moved > 20
    if one.divergence_BT is not None and method.name == "tropd":
        assert torch.equal(two.weight_BT + two.divergence_BT, rollout.mask_BT.double())


@weighing
def test_the_advantage_of_a_control_is_the_shuffled_weight_times_the_advantage_of_the_method(method):
    rollout, scores = window(seed=2)
    bare = distil(rollout, scores, replace(method, filter=keep_all, reweight=uniform, row_weight=None), CONTEXT)
    signal = distil(rollout, scores, control(method.unfiltered()), CONTEXT)
    torch.testing.assert_close(signal.advantage_BT, signal.weight_BT * bare.advantage_BT)


@filtering
@pytest.mark.parametrize("seed", range(3))
def test_a_random_filter_keeps_as_many_rows_and_other_ones(method, seed):
    (rollout, scores), other = window(seed), control(method, "filter")
    rollout = emptied(rollout, [3, 30])
    one, two = (distil(rollout, scores, m, Context(seed=seed)) for m in (method, other))
    assert one.keep_B.sum() == two.keep_B.sum() < 38 and not torch.equal(one.keep_B, two.keep_B)
    assert not two.keep_B[[3, 30]].any()
    assert other.reweight is method.reweight and other.divergence is method.divergence


@filtering
def test_over_many_seeds_a_random_filter_keeps_every_row_equally_often(method):
    (rollout, scores), other, seeds = window(), control(method, "filter"), 300
    kept_B = sum(distil(rollout, scores, other, Context(seed=seed)).keep_B.double() for seed in range(seeds)) / seeds
    share = float(distil(rollout, scores, method, CONTEXT).keep_B.double().mean())
    assert float((kept_B - share).abs().max()) < 4.5 * (share * (1 - share) / seeds) ** 0.5


@filtering
def test_a_random_filter_keeps_the_same_rows_on_any_number_of_ranks(method):
    (rollout, scores), other, sizes = window(seed=4), control(method), [17, 1, 12, 10]
    whole = distil(rollout, scores, other, CONTEXT)
    pieces = [rows_of(rollout, scores, part) for part in parts_of(sizes)]
    signals = on_ranks(4, lambda rank, world: distil(*pieces[rank], other, replace(CONTEXT, world=world)))
    assert torch.equal(torch.cat([signal.keep_B for signal in signals]), whole.keep_B)


@pytest.mark.parametrize("what", ["filter", "tokens", "both"])
def test_another_seed_is_another_control(what):
    rollout, scores = window()
    other = control(METHODS["fire"](), what)
    one, two, again = (distil(rollout, scores, other, Context(seed=seed)) for seed in (1, 2, 1))
    assert torch.equal(one.advantage_BT, again.advantage_BT) and not torch.equal(one.advantage_BT, two.advantage_BT)
    assert torch.equal(one.keep_B, two.keep_B) == (what == "tokens")


@pytest.mark.parametrize("what", ["filter", "tokens", "both"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_a_control_of_what_it_selects_or_weighs_and_of_nothing_else(name, what):
    method = METHODS[name]()
    assert control(method, "none") is method
    controls = EXPECTED[name].controls
    if controls == "none" or {controls, what} == {"filter", "tokens"}:
        with pytest.raises(
            ValueError, match=f"^control='{what}' has nothing to randomise: '{name}' .*Leave control at"
        ):
            control(method, what)
        return
    other = control(method, what)
    assert other.name == f"{name}, random {what}"
    for kept in ("signals", "score", "advantage", "rollout_correction", "needs"):
        assert getattr(other, kept) == getattr(method, kept)
    assert (other.divergence is None) == (method.divergence is None)
    if other.divergence:
        assert replace(other.divergence, weight=None) == replace(method.divergence, weight=None)


@pytest.mark.parametrize(
    "method", [METHODS["scope"](), METHODS["fire"](rows="soft")], ids=["scope", "fire, soft rows"]
)
@pytest.mark.parametrize("sizes", [[40], [17, 1, 12, 10]], ids=["one rank", "four ragged ranks"])
def test_weights_of_trajectories_change_places_over_the_whole_window(method, sizes):
    rollout, scores = window(seed=4)
    rollout, method = emptied(rollout, [3, 17, 30]), replace(method, reweight=uniform)
    pieces = [rows_of(rollout, scores, part) for part in parts_of(sizes)]

    def weights(method):
        signals = on_ranks(
            len(sizes), lambda rank, world: distil(*pieces[rank], method, replace(CONTEXT, world=world))
        )
        return torch.cat([signal.weight_BT for signal in signals])

    one_BT, two_BT = weights(method), weights(control(method, "filter"))
    one_B, two_B = (weight_BT.amax(dim=1) for weight_BT in (one_BT, two_BT))
    torch.testing.assert_close(one_B.sort().values, two_B.sort().values)
    assert (one_B != two_B).sum() > 20 and not two_B[[3, 17, 30]].any()
    assert torch.equal(two_BT, rollout.mask_BT * two_B.unsqueeze(1))
    # To the rows with a token in the order of their draws go the weights of these rows in order.
    alive = [row for row in range(40) if row not in (3, 17, 30)]
    ranked = sorted(alive, key=lambda row: hash_in_plain_python(CONTEXT.seed, row))
    torch.testing.assert_close(two_B[ranked], one_B[alive])


def test_what_shall_be_random_is_one_of_four():
    assert CONTROLS == ("none", "filter", "tokens", "both")
    with pytest.raises(ValueError, match="control='rows' is unknown. Use one of: none, filter, tokens, both."):
        control(METHODS["fire"](), "rows")


def test_a_control_can_be_had_of_a_method_of_ones_own():
    def first_half(score_B, rollout, context):
        return torch.arange(40) < 20

    own = Method("mine", filter=first_half, reweight=lambda *stage: early_tokens(*stage, strength=2.0))
    rollout, scores = window()
    one, two = (distil(rollout, scores, method, CONTEXT) for method in (own, control(own)))
    assert two.keep_B.sum() == one.keep_B.sum() == 20 and two.keep_B[20:].any()
    assert own.advantage is log_ratio and not torch.equal(one.weight_BT, two.weight_BT)


# Rows that are gone, and the statistics of their prompt


@pytest.mark.parametrize(("name", "settings"), [("uni_opd", {"margin": 99}), ("gc_opd", {}), ("scope", {})], ids=str)
def test_a_broken_row_is_no_member_of_its_prompt(name, settings):
    # Rows 0 to 3 answer one prompt, two of them right. Broken, row 1 counts as if it had never been sampled.
    (rollout, scores), method = window(), METHODS[name](**settings)
    before = distil(rollout, scores, method, CONTEXT)
    scores.teacher_logp_BT[1, 0] = NAN
    rest = [row for row in range(40) if row != 1]
    after, short = (distil(*r, method, CONTEXT) for r in ((rollout, scores), rows_of(rollout, scores, rest)))
    torch.testing.assert_close(after.advantage_BT[rest], short.advantage_BT)
    felt = (after.advantage_BT != before.advantage_BT).any(dim=1).nonzero().flatten().tolist()
    assert 1 in felt and set(felt) <= {0, 1, 2, 3} and len(felt) > 1


def test_a_prompt_whose_only_correct_row_breaks_is_of_one_outcome():
    rollout, scores = window()
    rollout = replace(rollout, reward_B=torch.zeros(40).index_fill(0, torch.tensor([9, 20]), 1.0))
    method = METHODS["opdvr"](group=True)
    assert distil(rollout, scores, method, CONTEXT).keep_B.nonzero().flatten().tolist() == [
        *range(8, 12),
        *range(20, 24),
    ]
    scores.teacher_logp_BT[9, 0] = NAN
    assert distil(rollout, scores, method, CONTEXT).keep_B.nonzero().flatten().tolist() == [*range(20, 24)]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_names_the_paper_of_its_docstring_which_has_a_title(name):
    paper = METHODS[name]().paper
    assert paper in PAPERS and all(PAPERS[paper])
    cited = re.findall(r"arXiv (\d{4}\.\d{5})", METHODS[name].__doc__)
    # Variants of FiRe-OPD name it in words.
    assert cited[0] == paper if cited else paper == METHODS["fire"]().paper


def test_every_paper_is_of_a_method():
    assert {recipe().paper for recipe in METHODS.values()} == set(PAPERS)
