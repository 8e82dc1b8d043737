"""Laws that every method keeps, whatever its recipe: one table over all of METHODS, on one rank and on several."""

import doctest
import inspect
import math
import pydoc
from dataclasses import replace

import pytest
import torch
from support.recipes import EXPECTED
from support.signals import CONTEXT, assert_bitwise, tensors
from support.windows import INF, NAN, emptied, mapped, on_ranks, parts_of, rows_of, trimmed, window, with_value

import fire_opd_trl
from fire_opd_trl import METHODS, Context, Divergence, Method, Rollout, Scores, Signal, control, distil, stages
from fire_opd_trl.pipeline import survivors
from fire_opd_trl.stages import log_ratio


GARBAGE = [NAN, INF, -INF, 1e30]


# Every method as it is by default, its other modes, and the random control of each.
RECIPES: dict[str, Method] = {
    **{name: recipe() for name, recipe in METHODS.items()},
    "fire, per teacher": METHODS["fire"](scope="teacher"),
    "fire, per trajectory": METHODS["fire"](scope="trajectory"),
    "fire, filter only": METHODS["fire"](0.2, 0.0, 0.0),
    "fire, weights only": METHODS["fire"](0.0, 2.0, 0.5),
    "fire, soft rows": METHODS["fire"](rows="soft"),
    "fire, hard tokens": METHODS["fire"](tokens="hard"),
    "fire, soft rows, hard tokens": METHODS["fire"](rows="soft", tokens="hard"),
    "random, per teacher": METHODS["random"](scope="teacher"),
    "exopd 2": METHODS["exopd"](2.0),
    "tip, sampled token": METHODS["tip"](full=False),
    "reopold, refining": METHODS["reopold"](switch=0.0),
    "uni_opd, correct up": METHODS["uni_opd"](direction="correct_up"),
    "uni_opd, wrong down": METHODS["uni_opd"](direction="incorrect_down"),
    "uni_opd, paper": METHODS["uni_opd"](calibrate="mask", statistic="minmax"),
    "scope, distilling": METHODS["scope"](imitate=False),
    "opdvr, group": METHODS["opdvr"](group=True),
    "tropd, mask": METHODS["tropd"](outliers="mask"),
    **{
        f"control of {name}": control(recipe())
        for name, recipe in METHODS.items()
        if EXPECTED[name].controls != "none"
    },
    "control of fire, soft rows": control(METHODS["fire"](rows="soft")),
    "control of opdvr, group": control(METHODS["opdvr"](group=True)),
    "control of uni_opd, paper": control(METHODS["uni_opd"](calibrate="mask", statistic="minmax")),
}


# The settings in which a method is plain on-policy distillation, with one token or with the whole vocabulary.
NEUTRAL = [(name, *settings) for name, expected in EXPECTED.items() for settings in expected.neutral]


CONTROLS = {name for name in RECIPES if name.startswith("control of ")}


# What depends on the number of the row.
DRAWS = {"random", "random, per teacher", "tropd", "tropd, mask"} | CONTROLS


# What needs nothing from other rows.
LOCAL = {"opd", "fire_released", "fire, per trajectory", "exopd", "exopd 2", "eopd", "opd_full", "iw_opd"}


LOCAL |= {"power_opd", "opdvr", "tropd", "tropd, mask"}


LOCAL |= {f"control of {name}" for name in LOCAL}


# How many of the 40 rows of a window survive, where not all.
KEPT = {
    **dict.fromkeys(["fire", "fire_full", "random", "fire, filter only", "fire, hard tokens"], 32),
    **dict.fromkeys(["fire, per teacher", "random, per teacher"], 40 - 2 - 2 - 2),  # a fifth of 14, 13 and 13 each
    "opdvr, group": 40 - 4 - 4,  # one prompt is all wrong, one all correct
    "uni_opd, paper": 12,
}


KEPT |= {f"control of {name}": rows for name, rows in KEPT.items() if f"control of {name}" in RECIPES}


every_recipe = pytest.mark.parametrize("method", RECIPES.values(), ids=RECIPES)


every_named_recipe = pytest.mark.parametrize(("name", "method"), RECIPES.items(), ids=RECIPES)


# What the weights of a method promise


def mean_1_in_each_row(weight_BT, train_BT, rollout):
    torch.testing.assert_close(weight_BT.sum(dim=1), train_BT.sum(dim=1).to(weight_BT.dtype))


