"""How long each phase of a step takes: operations, bytes of memory, and bytes over links, at the rates of a card."""

import heapq
import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from .cost import OPTIMIZER_PASSES, Work
from .hardware import GIB, Assumptions, Hardware
from .run import Engine, Placed, PlannedRun
from .shapes import ModelShape


PHASES = ("rollout", "teacher scoring", "student scoring", "update")


@dataclass(frozen=True)
class Cost:
    """
    Seconds of a phase of one optimizer step, of the rank that takes longest.

    Args:
        compute (`float`): Seconds of its operations, with what launching them takes.
        memory (`float`): Seconds in which a card's memory is read and written, where that takes longer.
        links (`float`): Seconds of communication, all of it.
        hidden (`float`): Seconds of the communication that pass while something is computed.
    """

    compute: float = 0.0
    memory: float = 0.0
    links: float = 0.0
    hidden: float = 0.0

    @property
    def seconds(self) -> float:
        """How long the phase takes."""
        return self.compute + self.memory + self.links - self.hidden

    @property
    def dominant(self) -> str:
        """What takes most of it."""
        parts = {"operations": self.compute, "memory": self.memory, "links": self.links - self.hidden}
        return max(parts, key=lambda name: parts[name]) if self.seconds else "nothing"

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.compute + other.compute,
            self.memory + other.memory,
            self.links + other.links,
            self.hidden + other.hidden,
        )

    def times(self, factor: float) -> "Cost":
        """The same so many times."""
        return Cost(self.compute * factor, self.memory * factor, self.links * factor, self.hidden * factor)


def seconds(run: PlannedRun, hardware: Hardware, assumptions: Assumptions) -> dict[str, Cost]:
    """Returns the cost of each phase of one optimizer step. Reports and [`~.fit.best`] call it."""
    return {
        "rollout": rollout(run, hardware, assumptions),
        "teacher scoring": teacher_scoring(run, hardware, assumptions),
        "student scoring": student_scoring(run, hardware, assumptions),
        "update": update(run, hardware, assumptions),
    }


# Lengths


def completion_lengths(rows: int, run: PlannedRun, spread: float) -> list[float]:
    """Returns the lengths of `rows` completions of a run, the longest first."""
    return list(log_normal(rows, run.completion_mean, run.completion_longest, spread))


def with_longest(lengths: list[float], run: PlannedRun, spread: float) -> list[float]:
    """
    Returns the lengths of the rank that all others wait for: its longest completion is the longest of the window, the
    highest quantile of all rows in place of the rank's.
    """
    rows, normal = len(lengths), NormalDist()
    steps = normal.inv_cdf(1 - 0.5 / max(rows, run.window)) - normal.inv_cdf(0.5 / rows)
    longest = lengths[-1] * math.exp(spread * steps)  # from the shortest, which no limit has cut
    return [max(lengths[0], min(float(run.completion_longest), longest)), *lengths[1:]]


@lru_cache
def log_normal(rows: int, mean: float, longest: float, spread: float) -> tuple[float, ...]:
    """
    Returns the quantiles of a log-normal distribution that is cut at the longest length, and whose mean after the cut
    is the mean length, the longest first.
    """
    if mean >= longest:
        return (float(longest),) * rows
    draws = [math.exp(spread * NormalDist().inv_cdf((i + 0.5) / rows)) for i in reversed(range(rows))]
    low, high = 0.0, float(longest) / min(draws)
    for _ in range(60):
        middle = (low + high) / 2
        if sum(min(longest, middle * draw) for draw in draws) / rows < mean:
            low = middle
        else:
            high = middle
    return tuple(min(float(longest), high * draw) for draw in draws)


def work_of(run: PlannedRun, lengths: list[float]) -> Work:
    """Returns what passes through a model that reads these completions behind their prompts."""
    prompt = run.prompt_mean
    return Work(
        rows=len(lengths),
        tokens=round(sum(prompt + length for length in lengths)),
        padded=round(sum(prompt + length for length in lengths)),
        pairs=round(sum((prompt + length) * (prompt + length + 1) / 2 for length in lengths)),
        scored=round(sum(lengths)),
    )


# Arithmetic and links


def operations(shape: ModelShape, work: Work) -> float:
    """
    Returns the operations of a forward: two for each token and parameter that it is multiplied with, the head on
    completion tokens alone, and attention over the pairs that a causal mask leaves.
    """
    attention = 4 * shape.layers * shape.heads * shape.head_dim * work.pairs
    return 2 * shape.active_in_layers * work.tokens + 2 * shape.head * work.scored + attention


def rate(shape: ModelShape, hardware: Hardware, assumptions: Assumptions) -> float:
    """Returns the operations a second that a model reaches."""
    fraction = assumptions.experts_fraction if shape.experts else assumptions.compute_fraction
    return hardware.operations * fraction


