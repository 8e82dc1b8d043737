"""What fits, what is cheapest, and which settings follow."""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from .hardware import Assumptions, Hardware
from .memory import memory
from .run import Placed, PlannedRun
from .seconds import Cost, cache_room, rank_rows, seconds


PLACEMENTS = ("sharded", "replicated", "offload")
SCALES = (4, 8, 16, 64)
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of a card, for an engine beside the training
BUDGETS = tuple(2**power for power in range(11, 22))  # 2 k to 2 M tokens


@dataclass(frozen=True)
class Plan:
    """
    A run on some hardware, and what follows: reports and pages are made of it.

    Args:
        run ([`PlannedRun`]): The run.
        hardware ([`Hardware`]): Its cards.
        assumptions ([`Assumptions`]): What nobody has said.
        steps (`int`, *optional*): Optimizer steps of the whole run.
        price (`float`, *optional*): Money for one card and hour.
    """

    run: PlannedRun
    hardware: Hardware
    assumptions: Assumptions
    steps: int | None = None
    price: float | None = None

    @cached_property
    def memory(self) -> dict[str, dict[str, float]]:
        """Bytes on a card by phase and component."""
        return memory(self.run, self.hardware.memory)

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """What each phase of an optimizer step costs."""
        return seconds(self.run, self.hardware, self.assumptions)

    @property
    def step_seconds(self) -> float:
        """Seconds of an optimizer step."""
        return sum(cost.seconds for cost in self.costs.values())

    @property
    def peaks(self) -> dict[str, float]:
        """Bytes on a card by phase."""
        return {phase: sum(parts.values()) for phase, parts in self.memory.items()}

    @property
    def peak(self) -> float:
        """Bytes on a card where most are needed."""
        return max(self.peaks.values())

    @property
    def peak_phase(self) -> str:
        """The phase that needs most."""
        return max(self.peaks, key=lambda phase: self.peaks[phase])

    @property
    def room(self) -> int:
        """Bytes of a card that this plan may use."""
        return round(self.hardware.memory - self.assumptions.reserve)

    @property
    def fits(self) -> bool:
        """Whether every phase fits on the card, and the engine has room for a row."""
        return self.peak <= self.room and self.engine_fits

    @property
    def engine_fits(self) -> bool:
        """Whether an engine's share of a card holds its weights, and a row beside them."""
        engine = self.run.engine
        return engine is None or cache_room(self.run, engine, self.hardware) > 0

    @property
    def cards(self) -> int:
        """Cards of the whole run, those of servers among them."""
        return self.run.gpus + (self.run.engine.gpus if self.run.engine is not None else 0)

    @property
    def hours(self) -> float | None:
        """Hours of the whole run."""
        return None if self.steps is None else self.steps * self.step_seconds / 3600

    @property
    def card_hours(self) -> float | None:
        """Hours of all cards together."""
        return None if self.hours is None else self.hours * self.cards

    def of(self, run: PlannedRun) -> "Plan":
        """The plan of another run on the same hardware."""
        return replace(self, run=run)