def mean_1_over_the_window(weight_BT, train_BT, rollout):
    torch.testing.assert_close(weight_BT.sum(), train_BT.sum().to(weight_BT.dtype))


def mean_of_each_row(weight_BT, train_BT):
    return weight_BT.sum(dim=1)[train_BT.any(dim=1)] / train_BT.sum(dim=1)[train_BT.any(dim=1)]


def mean_1_over_the_rows(weight_BT, train_BT, rollout):
    mean_B = mean_of_each_row(weight_BT, train_BT)
    torch.testing.assert_close(mean_B.mean(), torch.ones_like(mean_B[0]))


def even_rows_of_mean_1_in_each_path_of_a_prompt(weight_BT, train_BT, rollout):
    mean_B = mean_of_each_row(weight_BT, train_BT)
    alive_B = train_BT.any(dim=1)
    torch.testing.assert_close(weight_BT[alive_B], train_BT[alive_B] * mean_B.unsqueeze(1))
    path_B = (2 * rollout.group_B + (rollout.reward_B > 0))[alive_B]
    for path in path_B.unique():
        torch.testing.assert_close(mean_B[path_B == path].mean(), torch.ones_like(mean_B[0]))


def between_1_and_1_and_a_half(weight_BT, train_BT, rollout):
    assert 1 - 1e-6 <= weight_BT[train_BT].min() and weight_BT[train_BT].max() <= 1.5 + 1e-6


def zero_or_one(weight_BT, train_BT, rollout):
    assert ((weight_BT == 0) | (weight_BT == 1)).all()


LAW = {
    "fire, soft rows": mean_1_over_the_rows,
    "fire, soft rows, hard tokens": mean_1_over_the_rows,
    **dict.fromkeys(["reopold", "reopold, refining"], mean_1_over_the_window),
    **dict.fromkeys(["scope", "scope, distilling"], even_rows_of_mean_1_in_each_path_of_a_prompt),
    "control of scope": mean_1_over_the_rows,  # whose weights went to other prompts
    "iw_opd": between_1_and_1_and_a_half,
    **dict.fromkeys(["opdvr", "opdvr, group", "tropd", "tropd, mask"], zero_or_one),
}  # and in all others the mean is 1 in each row


HARD = {"tip", "tip, sampled token", "fire, hard tokens", "fire, soft rows, hard tokens", "reopold"}


HARD |= {"reopold, refining", "opdvr", "opdvr, group", "tropd", "tropd, mask"}  # tokens of survivors may weigh 0


def assert_the_law_of_its_weights(name: str, signal: Signal, rollout: Rollout):
    """A control keeps the law of its method. A divergence weighs as the tokens do, but where it is another path."""
    train_BT, base = rollout.mask_BT & signal.keep_B.unsqueeze(1), name.removeprefix("control of ")
    LAW.get(name, LAW.get(base, mean_1_in_each_row))(signal.weight_BT, train_BT, rollout)
    divergence_BT = signal.divergence_BT
    assert (divergence_BT is not None) == (base in ("fire_full", "tip", "opd_full", "eopd", "tropd"))
    if base == "eopd":
        assert ((divergence_BT == 0) | (divergence_BT == 1)).all()
    elif base == "tropd":
        assert torch.equal(divergence_BT, train_BT.to(divergence_BT) - signal.weight_BT)
    elif divergence_BT is not None:
        assert torch.equal(divergence_BT, signal.weight_BT)


# How signals are compared


def changed(signal: Signal, change) -> Signal:
    return replace(signal, **{name: change(value_BT) for name, value_BT in tensors(signal).items()})


def assert_close(one: Signal, other: Signal, atol: float = 1e-12):
    assert torch.equal(one.keep_B, other.keep_B)
    assert tensors(one).keys() == tensors(other).keys()
    for name, value_BT in tensors(one).items():
        torch.testing.assert_close(value_BT, tensors(other)[name], rtol=1e-12, atol=atol)
    assert one.metrics == pytest.approx(other.metrics, rel=1e-5, abs=1e-6)


def all_finite(signal: Signal) -> bool:
    finite = all(torch.isfinite(value_BT).all() for value_BT in tensors(signal).values())
    return finite and all(math.isfinite(value) for value in signal.metrics.values())


def all_zero(signal: Signal, where=slice(None)) -> bool:
    return all((value_BT[where] == 0).all() for value_BT in tensors(signal).values())


# Shapes and values


