"""Laws that every method keeps, whatever its recipe: one table over all of METHODS, on one rank and on several."""

import math
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fire_opd_trl import METHODS, Context, Method, Rollout, Scores, Signal, distil
from fire_opd_trl.stages import World


NAN, INF = math.nan, math.inf
GARBAGE = [NAN, INF, -INF, 1e30]

# Every method as it is by default, and where a method has a scope, in each of its scopes.
RECIPES: dict[str, Method] = {
    **{name: recipe() for name, recipe in METHODS.items()},
    "fire, per teacher": METHODS["fire"](scope="teacher"),
    "fire, per trajectory": METHODS["fire"](scope="trajectory"),
    "fire, filter only": METHODS["fire"](0.2, 0.0, 0.0),
    "fire, weights only": METHODS["fire"](0.0, 2.0, 0.5),
    "random, per teacher": METHODS["random"](scope="teacher"),
}
# The settings in which a method is plain on-policy distillation.
NEUTRAL = {"opd": (), "fire": (0, 0, 0), "fire_released": (0, 0, 0), "random": (0, 0, 0)}
DRAWS = [name for name in RECIPES if name.startswith("random")]  # depend on the number of the row
LOCAL = ["opd", "fire_released", "fire, per trajectory"]  # need nothing from other rows
KEEPS_ALL = [*LOCAL, "fire, weights only"]
CONTEXT = Context(seed=7)

every_recipe = pytest.mark.parametrize("method", RECIPES.values(), ids=RECIPES)


def recipes(names) -> pytest.MarkDecorator:
    names = list(names)
    return pytest.mark.parametrize("method", [RECIPES[name] for name in names], ids=names)


def window(seed: int = 0, rows: int = 40, width: int = 11, dtype: torch.dtype = torch.float64):
    """Ragged rows with padding behind and holes inside, every signal that a method could read, no two rows alike."""
    generator = torch.Generator().manual_seed(seed)

    def rand():
        return torch.rand(rows, width, generator=generator, dtype=torch.float64)

    length_B = torch.randint(1, width, (rows, 1), generator=generator)
    mask_BT = (torch.arange(width) < length_B) & (rand() < 0.8)
    mask_BT[:, 0] = True  # every row has a token, and the last column is padding everywhere
    rollout = Rollout(
        mask_BT,
        teacher_B=torch.arange(rows) % 3,
        group_B=torch.arange(rows) // 4,
        reward_B=(torch.arange(rows) % 2).to(dtype),
        finished_B=torch.arange(rows) % 5 > 0,
    )
    scores = Scores(
        teacher_logp_BT=(4 * rand().log() * rand()[:, :1]).to(dtype),
        student_logp_BT=rand().log().to(dtype),
        teacher_entropy_BT=(6 * rand() ** 4).to(dtype),
        student_entropy_BT=(6 * rand() ** 2).to(dtype),
        reference_logp_BT=rand().log().to(dtype),
    )
    return rollout, scores


def mapped(scores: Scores, change: Callable[[torch.Tensor], torch.Tensor]) -> Scores:
    """Every signal, changed alike."""
    return replace(scores, **{name: change(value_BT) for name, value_BT in vars(scores).items()})


def rows_of(rollout: Rollout, scores: Scores, rows: slice | list[int]) -> tuple[Rollout, Scores]:
    return replace(rollout, **{n: v[rows] for n, v in vars(rollout).items()}), mapped(scores, lambda v_BT: v_BT[rows])


def with_value(scores: Scores, name: str, row: int, token: int, value: float) -> Scores:
    value_BT = vars(scores)[name].clone()
    value_BT[row, token] = value
    return replace(scores, **{name: value_BT})


def assert_bitwise(one: Signal, other: Signal):
    for name in ("keep_B", "weight_BT", "advantage_BT"):
        assert torch.equal(vars(one)[name], vars(other)[name]), name
    assert one.metrics == other.metrics  # equal floats; a NaN equals nothing


def assert_close(one: Signal, other: Signal):
    assert torch.equal(one.keep_B, other.keep_B)
    torch.testing.assert_close(one.weight_BT, other.weight_BT, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.advantage_BT, other.advantage_BT, rtol=1e-12, atol=1e-12)
    assert one.metrics == pytest.approx(other.metrics, rel=1e-5, abs=1e-6)