def link_rate(run: PlannedRun, hardware: Hardware, assumptions: Assumptions) -> float:
    """
    Returns the bytes a second that reach a card in a gather over all of them. On several machines all cards of one
    share its network, so that a byte that came once can go on over the faster link.
    """
    inside = min(run.gpus, run.gpus_per_node)
    slowest = hardware.link if run.gpus <= run.gpus_per_node else min(hardware.link, hardware.network * inside)
    return slowest * assumptions.link_fraction


def gather(parameters: float, width: float, run: PlannedRun, hardware: Hardware, assumptions: Assumptions) -> float:
    """Returns the seconds in which a partitioned model's weights, of `width` bytes each, come to every card once."""
    if run.gpus == 1:
        return 0.0
    return parameters * width * (run.gpus - 1) / run.gpus / link_rate(run, hardware, assumptions)


def overlapped(compute: float, memory: float, links: float, assumptions: Assumptions) -> Cost:
    """Returns a cost part of whose communication hides behind the rest."""
    return Cost(compute, memory, links, min(assumptions.overlap * links, compute + memory))


# Phases


def rank_rows(run: PlannedRun) -> int:
    """Returns the rows of one window on a rank."""
    return run.rows * run.steps_per_generation


def optimizer_steps(run: PlannedRun) -> float:
    """Returns how many optimizer steps one window has."""
    return max(1, run.steps_per_generation * run.num_iterations // run.accumulation)


def gathered_width(run: PlannedRun) -> float:
    """Returns the bytes of a weight of the student as it travels: FSDP casts before it gathers."""
    return min(run.student_bits / 8, run.compute_bytes)


def rollout(run: PlannedRun, hardware: Hardware, assumptions: Assumptions) -> Cost:
    """
    Returns the cost of sampling a window, for one optimizer step of it: the student's weights go to the engine, its
    prompts are read, and its completions are decoded, which reads the weights and the cache for every token.
    """
    shape, rows, engine = run.student, rank_rows(run), run.engine
    if engine is None:
        lengths = with_longest(completion_lengths(rows, run, assumptions.spread), run, assumptions.spread)
        decode = static_decode(run, lengths, hardware, assumptions)
        cards, engine_rows = 1.0, float(rows)
        sent = student_brought(run, hardware, assumptions)
    else:
        cards = float(engine.tensor_parallel)
        engines = max(1, (engine.gpus or run.gpus) // engine.tensor_parallel)
        engine_rows = math.ceil(rows * run.gpus / engines)
        lengths = completion_lengths(round(engine_rows), run, assumptions.spread)
        lengths = with_longest(lengths, run, assumptions.spread)
        decode = engine_decode(run, engine, lengths, hardware, assumptions)
        other_machine = engine.mode == "server" and run.gpus + engine.gpus > run.gpus_per_node
        link = hardware.network if other_machine else hardware.link
        sent = shape.parameters * gathered_width(run) / (link * assumptions.link_fraction)
        sent += student_brought(run, hardware, assumptions)
    prompts = engine_rows / max(1, run.num_generations)  # an engine reads a prompt that several share once
    reading = 2 * shape.active_in_layers * prompts * run.prompt_mean
    prefill = Cost(compute=reading / (cards * rate(shape, hardware, assumptions)))
    return (decode + prefill + Cost(links=sent)).times(1 / optimizer_steps(run))


def multiplied(shape: ModelShape) -> int:
    """Returns the parameters that a sampled token is multiplied with: those of its layers, and the head."""
    return shape.active_in_layers + shape.head


def read_weights(shape: ModelShape, rows: float, width: float) -> float:
    """
    Returns the bytes of weights that a decoding step of so many rows reads: all that a token is multiplied with, and
    of a mixture's experts those that at least one of the rows is sent to.
    """
    if not shape.experts:
        return multiplied(shape) * width
    chosen = shape.experts_per_token / shape.experts
    experts = (shape.parameters - shape.active) / (1 - chosen)  # parameters of all experts
    always = multiplied(shape) - chosen * experts
    return (always + experts * (1 - (1 - chosen) ** rows)) * width


def static_decode(run: PlannedRun, lengths: list[float], hardware: Hardware, assumptions: Assumptions) -> Cost:
    """
    Returns the cost of decoding by transformers: all rows of a rank in one batch until the longest has ended, and no
    step faster than Python launches its layers.
    """
    shape, rows, steps = run.student, len(lengths), max(lengths)
    launched = assumptions.eager_layer * shape.layers if run.device == "cuda" else 0.0
    context, width = run.prompt_longest + steps / 2, run.compute_bytes
    read = read_weights(shape, rows, width) + rows * context * shape.keys_and_values * width
    read /= hardware.bandwidth * assumptions.decode_fraction
    computed = 2 * multiplied(shape) * rows / rate(shape, hardware, assumptions)
    bound = max(launched, read, computed)
    return Cost(memory=steps * bound) if bound == read else Cost(compute=steps * bound)


def cache_room(run: PlannedRun, engine: Engine, hardware: Hardware) -> float:
    """Returns the bytes of an engine's cache, on all of its cards; less than 0 where its weights do not fit."""
    return engine.tensor_parallel * engine.memory * hardware.memory - run.student.parameters * run.compute_bytes


def concurrent_rows(run: PlannedRun, engine: Engine, lengths: list[float], hardware: Hardware) -> int:
    """
    Returns how many rows an engine decodes at a time: as many as its cache holds at half of their length, which is
    what they have in the mean, and as many as it was told to take.
    """
    room = cache_room(run, engine, hardware)
    if room <= 0:
        return 0
    typical = run.prompt_mean + sum(length * length for length in lengths) / sum(lengths) / 2
    told = rank_rows(run) * engine.tensor_parallel if engine.mode == "colocate" else served_rows(hardware)
    return max(1, min(len(lengths), told, int(room / (typical * run.student.keys_and_values * run.compute_bytes))))


def served_rows(hardware: Hardware) -> int:
    """
    Returns how many rows a vLLM server takes at a time by default (`get_batch_defaults` in vllm/engine/arg_utils.py):
    more on cards from 70 GiB on, but for an A100.
    """
    return 1024 if hardware.memory >= 70 * GIB and "a100" not in hardware.name.lower() else 256


def mixed(lengths: list[float]) -> list[float]:
    """Returns the lengths in an order in which long and short ones are spread evenly, the same every time."""
    golden = (math.sqrt(5) - 1) / 2
    return [lengths[i] for i in sorted(range(len(lengths)), key=lambda i: (i + 0.5) * golden % 1)]


def engine_decode(
    run: PlannedRun, engine: Engine, lengths: list[float], hardware: Hardware, assumptions: Assumptions
) -> Cost:
    """
    Returns the cost of decoding by an engine that takes the next row when one has ended. A step costs what it reads or
    what it computes, whichever takes longer, and a fixed time beside; the tail of long rows is decoded by few.
    """
    shape, tp, width = run.student, engine.tensor_parallel, run.compute_bytes
    room = concurrent_rows(run, engine, lengths, hardware)
    if not room:
        return Cost(memory=math.inf)
    waiting = mixed(lengths)  # an engine does not know which row will be long
    running: list[tuple[float, float]] = []  # end and start
    now = starts = 0.0
    total = Cost()
    while waiting or running:
        while waiting and len(running) < room:
            heapq.heappush(running, (now + waiting.pop(), now))
            starts += now
        end, _ = running[0]
        steps, batch = end - now, len(running)
        context = batch * (run.prompt_mean + (now + end) / 2) - starts
        read = read_weights(shape, batch, width) + context * shape.keys_and_values * width
        read /= tp * hardware.bandwidth * assumptions.decode_fraction
        computed = 2 * multiplied(shape) * batch / (tp * rate(shape, hardware, assumptions))
        bound = Cost(memory=read) if read >= computed else Cost(compute=computed)
        total += (bound + Cost(compute=assumptions.decode_overhead)).times(steps)
        now = end
        while running and running[0][0] <= now:
            starts -= heapq.heappop(running)[1]
    return total


def forward_count(tokens: float, longest: float, budget: int) -> int:
    """Returns how many forwards a window takes under a budget of padded tokens; a longer row has one of its own."""
    return max(1, math.ceil(tokens / max(budget, longest)))


def scoring(
    shape: ModelShape, work: Work, run: PlannedRun, arrival: float, hardware: Hardware, assumptions: Assumptions
) -> Cost:
    """
    Returns the cost of scoring, where the model's weights come in `arrival` seconds for each forward.
    """
    longest = run.prompt_mean + run.completion_longest
    forwards = forward_count(work.padded, longest, run.scoring_token_budget)
    compute = operations(shape, work) / rate(shape, hardware, assumptions) + forwards * assumptions.forward_overhead
    return overlapped(compute, 0.0, forwards * arrival, assumptions)


def teacher_scoring(run: PlannedRun, hardware: Hardware, assumptions: Assumptions) -> Cost:
    """
    Returns the cost of all teachers, for one optimizer step. Each scores its share of the rows, in equally many
    forwards on all ranks.
    """
    total = Cost()
    lengths = completion_lengths(rank_rows(run), run, assumptions.spread)
    for teacher in run.teachers.values():
        work = work_of(run, lengths[:: len(run.teachers)])
        total += scoring(teacher.shape, work, run, brought(teacher, run, hardware, assumptions), hardware, assumptions)
    return total.times(1 / optimizer_steps(run))


def brought(placed: Placed, run: PlannedRun, hardware: Hardware, assumptions: Assumptions) -> float:
    """
    Returns the seconds in which the weights of a frozen model come to a card for one forward: from the other cards
    where they are partitioned, and from the host where they lie there, under ZeRO-3 each card its own part.
    """
    width = placed.bits / 8
    over_links = gather(placed.shape.parameters, width, run, hardware, assumptions)
    from_host = placed.shape.parameters * width / (hardware.host * assumptions.link_fraction)
    if placed.placement == "offload":
        return from_host / run.gpus + over_links if run.sharding == "zero3" else from_host
    if placed.placement == "student":
        return student_brought(run, hardware, assumptions)
    return over_links if placed.placement == "sharded" else 0.0


def student_brought(run: PlannedRun, hardware: Hardware, assumptions: Assumptions) -> float:
    """
    Returns the seconds in which a partitioned student's weights come to a card once: its own part from the host, where
    it lies there, and all others from the other cards.
    """
    if run.sharding not in ("zero3", "fsdp2"):
        return 0.0
    size = run.student.parameters * gathered_width(run)
    from_host = size / run.gpus / (hardware.host * assumptions.link_fraction) if run.offload_parameters else 0.0
    return from_host + gather(run.student.parameters, gathered_width(run), run, hardware, assumptions)


def student_scoring(run: PlannedRun, hardware: Hardware, assumptions: Assumptions) -> Cost:
    """Returns the cost of the student's own log-probabilities, and the reference's, for one optimizer step."""
    work = work_of(run, completion_lengths(rank_rows(run), run, assumptions.spread))
    student = Placed(run.student, 8 * gathered_width(run), "student")
    total = scoring(run.student, work, run, brought(student, run, hardware, assumptions), hardware, assumptions)
    if (other := run.reference) is not None:
        total += scoring(other.shape, work, run, brought(other, run, hardware, assumptions), hardware, assumptions)
    return total.times(1 / optimizer_steps(run))


def update(run: PlannedRun, hardware: Hardware, assumptions: Assumptions) -> Cost:
    """
    Returns the cost of forward, backward and optimizer on the rows that the filter has left.

    A backward takes two forwards: gradients of activations and of weights. An adapter needs the first alone.
    Checkpointing takes one more. A partitioned student is gathered in forward and backward, and once more where
    activations are computed again; its gradients are scattered in every micro-batch, or, where they are whole,
    reduced once in a step.
    """
    shape, trained = run.student, run.adapter or run.student.parameters
    rows = min(rank_rows(run), run.rows * run.accumulation)
    lengths = completion_lengths(max(1, round(rows)), run, assumptions.spread)
    work = work_of(run, lengths)
    passes = (2 if run.adapter else 3) + run.gradient_checkpointing
    share = 1 - run.drop_fraction
    compute = passes * share * operations(shape, work) / rate(shape, hardware, assumptions)
    compute += 2 * run.accumulation * assumptions.forward_overhead
    if run.whole_distributions and run.divergence:
        compute += share * 2 * work.scored * divergence_head(run) / rate(shape, hardware, assumptions)
    gathers = run.accumulation * (2 + run.gradient_checkpointing)
    links = gathers * student_brought(run, hardware, assumptions)
    if run.gpus > 1:
        whole = gather(trained, 4 if run.adapter else gathered_width(run), run, hardware, assumptions)
        links += whole * (run.accumulation if run.sharding in ("zero2", "zero3", "fsdp2") else 2)
    parts = run.gpus if run.sharding in ("zero1", "zero2", "zero3", "fsdp2") else 1
    moved = OPTIMIZER_PASSES * 4 * trained / parts
    cost = overlapped(compute, moved / (hardware.bandwidth * assumptions.bandwidth_fraction), links, assumptions)
    if run.offload_optimizer:  # gradients go to the host, and weights come back
        cost += Cost(links=(4 + 2) * trained / parts / (hardware.host * assumptions.link_fraction))
    return cost


def divergence_head(run: PlannedRun) -> float:
    """
    Returns the parameters that a token is multiplied with beside the model, where whole distributions are compared
    (`ChunkedDivergenceFunction` of TRL): the teacher's head in forward and backward, and the student's once more in
    the forward, which scores the sampled token with it, too; a mixture of both is found in a second pass over them.
    Each row has one teacher.
    """
    heads = [teacher.shape.head for teacher in run.teachers.values()]
    again = 0 < run.mixture < 1
    return (1 + again) * run.student.head + (2 + again) * sum(heads) / max(1, len(heads))