@every_named_recipe
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_signal_has_the_shapes_and_types_that_it_promises(name, method, dtype):
    rollout, scores = window(dtype=dtype)
    scores = mapped(scores, lambda value_BT: value_BT.requires_grad_())
    signal = distil(rollout, scores, method, CONTEXT)
    assert signal.keep_B.dtype == torch.bool and signal.keep_B.shape == (40,)
    for value_BT in tensors(signal).values():
        assert value_BT.dtype == dtype and value_BT.shape == (40, 11)
        assert not value_BT.requires_grad and value_BT.grad_fn is None
    assert all(type(value) is float for value in signal.metrics.values())
    train_BT = rollout.mask_BT & signal.keep_B.unsqueeze(1)
    assert all_zero(signal, ~train_BT) and all_finite(signal)
    if name.removeprefix("control of ") not in HARD:
        assert (signal.weight_BT[train_BT] > 0).all()
    if method.advantage is log_ratio:
        difference_BT = scores.teacher_logp_BT - scores.student_logp_BT
        torch.testing.assert_close(signal.advantage_BT, torch.where(train_BT, signal.weight_BT * difference_BT, 0.0))
    if method.advantage is None:
        assert method.divergence is not None and (signal.advantage_BT == 0).all()
    assert_the_law_of_its_weights(name, signal, rollout)


