"""The arms of a comparison, as data: a name stands for the same settings wherever it appears."""

from dataclasses import dataclass, field
from typing import Any


BASELINES = ("sft", "grpo")  # TRL's own trainers, not recipes of this library


@dataclass(frozen=True)
class Arm:
    """
    One method with its settings.

    Args:
        name (`str`):
            Its label in tables and pictures; it also names the files of its runs.
        method (`str`):
            A name in `METHODS`, or `"sft"` or `"grpo"`.
        method_kwargs (`dict`, *optional*):
            Arguments of the recipe.
        config (`dict`, *optional*):
            Further fields of the trainer's configuration.
        generations (`int`, *optional*, defaults to `1`):
            Completions for each prompt; an update has equally many completions in all arms.
        against (`str`, *optional*, defaults to `"opd"`):
            Name of the arm that this one is compared with.
        control (`str`, *optional*):
            Name of the arm that spends the same budget at random.
    """

    name: str
    method: str
    method_kwargs: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    generations: int = 1
    against: str = "opd"
    control: str | None = None

    @property
    def is_control(self) -> bool:
        """Whether this arm is somebody's random control."""
        return self.method == "random" or self.config.get("control", "none") != "none"

    @property
    def trained_with(self) -> dict[str, Any]:
        """The fields that decide the outcome of a run together with its seed; names and comparisons do not."""
        return {
            "method": self.method,
            "method_kwargs": self.method_kwargs,
            "config": self.config,
            "generations": self.generations,
        }


@dataclass(frozen=True)
class Preset:
    """
    Arms that are reported together.

    Args:
        title (`str`): The question that the arms answer.
        arms (`tuple[str]`): Names in `ARMS`, in the order of the table.
        seeds, steps, problems (`int`): Defaults of the command line; the last counts held-out problems.
        curve_problems, curve_every (`int`): Held-out problems in a point of the learning curve, and steps between two.
        task (`str`): What is learned: `"embedded"` additions, or `"real"` sums in words by a real language model.
    """

    title: str
    arms: tuple[str, ...]
    seeds: int = 8
    steps: int = 60
    problems: int = 2000
    curve_problems: int = 500
    curve_every: int = 10
    task: str = "embedded"


GROUP: dict[str, Any] = {"generations": 4, "against": "opd-n4"}
SWEEP = (0.25, 0.5, 2, 3, 5)  # 1 is `fire` itself
FRACTIONS = (0.1, 0.3, 0.4)  # 0.2 is `fire` itself

_ARMS = [
    Arm("opd", "opd"),
    Arm("opd-n4", "opd", generations=4),
    Arm("sft", "sft"),
    Arm("grpo", "grpo", **GROUP),
    Arm("fire", "fire", control="random"),
    Arm("random", "random"),
    Arm("fire: random filter", "fire", config={"control": "filter"}),
    Arm("fire: random tokens", "fire", config={"control": "tokens"}),
    Arm("fire_released", "fire_released", control="fire_released: random tokens"),
    Arm("exopd", "exopd"),
    Arm("tip", "tip", control="tip: random tokens"),
    Arm("tip: random tokens", "tip", config={"control": "tokens"}),
    Arm("eopd", "eopd", {"top_k": 8}),  # the embedded teacher is hardly ever as unsure as its 0.8 nats
    Arm("eopd: tau=0.1", "eopd", {"top_k": 8, "threshold": 0.1}, control="eopd: tau=0.1, random tokens"),
    Arm("eopd: tau=0.1, random tokens", "eopd", {"top_k": 8, "threshold": 0.1}, {"control": "tokens"}),
    Arm("reopold", "reopold", control="reopold: random tokens"),
    Arm("reopold: random tokens", "reopold", config={"control": "tokens"}),
    Arm("tropd", "tropd", {"top_k": 8}, control="tropd: random tokens"),
    Arm("tropd: random tokens", "tropd", {"top_k": 8}, {"control": "tokens"}),
    Arm("iw_opd", "iw_opd", control="iw_opd: random tokens"),
    Arm("power_opd", "power_opd"),
    Arm("opd_full", "opd_full"),
    Arm("fire_full", "fire_full", control="fire_full: random"),
    Arm("fire_full: random", "fire_full", config={"control": "both"}),
    Arm("uni_opd", "uni_opd", **GROUP),
    Arm("gc_opd", "gc_opd", **GROUP),
    Arm("scope", "scope", control="scope: random rows", **GROUP),
    Arm("opdvr", "opdvr", control="opdvr: random tokens", **GROUP),
    Arm("opdvr: random tokens", "opdvr", config={"control": "tokens"}, **GROUP),
    # The parts of fire
    Arm("fire: no filter", "fire", config={"drop_fraction": 0.0}),
    Arm("fire: no confidence", "fire", config={"confidence": 0.0}),
    Arm("fire: no confusion", "fire", config={"confusion": 0.0}),
    Arm("fire: filter only", "fire", config={"confidence": 0.0, "confusion": 0.0}, control="random filter only"),
    Arm("random filter only", "fire", config={"confidence": 0.0, "confusion": 0.0, "control": "filter"}),
    # Hard or soft, over trajectories and over tokens; `fire` itself is hard on rows and soft on tokens
    *[
        arm
        for rows, tokens in (("hard", "hard"), ("soft", "soft"), ("soft", "hard"))
        for name in (f"fire: {rows} rows, {tokens} tokens",)
        for given in ({"rows": rows, "tokens": tokens},)
        for arm in (
            Arm(name, "fire", given, control=f"{name}, at random"),
            Arm(f"{name}, at random", "fire", given, {"control": "both"}),
        )
    ],
    # Controls of methods whose weights are mild; not in `all`
    Arm("fire_released: random tokens", "fire_released", config={"control": "tokens"}),
    Arm("iw_opd: random tokens", "iw_opd", config={"control": "tokens"}),
    Arm("scope: random rows", "scope", config={"control": "filter"}, **GROUP),
    # How strong
    *[Arm(f"fire: alpha={value:g}", "fire", config={"confidence": float(value)}) for value in SWEEP],
    *[Arm(f"fire: beta={value:g}", "fire", config={"confusion": float(value)}) for value in SWEEP],
    *[Arm(f"fire: drop={value:g}", "fire", config={"drop_fraction": value}) for value in FRACTIONS],
]
ARMS = {arm.name: arm for arm in _ARMS}
assert len(ARMS) == len(_ARMS), "two arms have one name"