def all_finite(signal: Signal) -> bool:
    tensors = torch.isfinite(signal.weight_BT).all() and torch.isfinite(signal.advantage_BT).all()
    return bool(tensors) and all(math.isfinite(value) for value in signal.metrics.values())


# Shapes and values


@every_recipe
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_signal_has_the_shapes_and_types_that_it_promises(method, dtype):
    rollout, scores = window(dtype=dtype)
    scores = mapped(scores, lambda value_BT: value_BT.requires_grad_())
    signal = distil(rollout, scores, method, CONTEXT)
    assert signal.keep_B.dtype == torch.bool and signal.keep_B.shape == (40,)
    for value_BT in (signal.weight_BT, signal.advantage_BT):
        assert value_BT.dtype == dtype and value_BT.shape == (40, 11) and not value_BT.requires_grad
    assert all(type(value) is float for value in signal.metrics.values())
    train_BT = rollout.mask_BT & signal.keep_B.unsqueeze(1)
    assert (signal.weight_BT[~train_BT] == 0).all() and (signal.advantage_BT[~train_BT] == 0).all()
    assert (signal.weight_BT[train_BT] > 0).all()
    torch.testing.assert_close(signal.weight_BT.sum(dim=1), train_BT.sum(dim=1).to(dtype))  # mean 1 in each survivor
    difference_BT = scores.teacher_logp_BT - scores.student_logp_BT
    torch.testing.assert_close(signal.advantage_BT, torch.where(train_BT, signal.weight_BT * difference_BT, 0.0))
    assert all_finite(signal)