@every_recipe
def test_the_input_is_left_as_it_was(method):
    rollout, scores = window()
    before = [value.clone() for value in (*vars(rollout).values(), *vars(scores).values())]
    distil(rollout, scores, method, CONTEXT)
    after = [*vars(rollout).values(), *vars(scores).values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@every_named_recipe
@pytest.mark.parametrize("teacher_entropy", [0.0, 1e4, "mixed"])
@pytest.mark.parametrize("student_entropy", [0.0, 1e4, "mixed"])
def test_extreme_models_give_finite_signals(name, method, teacher_entropy, student_entropy):
    rollout, scores = window(dtype=torch.float32)
    coin_BT = torch.rand(40, 11, generator=torch.Generator().manual_seed(1)) < 0.5

    def entropy(value):
        return torch.where(coin_BT, 0.0, 1e4) if value == "mixed" else torch.full((40, 11), value)

    scores = replace(
        scores,
        teacher_logp_BT=torch.where(coin_BT, -1e4, 0.0),
        student_logp_BT=torch.where(coin_BT.roll(1, 0), -1e4, 0.0),
        reference_logp_BT=torch.where(coin_BT.roll(2, 0), -1e4, 0.0),
        teacher_entropy_BT=entropy(teacher_entropy),
        student_entropy_BT=entropy(student_entropy),
        reverse_kl_BT=entropy(student_entropy).flip(0),
    )
    signal = distil(replace(rollout, reward_B=1e4 * rollout.reward_B), scores, method, CONTEXT)
    assert all_finite(signal)
    assert_the_law_of_its_weights(name, signal, rollout)


@every_named_recipe
def test_rows_that_are_all_alike_give_finite_signals(name, method):
    rollout, scores = window(dtype=torch.float32)
    same = mapped(scores, lambda value_BT: torch.full_like(value_BT, -1.0))
    for reward in (0.0, 1.0):
        signal = distil(replace(rollout, reward_B=torch.full((40,), reward)), same, method, CONTEXT)
        assert all_finite(signal)
        assert_the_law_of_its_weights(name, signal, replace(rollout, reward_B=torch.full((40,), reward)))


# Padding and masks


@every_recipe
@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_stands_in_padding_changes_no_bit(method, garbage):
    rollout, scores = window()
    zeros = distil(rollout, mapped(scores, lambda v_BT: torch.where(rollout.mask_BT, v_BT, 0.0)), method, CONTEXT)
    dirty = distil(rollout, mapped(scores, lambda v_BT: torch.where(rollout.mask_BT, v_BT, garbage)), method, CONTEXT)
    assert_bitwise(zeros, dirty)
    assert all_finite(dirty)


@every_recipe
def test_a_wider_window_changes_nothing(method):
    rollout, scores = window()
    wide = replace(rollout, mask_BT=torch.nn.functional.pad(rollout.mask_BT, (0, 30)))
    wide_scores = mapped(scores, lambda value_BT: torch.nn.functional.pad(value_BT, (0, 30), value=NAN))
    one, other = distil(rollout, scores, method, CONTEXT), distil(wide, wide_scores, method, CONTEXT)
    assert all_zero(other, (slice(None), slice(11, None)))
    assert_close(one, changed(other, lambda value_BT: value_BT[:, :11]))


@every_recipe
def test_masking_a_token_is_deleting_it(method):
    rollout, scores = window(seed=3)
    row = int(rollout.mask_BT.sum(dim=1).argmax())
    token = rollout.mask_BT[row].nonzero().flatten()[2].item()  # in the middle of a row
    assert rollout.mask_BT[row, :token].any() and rollout.mask_BT[row, token + 1 :].any()
    mask_BT = rollout.mask_BT.clone()
    mask_BT[row, token] = False
    left_columns = [column for column in range(11) if column != token]

    def deleted(value_BT):
        value_BT = value_BT.clone()
        value_BT[row] = torch.cat([value_BT[row, left_columns], value_BT[row, -1:]])  # the last column is padding
        return value_BT

    masked = distil(replace(rollout, mask_BT=mask_BT), scores, method, CONTEXT)
    without = distil(replace(rollout, mask_BT=deleted(rollout.mask_BT)), mapped(scores, deleted), method, CONTEXT)
    assert_close(changed(masked, deleted), without)
    assert all_zero(masked, (row, token))


@every_recipe
def test_holes_are_as_if_they_had_never_been_there(method):
    rollout, scores = window(seed=4)
    order_BT = (~rollout.mask_BT).to(torch.uint8).argsort(dim=1, stable=True)  # each row's tokens first, in order
    assert not torch.equal(order_BT, torch.arange(11).expand(40, 11))

    def compact(value_BT):
        return value_BT.gather(1, order_BT)

    holes = distil(rollout, scores, method, CONTEXT)
    dense = distil(replace(rollout, mask_BT=compact(rollout.mask_BT)), mapped(scores, compact), method, CONTEXT)
    assert_close(changed(holes, compact), dense)


# Rows


@every_named_recipe
def test_a_filter_keeps_as_many_rows_as_it_says(name, method):
    rollout, scores = window()
    signal = distil(rollout, scores, method, CONTEXT)
    assert int(signal.keep_B.sum()) == signal.metrics["kept_rows"] == KEPT.get(name, 40)
    assert signal.metrics["keep_ratio"] == KEPT.get(name, 40) / 40
    assert distil(rollout, scores, method.unfiltered(), CONTEXT).keep_B.all()


def test_the_random_control_has_the_budget_of_fire():
    rollout, scores = window()
    fire, control = (distil(rollout, scores, METHODS[name](), CONTEXT) for name in ("fire", "random"))
    assert fire.keep_B.sum() == control.keep_B.sum() and not torch.equal(fire.keep_B, control.keep_B)


def test_the_random_control_deals_the_weights_of_fire_in_another_order():
    rollout, scores = window()
    fire, control = (distil(rollout, scores, METHODS[name](0.0), CONTEXT) for name in ("fire", "random"))
    assert torch.equal(fire.weight_BT.sort(dim=1).values, control.weight_BT.sort(dim=1).values)
    assert ((fire.weight_BT != control.weight_BT) & rollout.mask_BT).sum() > 0.3 * rollout.mask_BT.sum()


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in DRAWS])
def test_the_order_of_the_rows_does_not_matter(name):
    rollout, scores = window(seed=5)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    one = distil(rollout, scores, RECIPES[name], CONTEXT)
    other = distil(*rows_of(rollout, scores, order), RECIPES[name], CONTEXT)
    assert_close(replace(changed(one, lambda value_BT: value_BT[order]), keep_B=one.keep_B[order]), other)


def assert_as_without(name: str, signal: Signal, rollout: Rollout, scores: Scores, gone: list[int]):
    """The rows `gone` cost themselves and nothing else."""
    assert not signal.keep_B[gone].any() and all_zero(signal, gone)
    empty = distil(emptied(rollout, gone), scores, RECIPES[name], CONTEXT)  # the others keep their numbers
    assert_bitwise(replace(signal, metrics={}), replace(empty, metrics={}))
    rest = [row for row in range(len(signal.keep_B)) if row not in gone]
    if name not in DRAWS:
        short = distil(*rows_of(rollout, scores, rest), RECIPES[name], CONTEXT)
        ours = {key: value for key, value in signal.metrics.items() if key not in COUNTS}
        theirs = {key: value for key, value in short.metrics.items() if key not in COUNTS}
        left = replace(changed(signal, lambda value_BT: value_BT[rest]), keep_B=signal.keep_B[rest], metrics=ours)
        assert_close(left, replace(short, metrics=theirs))