def with_rows(run: PlannedRun, rows: int) -> PlannedRun | None:
    """Returns the run with micro-batches of so many rows and the same window, or `None` where it cannot be cut so."""
    held, windows = run.rows * run.accumulation, run.steps_per_generation // run.accumulation
    if held % rows:
        return None
    return replace(run, rows=rows, accumulation=held // rows, steps_per_generation=held // rows * windows)


def cuts(plan: Plan) -> list[Plan]:
    """Returns the plan with every size of micro-batches into which its window can be cut."""
    runs = (with_rows(plan.run, rows) for rows in range(1, plan.run.rows * plan.run.accumulation + 1))
    return [plan.of(run) for run in runs if run is not None]


def with_budget(plan: Plan, budget: int) -> Plan:
    """Returns the plan with another scoring budget."""
    return plan.of(replace(plan.run, scoring_token_budget=budget))


def largest_rows(plan: Plan) -> int | None:
    """Returns the rows of the largest micro-batch that fits, of those into which the window can be cut."""
    return max((other.run.rows for other in cuts(plan) if other.fits), default=None)


def largest_budget(plan: Plan) -> int | None:
    """Returns the largest scoring budget that fits, of the powers of two up to a whole window of a rank."""
    window = rank_rows(plan.run) * (plan.run.prompt_longest + plan.run.completion_longest)
    fitting = [budget for budget in BUDGETS if budget < 2 * window and with_budget(plan, budget).fits]
    return max(fitting, default=None)


def placed(plan: Plan) -> dict[str, Plan]:
    """
    Returns the plan under each placement of the teachers that can be: nothing is partitioned beside a whole student,
    packed weights are always whole, and a student without its adapter is where the student is.
    """
    if not any(movable(teacher) for teacher in plan.run.teachers.values()):
        return {}
    kinds = [kind for kind in PLACEMENTS if kind != "sharded" or plan.run.sharding in ("zero3", "fsdp2")]
    return {kind: plan.of(placed_at(plan.run, kind)) for kind in kinds}


def movable(teacher: Placed) -> bool:
    """Whether a teacher can be placed in several ways."""
    return teacher.placement != "student" and teacher.bits >= 16


def placed_at(run: PlannedRun, kind: str) -> PlannedRun:
    """Returns the run with its teachers placed so, but for those that cannot be."""
    teachers = {
        name: replace(teacher, placement=kind) if movable(teacher) else teacher
        for name, teacher in run.teachers.items()
    }
    return replace(run, teachers=teachers)


def placement_of(run: PlannedRun) -> str:
    """Returns how the teachers are placed, as `teacher_placement` says it."""
    kinds = [teacher.placement for teacher in run.teachers.values() if movable(teacher)]
    return kinds[0] if kinds else "auto"


def sleeping(run: PlannedRun, sleeps: bool) -> PlannedRun:
    """Returns the run with an engine that sleeps while the student trains, or not."""
    return run if run.engine is None else replace(run, engine=replace(run.engine, sleeps=sleeps))


def shared(run: PlannedRun, share: float | None) -> PlannedRun:
    """Returns the run with an engine that takes such a share of a card."""
    return run if run.engine is None or share is None else replace(run, engine=replace(run.engine, memory=share))


def share_of(run: PlannedRun) -> float | None:
    """Returns the share of a card that an engine takes, `None` without one."""
    return run.engine.memory if run.engine is not None else None


def sleeps_in(run: PlannedRun) -> bool:
    """Whether the run has an engine that sleeps."""
    return run.engine is not None and run.engine.sleeps


def cheapest(plans: dict[str, Plan], kept: str, before: PlannedRun | None = None) -> str | None:
    """
    Returns the name of the plan whose step is shortest among those that fit. Of those within 2 % of it, which no plan
    can tell apart, it is the `kept` one, or else the one that changes the fewest settings of `before`, and
    then the one that needs least memory.
    """
    fitting = {name: plan for name, plan in plans.items() if plan.fits}
    best = min((plan.step_seconds for plan in fitting.values()), default=0.0)
    alike = {name: plan.peak for name, plan in fitting.items() if plan.step_seconds <= 1.02 * best}
    changes = {name: len(changed_settings(before, plans[name].run)) if before else 0 for name in alike}
    return kept if kept in alike else min(alike, key=lambda name: (changes[name], alike[name])) if alike else None


def scaled(plan: Plan, gpus: int) -> Plan | None:
    """Returns the plan of the same window on another number of cards, or `None` where it cannot be cut so."""
    run = plan.run
    held, left = divmod(run.rows * run.accumulation * run.gpus, gpus)
    if left or not held or (run.engine is not None and not run.engine.gpus and gpus % run.engine.tensor_parallel):
        return None
    rows = max(size for size in range(1, run.rows + 1) if held % size == 0)
    windows = run.steps_per_generation // run.accumulation
    return plan.of(
        replace(
            run,
            gpus=gpus,
            rows=rows,
            accumulation=held // rows,
            steps_per_generation=held // rows * windows,
        )
    )


def fitted(plan: Plan) -> Plan | None:
    """
    Returns the cheapest plan with the same mathematics: of each placement of the teacher, with and without recomputed
    activations and an engine that sleeps, and of each share of the card for that engine, the cheapest micro-batch and
    then the cheapest scoring budget. `fire-opd plan --fit` calls it. `None` if nothing fits.
    """
    run, found = plan.run, {}
    colocated = run.engine is not None and not run.engine.gpus
    shares = sorted({share_of(run), *SHARES}) if colocated else [share_of(run)]  # type: ignore[type-var]
    least = min(run.scoring_token_budget, BUDGETS[0])
    for kind in placed(plan) or [placement_of(run)]:
        for checkpointing in sorted({run.gradient_checkpointing, True}):
            for sleeps, share in product(sorted({sleeps_in(run), colocated}), shares):
                moved = shared(sleeping(placed_at(run, kind), sleeps), share)
                tried = plan.of(replace(moved, gradient_checkpointing=checkpointing, scoring_token_budget=least))
                sizes = {f"{other.run.rows}": other for other in cuts(tried)}
                if (rows := cheapest(sizes, f"{run.rows}")) is None:
                    continue
                budgets = {f"{n}": with_budget(sizes[rows], n) for n in (run.scoring_token_budget, *BUDGETS)}
                best = cheapest(budgets, f"{run.scoring_token_budget}")
                if best is not None:
                    found[f"{kind} {checkpointing} {sleeps} {share}"] = budgets[best]
    now = f"{placement_of(run)} {run.gradient_checkpointing} {sleeps_in(run)} {share_of(run)}"
    best = cheapest(found, now, run)
    return found[best] if best is not None else None


def changed_settings(before: PlannedRun, after: PlannedRun) -> dict[str, object]:
    """Returns the arguments of a training in which two runs differ, as they stand in a recipe."""
    arguments = {
        "per_device_train_batch_size": (before.rows, after.rows),
        "gradient_accumulation_steps": (before.accumulation, after.accumulation),
        "steps_per_generation": (before.steps_per_generation, after.steps_per_generation),
        "scoring_token_budget": (before.scoring_token_budget, after.scoring_token_budget),
        "gradient_checkpointing": (before.gradient_checkpointing, after.gradient_checkpointing),
        "vllm_gpu_memory_utilization": (share_of(before), share_of(after)),
        "vllm_enable_sleep_mode": (sleeps_in(before), sleeps_in(after)),
        "teacher_placement": (placement_of(before), placement_of(after)),
    }
    return {name: new for name, (old, new) in arguments.items() if old != new}