@every_recipe
def test_the_input_is_left_as_it_was(method):
    rollout, scores = window()
    before = [value.clone() for value in (*vars(rollout).values(), *vars(scores).values())]
    distil(rollout, scores, method, CONTEXT)
    after = [*vars(rollout).values(), *vars(scores).values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@every_recipe
@pytest.mark.parametrize("teacher_entropy", [0.0, 1e4, "mixed"])
@pytest.mark.parametrize("student_entropy", [0.0, 1e4, "mixed"])
def test_extreme_models_give_finite_signals(method, teacher_entropy, student_entropy):
    rollout, scores = window(dtype=torch.float32)
    coin_BT = torch.rand(40, 11, generator=torch.Generator().manual_seed(1)) < 0.5

    def entropy(value):
        return torch.where(coin_BT, 0.0, 1e4) if value == "mixed" else torch.full((40, 11), value)

    scores = replace(
        scores,
        teacher_logp_BT=torch.where(coin_BT, -1e4, 0.0),
        student_logp_BT=torch.where(coin_BT.roll(1, 0), -1e4, 0.0),
        teacher_entropy_BT=entropy(teacher_entropy),
        student_entropy_BT=entropy(student_entropy),
    )
    signal = distil(rollout, scores, method, CONTEXT)
    assert all_finite(signal)
    train_BT = rollout.mask_BT & signal.keep_B.unsqueeze(1)
    torch.testing.assert_close(signal.weight_BT.sum(dim=1), train_BT.sum(dim=1).float())


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
    assert (other.weight_BT[:, 11:] == 0).all() and (other.advantage_BT[:, 11:] == 0).all()
    assert_close(one, replace(other, weight_BT=other.weight_BT[:, :11], advantage_BT=other.advantage_BT[:, :11]))


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
    assert_close(
        replace(masked, weight_BT=deleted(masked.weight_BT), advantage_BT=deleted(masked.advantage_BT)), without
    )
    assert masked.weight_BT[row, token] == masked.advantage_BT[row, token] == 0


@every_recipe
def test_holes_are_as_if_they_had_never_been_there(method):
    rollout, scores = window(seed=4)
    order_BT = (~rollout.mask_BT).to(torch.uint8).argsort(dim=1, stable=True)  # each row's tokens first, in order
    assert not torch.equal(order_BT, torch.arange(11).expand(40, 11))

    def compact(value_BT):
        return value_BT.gather(1, order_BT)

    holes = distil(rollout, scores, method, CONTEXT)
    dense = distil(replace(rollout, mask_BT=compact(rollout.mask_BT)), mapped(scores, compact), method, CONTEXT)
    assert_close(replace(holes, weight_BT=compact(holes.weight_BT), advantage_BT=compact(holes.advantage_BT)), dense)


# Rows


@every_recipe
def test_of_40_rows_32_are_kept(method):
    rollout, scores = window()
    signal = distil(rollout, scores, method, CONTEXT)
    kept = 40 if any(method is RECIPES[name] for name in KEEPS_ALL) else 32
    if method in (RECIPES["fire, per teacher"], RECIPES["random, per teacher"]):
        kept = 40 - 2 - 2 - 2  # of 14, 13 and 13 rows a fifth each
    assert int(signal.keep_B.sum()) == signal.metrics["kept_rows"] == kept
    assert signal.metrics["keep_ratio"] == kept / 40
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


@recipes(name for name in RECIPES if name not in DRAWS)
def test_the_order_of_the_rows_does_not_matter(method):
    rollout, scores = window(seed=5)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    one = distil(rollout, scores, method, CONTEXT)
    other = distil(*rows_of(rollout, scores, order), method, CONTEXT)
    assert_close(Signal(one.keep_B[order], one.weight_BT[order], one.advantage_BT[order], one.metrics), other)


def emptied(rollout: Rollout, rows: list[int]) -> Rollout:
    keep_B = torch.ones(len(rollout.mask_BT), dtype=torch.bool)
    keep_B[rows] = False
    return rollout.only(keep_B)


def assert_as_without(signal: Signal, rollout: Rollout, scores: Scores, method: Method, gone: list[int]):
    """The rows `gone` cost themselves and nothing else."""
    assert not signal.keep_B[gone].any()
    assert (signal.weight_BT[gone] == 0).all() and (signal.advantage_BT[gone] == 0).all()
    empty = distil(emptied(rollout, gone), scores, method, CONTEXT)  # the others keep their numbers
    assert torch.equal(signal.keep_B, empty.keep_B)
    assert torch.equal(signal.weight_BT, empty.weight_BT)
    assert torch.equal(signal.advantage_BT, empty.advantage_BT)
    rest = [row for row in range(len(signal.keep_B)) if row not in gone]
    if method not in [RECIPES[name] for name in DRAWS]:
        short = distil(*rows_of(rollout, scores, rest), method, CONTEXT)
        assert torch.equal(signal.keep_B[rest], short.keep_B)
        torch.testing.assert_close(signal.weight_BT[rest], short.weight_BT, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(signal.advantage_BT[rest], short.advantage_BT, rtol=1e-12, atol=1e-12)
        ours = {name: value for name, value in signal.metrics.items() if name not in COUNTS}
        theirs = {name: value for name, value in short.metrics.items() if name not in COUNTS}
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)


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
    assert_as_without(signal, rollout, scores, method, [row])
    assert (signal.metrics["nonfinite_teacher"], signal.metrics["empty"]) == (1, 0)
    assert all_finite(signal)


@every_recipe
def test_empty_rows_cost_nothing_but_themselves(method):
    rollout, scores = window(seed=7)
    gone = [0, 1, 17, 39]
    signal = distil(emptied(rollout, gone), scores, method, CONTEXT)
    assert_as_without(signal, rollout, scores, method, gone)
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
    assert (signal.weight_BT == 0).all() and (signal.advantage_BT == 0).all()
    assert all_finite(signal)
    assert signal.metrics["empty" if cause == "empty" else "nonfinite_teacher"] == rows


@every_recipe
def test_a_filter_that_drops_all_leaves_zero_and_not_nan(method):
    rollout, scores = window()
    method = replace(method, filter=lambda score_B, rollout, context: torch.zeros(40, dtype=torch.bool))
    signal = distil(rollout, scores, method, CONTEXT)
    assert not signal.keep_B.any() and all_finite(signal)
    assert (signal.weight_BT == 0).all() and (signal.advantage_BT == 0).all()


@every_recipe
def test_a_filter_of_ones_own_cannot_bring_back_an_empty_or_broken_row(method):
    rollout, scores = window()
    rollout = emptied(rollout, [2])
    scores = with_value(scores, "teacher_logp_BT", 3, 0, NAN)
    method = replace(method, filter=lambda score_B, rollout, context: torch.ones(40, dtype=torch.bool))
    signal = distil(rollout, scores, method, CONTEXT)
    assert (~signal.keep_B).nonzero().flatten().tolist() == [2, 3]


# Identities


@pytest.mark.parametrize("name", METHODS)
def test_neutral_settings_are_plain_distillation_to_the_bit(name):
    assert name in NEUTRAL, "a method states the setting in which it is plain on-policy distillation"
    rollout, scores = window(seed=8)
    rollout = emptied(rollout, [5])
    scores = with_value(scores, "teacher_logp_BT", 9, 0, NAN)
    neutral = METHODS[name](*NEUTRAL[name])
    assert_bitwise(distil(rollout, scores, neutral, CONTEXT), distil(rollout, scores, METHODS["opd"](), CONTEXT))
    bare = Scores(scores.teacher_logp_BT, scores.student_logp_BT)  # and no entropy is asked for
    assert_bitwise(distil(rollout, bare, neutral, CONTEXT), distil(rollout, bare, METHODS["opd"](), CONTEXT))


@pytest.mark.parametrize("name", set(METHODS) - {"opd"})
def test_default_settings_are_not_plain_distillation(name):
    rollout, scores = window(seed=8)
    one, other = (distil(rollout, scores, METHODS[n](), CONTEXT) for n in (name, "opd"))
    assert (one.advantage_BT - other.advantage_BT).abs().max() > 0.1


@every_recipe
def test_the_seed_matters_to_random_methods_alone(method):
    rollout, scores = window()
    one, other = (distil(rollout, scores, method, Context(seed=seed)) for seed in (0, 1))
    if method in [RECIPES[name] for name in DRAWS]:
        assert not torch.equal(one.keep_B, other.keep_B) and not torch.equal(one.weight_BT, other.weight_BT)
    else:
        assert_bitwise(one, other)


# Refusals


@pytest.mark.parametrize(("name", "signal_name"), [(n, s) for n, method in RECIPES.items() for s in method.signals])
def test_a_missing_signal_is_refused_by_name(name, signal_name):
    rollout, scores = window()
    with pytest.raises(ValueError, match=signal_name):
        distil(rollout, replace(scores, **{signal_name: None}), RECIPES[name], CONTEXT)


@every_recipe
def test_a_method_reads_the_signals_that_it_names_and_no_other(method):
    rollout, scores = window()
    full = distil(rollout, scores, method, CONTEXT)
    bare = replace(scores, **{name: None for name in vars(scores) if name not in method.signals})
    signal = distil(rollout, bare, method, CONTEXT)
    assert torch.equal(full.keep_B, signal.keep_B) and torch.equal(full.advantage_BT, signal.advantage_BT)


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


@pytest.mark.parametrize("signal_name", ["teacher_entropy_BT", "student_entropy_BT"])
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


@pytest.mark.parametrize("name", ["fire", "fire_released", "random"])
@pytest.mark.parametrize(
    "wrong",
    [{"drop_fraction": 1.0}, {"drop_fraction": -0.1}, {"drop_fraction": NAN}]
    + [{knob: value} for knob in ("confidence", "confusion") for value in (-0.1, INF, NAN)],
    ids=str,
)
def test_a_setting_without_meaning_is_refused_by_name(name, wrong):
    (field, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=f"{field}={value}"):
        METHODS[name](**wrong)


# Several ranks


class Meeting:
    """Where the threads of one window meet: each leaves a value, all read, and nobody leaves before."""

    def __init__(self, ranks: int):
        self.barrier = threading.Barrier(ranks, timeout=10)
        self.values = [None] * ranks

    def exchange(self, rank: int, operation: str, value) -> list:
        self.values[rank] = (operation, value)
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        assert {name for name, _ in values} == {operation}, f"ranks meet in different collectives: {values}"
        return [value for _, value in values]


class Rank(World):
    """One of several ranks, each a thread of this process."""

    def __init__(self, meeting: Meeting, rank: int):
        self.meeting, self.rank = meeting, rank

    def gather(self, value_B):
        return torch.cat(self.meeting.exchange(self.rank, "gather", value_B))

    def own(self, rows):
        start = sum(self.meeting.exchange(self.rank, "own", rows)[: self.rank])
        return slice(start, start + rows)

    def sum(self, value):
        return torch.stack(self.meeting.exchange(self.rank, "sum", value)).sum(dim=0)

    def max(self, value):
        return torch.stack(self.meeting.exchange(self.rank, "max", value)).amax(dim=0)


def on_ranks(count: int, work: Callable[[int, World], object]) -> list:
    """`work(rank, world)` on every rank at once: what each returned, or the FloatingPointError that stopped it."""
    meeting, results, errors = Meeting(count), [None] * count, []

    def run(rank: int):
        try:
            results[rank] = work(rank, Rank(meeting, rank))
        except FloatingPointError as error:
            results[rank] = error
        except Exception as error:  # a bug: no rank waits for this one, and the test shows it
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error
    return results


SPLITS = {"two ranks": [25, 15], "four ragged ranks": [17, 1, 12, 10], "a rank for each row": [1] * 40}
SILENT = 1  # the rank whose rows are all empty


def split_window(sizes: list[int]) -> tuple[Rollout, Scores, list[slice]]:
    """A window whose statistics no rank knows alone: the first rows have the lowest scores, the last the maxima."""
    rollout, scores = window(seed=9)
    rollout.mask_BT[25:, 6:] = False
    starts = [sum(sizes[:rank]) for rank in range(len(sizes))]
    parts = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    if len(sizes) > 2:
        rollout = emptied(rollout, list(range(40))[parts[SILENT]])
    row_B = torch.arange(40).unsqueeze(1)
    last_B = torch.where(row_B >= 30, 3.0, 1.0)
    scores = replace(
        scores,
        teacher_logp_BT=scores.teacher_logp_BT - torch.where(row_B < 10, 5.0, 0.0),
        teacher_entropy_BT=scores.teacher_entropy_BT * last_B,
        student_entropy_BT=scores.student_entropy_BT * last_B,
    )
    return rollout, scores, parts


def trimmed(rollout: Rollout, scores: Scores) -> tuple[Rollout, Scores, int]:
    """As a rank holds it: no wider than its own longest row."""
    width = max(1, int((rollout.mask_BT * torch.arange(1, 12)).max()))
    return replace(rollout, mask_BT=rollout.mask_BT[:, :width]), mapped(scores, lambda v_BT: v_BT[:, :width]), width


def joined(signals: list[Signal]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    def wide(value_BT):
        return torch.nn.functional.pad(value_BT, (0, 11 - value_BT.shape[1]))

    return (
        torch.cat([signal.keep_B for signal in signals]),
        torch.cat([wide(signal.weight_BT) for signal in signals]),
        torch.cat([wide(signal.advantage_BT) for signal in signals]),
    )


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
    keep_B, weight_BT, advantage_BT = joined(signals)
    assert torch.equal(keep_B, whole.keep_B)
    torch.testing.assert_close(weight_BT, whole.weight_BT, rtol=0, atol=1e-6)
    torch.testing.assert_close(advantage_BT, whole.advantage_BT, rtol=0, atol=1e-6)
    for signal in signals:
        assert signal.metrics == signals[0].metrics  # every rank logs the same numbers
    assert signals[0].metrics == pytest.approx(whole.metrics, rel=1e-5, abs=1e-6)


@every_recipe
@pytest.mark.parametrize("sizes", SPLITS.values(), ids=SPLITS)
def test_the_windows_of_these_tests_would_betray_local_statistics(method, sizes):
    rollout, scores, parts = split_window(sizes)
    whole = distil(rollout, scores, method, CONTEXT)
    alone = [distil(*rows_of(rollout, scores, part), method, CONTEXT) for part in parts]
    assert all(signal.metrics != pytest.approx(whole.metrics, rel=1e-2) for signal in alone)
    keep_B, weight_BT, _ = joined(alone)
    if whole.keep_B.sum() < rollout.alive_B.sum():
        assert not torch.equal(keep_B, whole.keep_B)
    if whole.metrics["weight_max"] > 1 and not any(method is RECIPES[name] for name in LOCAL):
        both_BT = rollout.mask_BT & (keep_B & whole.keep_B).unsqueeze(1)
        assert (weight_BT - whole.weight_BT)[both_BT].abs().max() > 0.05


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