COUNTS = ("rows", "empty", "nonfinite_teacher")  # which say what happened to the rows that are gone


@pytest.mark.parametrize("broken", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("name", "signal_name"),
    [(name, s) for name, method in RECIPES.items() for s in method.signals if not s.startswith("student")],
)
def test_a_broken_teacher_value_costs_exactly_its_own_row(name, signal_name, broken):
    method, (rollout, scores) = RECIPES[name], window(seed=6)
    row = 13
    token = rollout.mask_BT[row].nonzero().flatten()[-1].item()
    signal = distil(rollout, with_value(scores, signal_name, row, token, broken), method, CONTEXT)
    assert_as_without(name, signal, rollout, scores, [row])
    assert (signal.metrics["nonfinite_teacher"], signal.metrics["empty"]) == (1, 0)
    assert all_finite(signal)


@every_named_recipe
def test_empty_rows_cost_nothing_but_themselves(name, method):
    rollout, scores = window(seed=7)
    gone = [0, 1, 17, 39]
    signal = distil(emptied(rollout, gone), scores, method, CONTEXT)
    assert_as_without(name, signal, rollout, scores, gone)
    assert (signal.metrics["nonfinite_teacher"], signal.metrics["empty"]) == (0, 4)
    assert all_finite(signal)


@every_recipe
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("cause", ["empty", "broken teacher"])
def test_a_window_with_nothing_to_train_on_is_zero_and_not_nan(method, rows, cause):
    rollout, scores = window(rows=rows)
    if cause == "empty":
        rollout, scores = emptied(rollout, list(range(rows))), mapped(scores, lambda v_BT: torch.full_like(v_BT, NAN))
    else:
        scores = replace(scores, teacher_logp_BT=torch.full_like(scores.teacher_logp_BT, NAN))
    signal = distil(rollout, scores, method, CONTEXT)
    assert not signal.keep_B.any()
    assert all_zero(signal) and all_finite(signal)
    assert signal.metrics["empty" if cause == "empty" else "nonfinite_teacher"] == rows


@every_recipe
def test_a_filter_that_drops_all_leaves_zero_and_not_nan(method):
    rollout, scores = window()
    method = replace(method, filter=lambda score_B, rollout, context: torch.zeros(40, dtype=torch.bool))
    signal = distil(rollout, scores, method, CONTEXT)
    assert not signal.keep_B.any() and all_finite(signal) and all_zero(signal)


@every_recipe
def test_a_filter_of_ones_own_cannot_bring_back_an_empty_or_broken_row(method):
    rollout, scores = window()
    rollout = emptied(rollout, [2])
    scores = with_value(scores, "teacher_logp_BT", 3, 0, NAN)
    method = replace(method, filter=lambda score_B, rollout, context: torch.ones(40, dtype=torch.bool))
    signal = distil(rollout, scores, method, CONTEXT)
    assert (~signal.keep_B).nonzero().flatten().tolist() == [2, 3]


def test_dropped_rows_set_no_weight_of_the_others():
    rollout, scores = window()
    soft, hard = METHODS["fire"](rows="soft"), METHODS["fire"]()
    both = distil(rollout, scores, replace(soft, filter=hard.filter), CONTEXT)
    dropped = (~both.keep_B).nonzero().flatten().tolist()
    alone = distil(emptied(rollout, dropped), scores, soft, CONTEXT)
    assert len(dropped) == 8 and torch.equal(both.weight_BT, alone.weight_BT)


def test_a_filter_of_ones_own_sees_no_score_of_a_broken_row():
    rollout, scores = window()
    seen = []
    method = replace(METHODS["opd"](), filter=lambda score_B, usable, context: seen.append(score_B) or usable.alive_B)
    distil(rollout, with_value(scores, "teacher_logp_BT", 3, 0, NAN), method, CONTEXT)
    assert torch.isfinite(seen[0]).all() and seen[0][3] == 0 and (seen[0] != 0).sum() == 39


# Identities


def test_every_method_states_the_setting_in_which_it_is_plain_distillation():
    assert {name for name, *_ in NEUTRAL} == set(METHODS)


