"""
The recipes. Each is a choice of one function for every stage; each names its equation, its source, its defaults, and
the setting in which it becomes plain on-policy distillation (`opd`), to the bit.

"As described in" marks what was not read in the source itself but in other papers' or auditors' accounts of it. Where
the sources leave something open, the recipe says what is decided here.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from .pipeline import Method, refuse_other_than_method
from .spelling import did_you_mean
from .stages import (
    DIRECTIONS,
    SCOPES,
    STATISTICS,
    Divergence,
    agreeing_with_verifier,
    as_many_at_random,
    confidence_and_confusion,
    distrusted,
    drop_lowest,
    early_tokens,
    enough_margin,
    explore_then_refine,
    extrapolated,
    floored,
    group_calibrated,
    highest_weights,
    imitate_correct,
    likely_rows,
    margin_shifted,
    mean_log_ratio,
    mixed_outcomes,
    mixture_floor,
    power_difference,
    shuffled_inside_rows,
    shuffled_over_rows,
    surprising_or_plausible,
    trusted,
    uncertain_teacher,
    uniform,
    unsure_or_far,
)


# The symbols in the recipes' docstrings; `fire-opd methods NAME` prints them below the recipe.
NOTATION = """
pi_theta: the student that is trained; pi_old: the student as it sampled; pi_T: the teacher
y_t: token t of a sampled answer (trajectory) y of |y| tokens; a window is all answers sampled at a time, on all GPUs
a_t = log pi_T(y_t) - log pi_old(y_t), the log-ratio; A_t: the advantage, the token's factor in the policy gradient
H_T(t), H_S(t): entropy of the teacher's and of the student's distribution of token t; R: the reward of an answer
PPL_T, PPL_S: perplexity of an answer under teacher and student; z(x): (x - mean) / deviation among a prompt's answers
""".strip()
# arXiv number of the papers that the recipes come from: title and first author. A model card cites its method's.
PAPERS = {
    "2306.13649": (
        "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
        "Rishabh Agarwal",
    ),
    "2602.12125": (
        "Learning beyond Teacher: Generalized On-Policy Distillation with Reward Extrapolation",
        "Wenkai Yang",
    ),
    "2603.07079": ("Entropy-Aware On-Policy Distillation of Language Models", "W. Jin"),
    "2603.11137": ("Scaling Reasoning Efficiently via Relaxed On-Policy Distillation", "Jongwoo Ko"),
    "2604.10688": (
        "SCOPE: Signal-Calibrated On-Policy Distillation Enhancement with Dual-Path Adaptive Weighting",
        "Binbin Zheng",
    ),
    "2604.14084": ("TIP: Token Importance in On-Policy Distillation", "Yuanda Xu"),
    "2605.03677": ("Uni-OPD: Unifying On-Policy Distillation with a Dual-Perspective Recipe", "Wenjin Hou"),
    "2606.01249": ("Trust Region On-Policy Distillation", "Xingrun Xing"),
    "2606.02684": (
        "Filter, Then Reweight: Rethinking Optimization Granularity in On-Policy Distillation",
        "Yuying Li",
    ),
    "2606.17199": ("PowerOPD: Stabilizing On-Policy Distillation with Bounded Power Transformation", "Anhao Zhao"),
    "2606.22600": ("On the Position Bias of On-Policy Distillation", "Yan Xie"),
    "2608.19181": (
        "Beyond Teacher Likelihood: Group-Calibrated On-Policy Distillation for Long-Context Reasoning",
        "Zhu Zhang",
    ),
    "2608.24696": ("On-policy Distillation with Verifiable Reward", "Wenze Lin"),
}
PAIR = ("teacher_logp_BT", "student_logp_BT")
OUTCOMES = ("reward_B", "group_B")
INF = float("inf")


def refuse_outside(name: str, value: float, low: float, high: float, example: float) -> None:
    """A recipe calls this for an argument that must be a number in `[low, high]`, a whole one if the example is."""
    kind = int if isinstance(example, int) else int | float
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        what = "a whole number" if isinstance(example, int) else "a number"
        raise ValueError(f"{name}={value!r}: give {what} from {low} to {high}, for example {example}.")


def refuse_other(name: str, value: str | bool, names: tuple) -> None:
    """A recipe calls this for an argument that must be one of `names`."""
    if value not in names or type(value) is not type(names[0]):
        raise ValueError(f"{name}={value!r} is unknown. Use one of: {', '.join(map(str, names))}.")


# The paper and its own ablations


def opd() -> Method:
    """
    On-policy distillation: `A_t = log pi_T(y_t) - log pi_old(y_t)` on every token of every trajectory.

    Source: on-policy distillation is GKD's (arXiv 2306.13649); this form, with the sampled token alone, is the
    baseline of FiRe-OPD (arXiv 2606.02684) and of G-OPD's code.
    """
    return Method("opd", paper="2306.13649")


def fire(
    drop_fraction: float = 0.2,
    confidence: float = 1.0,
    confusion: float = 1.0,
    scope: str = "batch",
    rows: str = "hard",
    tokens: str = "soft",
    keep_tokens: float = 0.5,
) -> Method:
    """
    FiRe-OPD (arXiv 2606.02684) drops the trajectories that the teacher finds least likely, and reweights tokens:

        s(y) = 1/|y| sum_t log pi_T(y_t); drop the floor(drop_fraction N) rows of the window with the lowest s;
        w_t  = (1 + a (1 - H_T(t) / max H_T)) (1 + b H_S(t) / max H_S), divided by its mean in the trajectory (Eq. 8);
        A_t  = w_t (log pi_T(y_t) - log pi_old(y_t)).

    Defaults: the paper's 20 %, `a = confidence = 1`, `b = confusion = 1`. Source: the paper, which its released code
    does not follow everywhere (`fire_released`). `fire(0, 0, 0)` is `opd`. The paper's ablations (Table 5) are
    `fire(0)`, which has no filter, `fire(confidence=0)`, `fire(confusion=0)`, and `fire(0.2, 0, 0)`, the filter alone.

    Args:
        drop_fraction (`float`): Share of the window's trajectories to drop, in [0, 1).
        confidence (`float`): `a`, weight of the teacher's confidence, >= 0.
        confusion (`float`): `b`, weight of the student's confusion, >= 0.
        scope (`str`): Where to rank and take maxima: `"batch"` (the paper's text), each `"teacher"`, or each
            `"trajectory"`.
        rows (`str`): `"hard"` drops trajectories; `"soft"` weighs them, see `likely_rows` (Table 6; defined by us).
        tokens (`str`): `"soft"` weighs tokens; `"hard"` keeps those with the highest weight (Table 6; defined by us).
        keep_tokens (`float`): With hard tokens, the share of each trajectory that is kept, in (0, 1].
    """
    refuse_outside("drop_fraction", drop_fraction, 0, 1 - 1e-9, 0.2)
    refuse_outside("confidence", confidence, 0, 1e9, 1.0)
    refuse_outside("confusion", confusion, 0, 1e9, 1.0)
    refuse_other("scope", scope, SCOPES)
    refuse_other("rows", rows, ("hard", "soft"))
    refuse_other("tokens", tokens, ("hard", "soft"))
    refuse_outside("keep_tokens", keep_tokens, 1e-9, 1, 0.5)
    if rows == "soft" and scope != "batch":
        raise ValueError(f"scope={scope!r}: soft trajectory weights are relative to the window. Use scope='batch'.")
    if tokens == "hard" and not confidence and not confusion:
        raise ValueError("tokens='hard' has nothing to rank by: set confidence or confusion above 0.")
    entropies = [
        name for name, used in (("teacher_entropy_BT", confidence), ("student_entropy_BT", confusion)) if used
    ]
    reweight: Callable = partial(confidence_and_confusion, confidence=confidence, confusion=confusion, scope=scope)
    if tokens == "hard":
        reweight = partial(highest_weights, weigh=reweight, keep=keep_tokens)
    return Method(
        "fire",
        paper="2606.02684",
        signals=(*PAIR, *entropies),
        filter=partial(drop_lowest, fraction=drop_fraction, scope=scope) if rows == "hard" else None,
        reweight=reweight,
        row_weight=partial(likely_rows, drop_fraction=drop_fraction) if rows == "soft" else None,
    )


def fire_released(drop_fraction: float = 0.2, confidence: float = 1.0, confusion: float = 1.0) -> Method:
    """
    FiRe-OPD as the authors' released code computes it in its own recipes, for comparison.

    It is `fire` with every statistic taken inside a micro-batch of one trajectory. One row has no lowest fifth, so
    nothing is ever dropped; the entropy maxima are those of the trajectory; and the importance ratio of the rollout
    engine is not applied.

    Source: read in the released code (`_compute_entropy_aware_loss`, micro-batch 1). `fire_released(0, 0, 0)` is `opd`
    wherever no rollout engine needs correction.
    """
    method = fire(drop_fraction, confidence, confusion, scope="trajectory")
    return replace(method, name="fire_released", rollout_correction=False)


def random(
    drop_fraction: float = 0.2, confidence: float = 1.0, confusion: float = 1.0, scope: str = "batch"
) -> Method:
    """
    The control for `fire`: it drops as many trajectories and gives the same token weights, but at random.

    The survivors' token weights keep their values and change places inside each trajectory. What `fire` gains over
    this, it gains by knowing something. Source: our own, no paper. `random(0, 0, 0)` is `opd`. Any other method has
    its control in `control(method)`, or in the field `control` of the config.
    """
    return replace(control(fire(drop_fraction, confidence, confusion, scope)), name="random")


def fire_full(
    drop_fraction: float = 0.2, confidence: float = 1.0, confusion: float = 1.0, scope: str = "batch"
) -> Method:
    """
    FiRe's filter and token weights, applied to the divergence over the full vocabulary:

        minimise w_t KL(pi_theta || pi_T)(t) over the full vocabulary on the tokens of the surviving trajectories.

    Source: our own, no paper. The weights are those of `fire`. `fire_full(0, 0, 0)` is `opd_full`; as there, no
    setting is `opd` to the bit.
    """
    method = fire(drop_fraction, confidence, confusion, scope)
    return replace(method, name="fire_full", advantage=None, divergence=Divergence(weight=method.reweight))


# Baselines of the paper


def exopd(extrapolation: float = 1.25) -> Method:
    """
    ExOPD or G-OPD (arXiv 2602.12125) moves the student beyond the teacher, away from a reference model:

        A_t = lambda (log pi_T - log pi_ref) - (log pi_old - log pi_ref), with a frozen reference model pi_ref.

    Default: lambda = `extrapolation` = 1.25; the reference is the student as it was at the start. Source: the
    authors' code. `exopd(1)` is `opd`, and then loads no reference.
    """
    refuse_outside("extrapolation", extrapolation, 0, 1e3, 1.25)
    if extrapolation == 1:
        return Method("exopd", paper="2602.12125")
    return Method(
        "exopd",
        paper="2602.12125",
        signals=(*PAIR, "reference_logp_BT"),
        advantage=partial(extrapolated, extrapolation=extrapolation),
    )


def tip(keep: float = 0.5, clip_quantile: float = 0.98, full: bool = True) -> Method:
    """
    TIP (arXiv 2604.14084) trains on the tokens where the student is unsure, or sure and far from the teacher:

        h, d = H_S(t), KL(pi_S || pi_T)(t), clipped at the window's 98th percentile and scaled to [0, 1];
        s_t = h + d - h d; keep the floor(keep |y|) highest of each trajectory (at least one);
        minimise the mean of KL(pi_theta || pi_T) over the full vocabulary on the kept tokens.

    Defaults: half of the tokens (Eq. 8). Source: the paper; its repository has no such selector. A trajectory's kept
    tokens weigh as much as all of them would, so that `loss_type` keeps its meaning; the paper's mean over all kept
    tokens is the mean of `loss_type="dapo"` up to the rounding of K. With `full=False` the kept tokens follow the
    sampled-token gradient of `opd` instead, and `tip(keep=1, full=False)` is `opd`; `tip(keep=1)` is `opd_full`.

    Args:
        keep (`float`): Share of a trajectory's tokens, in (0, 1].
        clip_quantile (`float`): Quantile of the window at which both scores are clipped, in (0, 1].
        full (`bool`): Whether to train on the divergence of the full vocabulary, or on the sampled token's log-ratio.
    """
    refuse_outside("keep", keep, 1e-9, 1, 0.5)
    refuse_outside("clip_quantile", clip_quantile, 1e-9, 1, 0.98)
    refuse_other("full", full, (True, False))
    chosen = partial(unsure_or_far, keep=keep, clip_quantile=clip_quantile)
    method = Method("tip", paper="2604.14084", signals=(*PAIR, "student_entropy_BT", "reverse_kl_BT"), reweight=chosen)
    return replace(method, advantage=None, divergence=Divergence(weight=chosen)) if full else method


def eopd(threshold: float = 0.8, top_k: int = 16, coef: float = 1.0) -> Method:
    """
    EOPD (arXiv 2603.07079) also teaches the teacher's own likeliest tokens where the teacher leaves a choice:

        policy gradient of a_t  +  alpha 1[H_T(t) > tau] sum_{v in top-k of pi_T} pi_T(v) log(pi_T(v) / pi_theta(v)).

    Defaults: tau = 0.8 nats, k = 16; alpha = `coef` = 1 is an assumption. As described in an audit that quotes the
    authors' code: the second term is added, not switched to, and is divided by the number of all tokens
    (`loss_type="dapo"`), not of those above tau.
    `eopd(coef=0)` is `opd`.
    """
    refuse_outside("threshold", threshold, 0, 1e3, 0.8)
    refuse_outside("top_k", top_k, 1, 1024, 16)
    refuse_outside("coef", coef, 0, 1e3, 1.0)
    if not coef:
        return Method("eopd", paper="2603.07079")
    gate = partial(uncertain_teacher, threshold=threshold, coef=coef)
    return Method(
        "eopd",
        paper="2603.07079",
        signals=(*PAIR, "teacher_entropy_BT"),
        divergence=Divergence(top_k=top_k, weight=gate),
    )


def reopold(floor: float = 0.2, keep: float = 0.5, switch: float = 0.5) -> Method:
    """
    REOPOLD (arXiv 2603.11137) bounds the log-ratio from below, and first explores, then refines:

        A_t = max(a_t, log(lambda / (1 - lambda)));
        on the tokens with a_t above that floor, and after the share `switch` of training on those whose student
        entropy is in the window's top share beta; the mean is over the tokens that train.

    Defaults: lambda = `floor` = 0.2 (a floor of -1.386), beta = `keep` = 0.5, `switch` = 0.5. As described in three
    accounts that agree on the floor; no code was found. For the mean over tokens of all trajectories set
    `loss_type="dapo"`. `reopold(floor=0, keep=1)` is `opd`.
    """
    refuse_outside("floor", floor, 0, 1 - 1e-9, 0.2)
    refuse_outside("keep", keep, 1e-9, 1, 0.5)
    refuse_outside("switch", switch, 0, 1, 0.5)
    lowest = mixture_floor(floor)
    return Method(
        "reopold",
        paper="2603.11137",
        signals=(*PAIR, "student_entropy_BT"),
        reweight=partial(explore_then_refine, floor=lowest, keep=keep, switch=switch),
        advantage=partial(floored, floor=lowest),
    )


def uni_opd(margin: float = 0.4, statistic: str = "mean", direction: str = "both", calibrate: str = "shift") -> Method:
    """
    Uni-OPD (arXiv 2605.03677) shifts advantages until the correct answers of a prompt stand above its wrong ones.

    Where the mean a_t of the correct rows exceeds that of the wrong ones by a gap below `margin`, s = `margin` - gap:

        every token of a correct row: A_t = a_t + s/2; of a wrong row: A_t = a_t - s/2.

    Defaults: the authors' recipe (margin 0.4 between means, both directions); `calibrate="mask"` with
    `statistic="minmax"` is the paper's text, which drops such prompts. Source: code; its greedy masking, its mask of
    tokens with |a_t| >= 10 and its balancing of the data are left out. It needs rewards (above 0: correct) and several
    generations. `uni_opd(-inf)` is `opd`.

    Args:
        margin (`float`): The margin wanted, in nats a token.
        statistic (`str`): The gap of the `"mean"`, or `"minmax"`: lowest correct minus highest wrong.
        direction (`str`): Which rows move: `"both"`, `"correct_up"` or `"incorrect_down"`.
        calibrate (`str`): `"shift"` moves the advantages, `"mask"` drops the prompt.
    """
    refuse_outside("margin", margin, -INF, 1e3, 0.4)
    refuse_other("statistic", statistic, STATISTICS)
    refuse_other("direction", direction, DIRECTIONS)
    refuse_other("calibrate", calibrate, ("shift", "mask"))
    method = Method("uni_opd", paper="2605.03677", score=mean_log_ratio, needs=OUTCOMES)
    if calibrate == "mask":
        return replace(method, filter=partial(enough_margin, margin=margin, statistic=statistic))
    return replace(method, advantage=partial(margin_shifted, margin=margin, statistic=statistic, direction=direction))


# Their kin


def opd_full(mixture: float = 1.0) -> Method:
    """
    Full-vocabulary distillation: minimise KL(pi_theta || pi_T) over the whole vocabulary at every sampled token.

    Source: GKD (arXiv 2306.13649) with `mixture` 1; 0 is KL(pi_T || pi_theta), between them the generalised
    Jensen-Shannon divergence, as in TRL's DistillationTrainer. With `mixture` 1 its gradient is the expectation of
    `opd`'s over the sampled token, given what precedes it; no setting is `opd` to the bit.
    """
    refuse_outside("mixture", mixture, 0, 1, 1.0)
    return Method("opd_full", paper="2306.13649", advantage=None, divergence=Divergence(mixture=mixture))


def iw_opd(strength: float = 0.5) -> Method:
    """
    IW-OPD (arXiv 2606.22600) weighs a token less, the more student and teacher disagreed before it:

        w_t = 1 + gamma (1 - F_t), F_t = sum_{i<t} |a_i| / (sum_i |a_i| + 1e-8); A_t = w_t a_t, not normalised.

    Default: gamma = `strength` = 0.5. Source: the authors' code. The weights' mean lies above 1, which is a larger
    learning rate. `iw_opd(0)` is `opd`.
    """
    refuse_outside("strength", strength, 0, 1e3, 0.5)
    return Method("iw_opd", paper="2606.22600", reweight=partial(early_tokens, strength=strength))


def power_opd(power: float = 5.0) -> Method:
    """
    PowerOPD (arXiv 2606.17199) bounds the signal of every token: `A_t = pi_T(y_t)^alpha - pi_old(y_t)^alpha`.

    Default: alpha = `power` = 5, the authors' script (their code's own default is 0.1; GC-OPD compares at 100).
    Source: code; its masking of the final token is left out. `power_opd(0)` stands for the limit of `A_t / alpha`,
    which is `opd`.
    """
    refuse_outside("power", power, 0, 1e3, 5.0)
    return (
        Method("power_opd", paper="2606.17199", advantage=partial(power_difference, power=power))
        if power
        else Method("power_opd", paper="2606.17199")
    )


def gc_opd(strength: float = 0.1, largest: float = 10.0) -> Method:
    """
    GC-OPD (arXiv 2608.19181) gives what the outcome says beyond the teacher to the tokens that the teacher likes.

    With the row's mean s and deviation sigma of a_t, and z-scores inside the prompt group:

        A_t = a_t + beta (1 + tanh((a_t - s) / (2 sigma))) (z(R) - z(s)), clamped to [-largest, largest].

    Defaults: beta = `strength` = 0.1, `largest` = 10. Source: paper and code. It needs rewards and several
    generations. `gc_opd(0, inf)` is `opd`.
    """
    refuse_outside("strength", strength, 0, 1e3, 0.1)
    refuse_outside("largest", largest, 1e-9, INF, 10.0)
    return Method(
        "gc_opd",
        paper="2608.19181",
        advantage=partial(group_calibrated, strength=strength, largest=largest),
        needs=OUTCOMES,
    )


def scope(temperature: float = 1.0, imitate: bool = True) -> Method:
    """
    SCOPE (arXiv 2604.10688) raises the likelihood of correct answers and distils wrong ones, each path weighted:

        correct rows: A_t = w, w ~ PPL_S^(1/tau);   wrong rows: A_t = w a_t, w ~ PPL_T^(-1/tau);

    the weights of each path have mean 1 inside the prompt (the code; 1 in sum in the paper). Default: tau =
    `temperature` = 1. Source: code, with the paper's sign for the correct path, which a flag of the code turns round.
    Here both paths go through the clipped surrogate and one mean; in the code the likelihood has a mean of its own.
    It needs rewards and several generations. With `imitate=False` correct rows are distilled too, and
    `scope(inf, imitate=False)` is `opd`.
    """
    refuse_outside("temperature", temperature, 1e-9, INF, 1.0)
    refuse_other("imitate", imitate, (True, False))
    method = Method(
        "scope",
        paper="2604.10688",
        row_weight=partial(surprising_or_plausible, temperature=temperature),
        needs=OUTCOMES,
    )
    return replace(method, advantage=imitate_correct) if imitate else method


def opdvr(conflict: float = 0.0, group: bool = False) -> Method:
    """
    OPDVR (arXiv 2608.24696) moves a token only where the verifier agrees with the teacher:

        A_t = max(a_t, 0) on correct rows, min(a_t, 0) on wrong ones.

    Default: tokens in conflict with the verifier weigh `conflict` = 0. As described in a detailed account; where it
    sums over tokens, `loss_type` takes a mean. `group=True` is GRPD, which skips prompts whose answers are all correct
    or all wrong, and needs several generations. OPDVR needs rewards. `opdvr(conflict=1)` is `opd`.
    """
    refuse_outside("conflict", conflict, 0, 1e3, 0.0)
    refuse_other("group", group, (True, False))
    return Method(
        "opdvr",
        paper="2608.24696",
        filter=mixed_outcomes if group else None,
        reweight=partial(agreeing_with_verifier, conflict=conflict),
        needs=OUTCOMES if group else ("reward_B",),
    )


def tropd(top_k: int = 64, outliers: str = "forward_kl") -> Method:
    """
    TrOPD (arXiv 2606.01249) distils the sampled token where the teacher would accept it, else the teacher's own:

        M_t ~ Bernoulli(min(pi_T(y_t) / pi_old(y_t), 1));
        M_t: policy gradient of a_t;   1 - M_t: sum_{v in top-k of pi_T} pi_T(v) log(pi_T(v) / pi_theta(v)).

    Default: k = 64. As described in a detailed account. Of the method only the loss is here: the prefixes that the
    teacher writes are left out.
    `outliers="mask"` leaves those tokens out; `tropd(outliers="opd")` trusts every token and is `opd`.
    """
    refuse_outside("top_k", top_k, 1, 1024, 64)
    refuse_other("outliers", outliers, ("forward_kl", "mask", "opd"))
    if outliers == "opd":
        return Method("tropd", paper="2606.01249")
    divergence = Divergence(top_k=top_k, weight=distrusted) if outliers == "forward_kl" else None
    return Method("tropd", paper="2606.01249", reweight=trusted, divergence=divergence)


class Recipes(dict[str, Callable[..., Method]]):
    """The recipes by name, with a help that lists them, and an answer to names that it does not have."""

    def __init__(self, recipes: dict[str, Callable[..., Method]]):
        super().__init__(recipes)
        lines = [f"    {call_of(recipe)}\n        {first_sentence(recipe)}" for recipe in recipes.values()]
        self.__doc__ = (  # what help(METHODS) shows
            'The recipes by name. Call one, with its arguments, for a Method: METHODS["fire"](drop_fraction=0.1). The '
            "recipes and\ntheir defaults; help(METHODS[NAME]) or `fire-opd methods NAME` has equation and source:\n\n"
            + "\n".join(lines)
        )

    def __repr__(self) -> str:
        return f"<METHODS: {', '.join(self)}>"

    def __missing__(self, name: str) -> Callable[..., Method]:
        raise KeyError(unknown_method(name))


def call_of(recipe: Callable[..., Method]) -> str:
    """Returns how a recipe is called, with its defaults."""
    arguments = inspect.signature(recipe).parameters.values()
    return f"{recipe.__name__}({', '.join(f'{argument.name}={argument.default!r}' for argument in arguments)})"


def first_sentence(recipe: Callable[..., Method]) -> str:
    """Returns what a recipe does, in a line."""
    return (inspect.getdoc(recipe) or "").split("\n")[0].rstrip(":.")


def unknown_method(name: str) -> str:
    """Returns what to say of a name that no recipe has."""
    return f"method={name!r} is unknown.{did_you_mean(str(name), METHODS)} Use one of: {', '.join(METHODS)}."


METHODS = Recipes(
    {
        "opd": opd,
        "fire": fire,
        "fire_released": fire_released,
        "fire_full": fire_full,
        "random": random,
        "exopd": exopd,
        "tip": tip,
        "eopd": eopd,
        "reopold": reopold,
        "uni_opd": uni_opd,
        "opd_full": opd_full,
        "iw_opd": iw_opd,
        "power_opd": power_opd,
        "gc_opd": gc_opd,
        "scope": scope,
        "opdvr": opdvr,
        "tropd": tropd,
    }
)


# Controls

CONTROLS = ("none", "filter", "tokens", "both")


def control(method: Method, what: str = "both") -> Method:
    """
    The random control of a method that drops trajectories or weighs tokens, at the method's own budget. In each window
    as many trajectories survive as under its filter, but they are drawn at random, and weights of trajectories change
    places. The weights of tokens, and of a divergence, keep their values and change places inside each trajectory.
    What a method gains over its control, it gains by knowing something.

    Example:

    ```python
    >>> from fire_opd_trl import METHODS, control
    >>> control(METHODS["fire"](drop_fraction=0.1), "filter").name
    'fire, random filter'
    ```

    Args:
        method ([`Method`]): The method.
        what (`str`): What becomes random: the `"filter"`, the `"tokens"`, `"both"`, or `"none"` of them.
    """
    refuse_other_than_method(method)
    refuse_other("control", what, CONTROLS)
    if what == "none":
        return method
    divergence, changed = method.divergence, method
    if what in ("filter", "both") and method.filter:
        changed = replace(changed, filter=partial(as_many_at_random, filter=method.filter))
    if what in ("filter", "both") and method.row_weight:
        changed = replace(changed, row_weight=partial(shuffled_over_rows, weigh=method.row_weight))
    if what in ("tokens", "both") and (method.reweight or (divergence and divergence.weight)):
        changed = replace(changed, reweight=partial(shuffled_inside_rows, weigh=method.reweight or uniform))
        if divergence:
            shuffled = partial(shuffled_inside_rows, weigh=divergence.weight or uniform)
            changed = replace(changed, divergence=replace(divergence, weight=shuffled))
    if changed is method:
        parts = {"filter": "trajectory", "tokens": "token", "both": "trajectory or token"}
        raise ValueError(
            f"control={what!r} has nothing to randomise: {method.name!r} selects and weighs no {parts[what]}. Leave "
            "control at 'none'."
        )
    return replace(changed, name=f"{method.name}, random {what}")