def with_controls(*names: str) -> tuple[str, ...]:
    """The arms, followed by their random controls."""
    controls = [ARMS[name].control for name in names]
    return tuple(dict.fromkeys([*names, *(name for name in controls if name is not None)]))


PRESETS = {
    "smoke": Preset(
        "Does the comparison run?",
        ("opd", "fire"),
        seeds=2,
        steps=3,
        problems=64,
        curve_problems=32,
        curve_every=1,
    ),
    "paper-table2": Preset(
        "The methods of the paper's main table",
        with_controls("opd", "opd-n4", "sft", "grpo", "exopd", "tip", "eopd", "reopold", "uni_opd", "fire"),
    ),
    "paper-table5": Preset(
        "Which parts of fire matter?",
        with_controls(
            "opd", "fire", "fire: no filter", "fire: no confidence", "fire: no confusion", "fire: filter only"
        ),
    ),
    "paper-table6": Preset(
        "Hard or soft, over trajectories and over tokens",
        with_controls(
            "opd",
            "fire",
            "fire: hard rows, hard tokens",
            "fire: soft rows, soft tokens",
            "fire: soft rows, hard tokens",
        ),
    ),
    "paper-table7": Preset(
        "How strong should the token weights be?",
        with_controls("opd", "fire", *[f"fire: {knob}={value:g}" for knob in ("alpha", "beta") for value in SWEEP]),
    ),
    "paper-table8": Preset(
        "How many trajectories should be dropped?",
        with_controls("opd", "fire", *[f"fire: drop={value:g}" for value in FRACTIONS]),
    ),
    "real": Preset(
        "On a real language model (SmolLM2-135M): is fire above opd, and above its control?",
        ("opd", "fire", "random", "opd_full", "fire_full", "tip"),
        seeds=4,
        steps=12,
        problems=48,
        curve_problems=24,
        curve_every=4,
        task="real",
    ),
    "all": Preset(
        "Every method, random controls of those that select, and TRL's own SFT and GRPO",
        tuple(arm.name for arm in _ARMS[: [arm.name for arm in _ARMS].index("fire: no filter")]),
    ),
}


def selected(preset: Preset, names: list[str] | None = None) -> list[Arm]:
    """
    The arms of a preset, or any arms by name, with those that they are compared with.

    Args:
        preset ([`Preset`]): Where the arms come from if no names are given.
        names (`list[str]`, *optional*): Names in `ARMS`.
    """
    if names is None:
        return [ARMS[name] for name in preset.arms]
    if unknown := [name for name in names if name not in ARMS]:
        raise ValueError(f"{unknown[0]!r} is no arm. Arms: {', '.join(ARMS)}.")
    wanted = [ARMS[name] for name in names]
    related = {name for arm in wanted for name in (arm.name, arm.against, arm.control)}
    related |= {ARMS[arm.against].against for arm in wanted}
    return [arm for arm in _ARMS if arm.name in related]