@pytest.mark.parametrize(("name", "settings", "plain"), NEUTRAL, ids=str)
@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_neutral_settings_are_plain_distillation_to_the_bit(name, settings, plain, progress):
    rollout, scores = window(seed=8)
    rollout = emptied(rollout, [5])
    scores = with_value(scores, "teacher_logp_BT", 9, 0, NAN)
    neutral, context = METHODS[name](**settings), replace(CONTEXT, progress=progress)
    one, other = (distil(rollout, scores, method, context) for method in (neutral, METHODS[plain]()))
    assert_bitwise(replace(one, metrics={key: one.metrics[key] for key in other.metrics}), other)
    assert (neutral.divergence is None) == (plain == "opd") and neutral.rollout_correction == (name != "fire_released")
    if name not in ("tip", "reopold"):  # which ask for the entropies by which they would choose
        bare = Scores(scores.teacher_logp_BT, scores.student_logp_BT)
        assert_bitwise(*(distil(rollout, bare, method, context) for method in (neutral, METHODS[plain]())))


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"opd"}))
def test_default_settings_are_not_plain_distillation(name):
    rollout, scores = window(seed=8)
    one, other = (distil(rollout, scores, METHODS[n](), CONTEXT) for n in (name, "opd"))
    assert one.divergence_BT is not None or (one.advantage_BT - other.advantage_BT).abs().max() > 0.1


def test_full_distillation_is_a_divergence_alone_on_every_token():
    rollout, scores = window()
    signal = distil(rollout, scores, METHODS["opd_full"](), CONTEXT)
    assert (signal.advantage_BT == 0).all() and torch.equal(signal.divergence_BT, rollout.mask_BT.double())


@every_named_recipe
def test_the_seed_matters_to_random_methods_alone(name, method):
    rollout, scores = window()
    one, other = (distil(rollout, scores, method, Context(seed=seed)) for seed in (0, 1))
    assert torch.equal(one.keep_B, other.keep_B) or (name in DRAWS and name in KEPT)
    if name in DRAWS:
        assert any(not torch.equal(value_BT, tensors(other)[key]) for key, value_BT in tensors(one).items())
    else:
        assert_bitwise(one, other)


# Refusals


@pytest.mark.parametrize(
    ("name", "signal_name"), [(n, s) for n, method in RECIPES.items() for s in (*method.signals, *method.needs)]
)
def test_a_missing_signal_is_refused_by_name(name, signal_name):
    rollout, scores = window()
    if signal_name in vars(scores):
        scores, what = replace(scores, **{signal_name: None}), "scores"
    else:
        rollout, what = replace(rollout, **{signal_name: None}), "rollout"
    sentence = f"reads {signal_name}, which `{what}` lacks. Compute and pass it."
    with pytest.raises(ValueError, match=f"^method='{RECIPES[name].name}' {sentence}$"):
        distil(rollout, scores, RECIPES[name], CONTEXT)


@every_recipe
def test_a_method_reads_the_signals_that_it_names_and_no_other(method):
    rollout, scores = window()
    full = distil(rollout, scores, method, CONTEXT)
    bare = replace(scores, **{name: None for name in vars(scores) if name not in method.signals})
    bare_rollout = replace(rollout, **{name: None for name in ("reward_B", "group_B") if name not in method.needs})
    assert_bitwise(full, distil(bare_rollout, bare, method, CONTEXT))


UNREAD = [
    (name, signal_name)
    for name, method in RECIPES.items()
    for signal_name in vars(window()[1])
    if signal_name not in method.signals
]


@pytest.mark.parametrize(("name", "signal_name"), UNREAD)
def test_a_broken_value_that_the_method_does_not_read_changes_no_output(name, signal_name):
    rollout, scores = window()
    clean = distil(rollout, scores, RECIPES[name], CONTEXT)
    broken = distil(rollout, with_value(scores, signal_name, 4, 0, NAN), RECIPES[name], CONTEXT)
    assert_bitwise(replace(clean, metrics={}), replace(broken, metrics={}))


@pytest.mark.parametrize("signal_name", ["teacher_entropy_BT", "student_entropy_BT", "reverse_kl_BT"])
def test_a_broken_value_that_the_method_does_not_read_reaches_no_metric(signal_name):
    rollout, scores = window()
    assert all_finite(distil(rollout, with_value(scores, signal_name, 4, 0, NAN), METHODS["opd"](), CONTEXT))


@every_recipe
@pytest.mark.parametrize("broken", [NAN, INF, -INF])
def test_a_broken_student_stops_the_training_and_broken_padding_does_not(method, broken):
    rollout, scores = window()
    for name in [name for name in method.signals if name.startswith("student")]:
        token = rollout.mask_BT[20].nonzero().flatten()[-1].item()
        with pytest.raises(FloatingPointError, match="1 trajectories"):
            distil(rollout, with_value(scores, name, 20, token, broken), method, CONTEXT)
        distil(rollout, with_value(scores, name, 20, -1, broken), method, CONTEXT)  # the last column is padding


# Several ranks


SPLITS = {"two ranks": [25, 15], "four ragged ranks": [17, 1, 12, 10], "a rank for each row": [1] * 40}


SILENT = 1  # the rank whose rows are all empty


def split_window(sizes: list[int]) -> tuple[Rollout, Scores, list[slice]]:
    """A window whose statistics no rank knows alone: the first rows have the lowest scores, the last the maxima."""
    rollout, scores = window(seed=9)
    rollout.mask_BT[25:, 6:] = False
    parts = parts_of(sizes)
    if len(sizes) > 2:
        rollout = emptied(rollout, list(range(40))[parts[SILENT]])
    row_B = torch.arange(40).unsqueeze(1)
    last_B = torch.where(row_B >= 30, 3.0, 1.0)
    scores = replace(
        scores,
        teacher_logp_BT=scores.teacher_logp_BT - torch.where(row_B < 10, 5.0, 0.0),
        teacher_entropy_BT=scores.teacher_entropy_BT * last_B,
        student_entropy_BT=scores.student_entropy_BT * last_B,
        reverse_kl_BT=scores.reverse_kl_BT * last_B,
    )
    return rollout, scores, parts


def joined(signals: list[Signal]) -> Signal:
    """What all ranks say, as if one had said it."""
    everyone = {name: [tensors(signal)[name] for signal in signals] for name in tensors(signals[0])}
    wide = {
        name: torch.cat([torch.nn.functional.pad(value_BT, (0, 11 - value_BT.shape[1])) for value_BT in values])
        for name, values in everyone.items()
    }
    return replace(signals[0], keep_B=torch.cat([signal.keep_B for signal in signals]), **wide)


@every_recipe
@pytest.mark.parametrize("sizes", SPLITS.values(), ids=SPLITS)
def test_the_split_over_ranks_never_changes_the_result(method, sizes):
    rollout, scores, parts = split_window(sizes)
    pieces = [trimmed(*rows_of(rollout, scores, part)) for part in parts]
    assert len({width for *_, width in pieces}) > 1  # the ranks pad differently
    whole = distil(rollout, scores, method, CONTEXT)
    signals = on_ranks(
        len(sizes), lambda rank, world: distil(*pieces[rank][:2], method, replace(CONTEXT, world=world))
    )
    assert_close(joined(signals), whole, atol=1e-6)
    for signal in signals:
        assert signal.metrics == signals[0].metrics  # every rank logs the same numbers


@every_named_recipe
@pytest.mark.parametrize("sizes", SPLITS.values(), ids=SPLITS)
def test_the_windows_of_these_tests_would_betray_local_statistics(name, method, sizes):
    rollout, scores, parts = split_window(sizes)
    whole = distil(rollout, scores, method, CONTEXT)
    alone = [distil(*rows_of(rollout, scores, part), method, CONTEXT) for part in parts]
    assert all(signal.metrics != pytest.approx(whole.metrics, rel=1e-2) for signal in alone)
    together = joined(alone)
    if whole.keep_B.sum() < rollout.alive_B.sum():
        assert not torch.equal(together.keep_B, whole.keep_B)
    apart = not torch.equal(together.keep_B, whole.keep_B) or any(
        (value_BT - tensors(together)[key]).abs().max() > 0.05 for key, value_BT in tensors(whole).items()
    )
    assert apart == (name not in LOCAL or name in DRAWS)  # draws belong to the global row


@every_recipe
def test_a_broken_student_on_one_rank_stops_all_ranks_alike(method):
    rollout, scores, parts = split_window(SPLITS["two ranks"])
    scores = with_value(scores, "student_logp_BT", 39, 0, NAN)  # on the last rank
    errors = on_ranks(
        2,
        lambda rank, world: distil(*rows_of(rollout, scores, parts[rank]), method, replace(CONTEXT, world=world)),
    )
    assert [type(error) for error in errors] == [FloatingPointError] * 2
    assert str(errors[0]) == str(errors[1])


@every_recipe
def test_a_window_that_is_empty_on_every_rank_is_zero_on_every_rank(method):
    rollout, scores, parts = split_window(SPLITS["four ragged ranks"])
    rollout = emptied(rollout, list(range(40)))
    signals = on_ranks(
        4, lambda rank, world: distil(*rows_of(rollout, scores, parts[rank]), method, replace(CONTEXT, world=world))
    )
    assert all(all_finite(signal) and not signal.keep_B.any() for signal in signals)
    assert all(signal.metrics["rows"] == signal.metrics["empty"] == 40 for signal in signals)


@pytest.mark.parametrize("name", [name for name, method in RECIPES.items() if method.score is None])
def test_who_survives_is_known_before_the_student_has_scored(name):
    method, (rollout, scores) = RECIPES[name], window()
    known = ("teacher_logp_BT", "teacher_entropy_BT", "reference_logp_BT", "reverse_kl_BT")
    teacher = scores.only(known)
    assert teacher.student_logp_BT is None and teacher.student_entropy_BT is None
    kept = survivors(rollout, teacher, method, CONTEXT)[2]
    assert torch.equal(kept.alive_B, distil(rollout, scores, method, CONTEXT).keep_B)


# A method that spells out what `None` stands for, and names of former days


def test_a_method_that_spells_out_its_defaults_is_the_one_that_lacks_them():
    spelled = Method(
        "mine",
        score=stages.mean_teacher_logp,
        filter=stages.keep_all,
        reweight=stages.even,
        divergence=Divergence(top_k=2, weight=stages.uniform),
    )
    assert spelled == Method("mine", divergence=Divergence(top_k=2))
    with pytest.raises(ValueError, match="has nothing to randomise"):
        control(spelled)


def test_stages_can_be_imported_by_their_former_names():
    from fire_opd_trl.stages import even, mixed, nothing, sound

    assert (even, mixed, sound) == (stages.uniform, stages.combined, stages.checked_output)
    rollout, scores = window()
    one, other = (Method("mine", advantage=advantage) for advantage in (nothing, None))
    assert_bitwise(*(distil(rollout, scores, method, CONTEXT) for method in (one, other)))
    with pytest.raises(AttributeError, match="no_such_stage"):
        stages.no_such_stage  # noqa: B018


def test_a_world_of_former_days_is_asked_where_its_rows_lie():
    class Second(stages.World):
        def own(self, rows):
            return slice(4, 4 + rows)

    assert stages.global_row_B(2, Second(), torch.device("cpu")).tolist() == [4, 5]
    assert stages.World().own(3) == stages.World().local_slice(3) == slice(0, 3)


# Wrong arguments


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("fire", r"method='fire' is a name. Pass the recipe of that name, called: METHODS\['fire'\]\(\)"),
        (METHODS["fire"], r"is a recipe that was not called. Add parentheses, .*: fire\(\)"),
        (None, r"method=None is of the type NoneType. Pass a Method, for example METHODS\['fire'\]\(\)"),
        (Method, "is of the type type. Pass a Method"),
    ],
    ids=["name", "recipe", "none", "class"],
)
def test_what_is_no_method_is_refused_with_what_to_write(given, sentence):
    for call in (lambda: distil(*window(), given), lambda: control(given)):
        with pytest.raises(ValueError, match=sentence):
            call()


def test_arguments_in_a_wrong_order_or_of_another_kind_are_named():
    rollout, scores = window()
    with pytest.raises(ValueError, match="rollout is of the type Scores. .*with a Rollout there"):
        distil(scores, rollout, METHODS["opd"]())
    with pytest.raises(ValueError, match="context is of the type float. .*with a Context there"):
        distil(rollout, scores, METHODS["opd"](), 0.5)


def test_the_examples_in_the_help_of_public_names_are_true():
    names = ["Rollout", "Scores", "Signal", "Method", "Divergence", "control"]
    for name in names:
        text = inspect.getdoc(getattr(fire_opd_trl, name)).replace("```python\n", "").replace("```\n", "\n")
        test = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
        assert test.examples, name
        assert doctest.DocTestRunner().run(test).failed == 0, name


def test_the_help_of_the_recipes_lists_them_all():
    text = pydoc.plain(pydoc.render_doc(METHODS))
    assert "Methods defined here" not in text  # not the help of a dict
    assert all(f"    {name}(" in text for name in METHODS)
    assert repr(METHODS).startswith("<METHODS: opd, fire, ")
    with pytest.raises(KeyError, match="'fier' is unknown. Did you mean 'fire'"):
        METHODS["fier"]
