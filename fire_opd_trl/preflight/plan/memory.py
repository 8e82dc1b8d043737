"""
Memory of a run on each GPU: every component, in bytes, at the peak of every phase. Arithmetic alone.

In formulas, `P` are parameters, `T` those that are trained, `N` ranks, `V` the vocabulary, and of a layer `h` is the
width of the hidden states, `q` and `k` that of all queries and of all keys, `i` that inside of its gated part.
"""

from .run import Engine, Placed, PlannedRun
from .shapes import ModelShape


Components = dict[str, float]
PHASES = ("rollout", "teacher scoring", "student scoring", "update")
UNEVEN = 1.1  # what packing leaves uneven: see `describe_fillers` in preflight/window.py
# Tiles of the fused heads, tokens x columns: `set_tiles` in scoring/heads.py. With Triton there is one tile, in the
# precision of the layers; without it the torch version makes about ten float32 temporaries of it.
TILES = {"cuda": (4096, 32768, 1), "cpu": (1024, 2048, 10)}
OBSERVED = {"cuda": 2**27, "cpu": 2**23}  # numbers of a tile of what is observed: `LARGEST_TILE` there
SAMPLING_COPIES = 4  # of the logits of a token in float32: as they are, scaled by the temperature, exp, probabilities
SCORES = 8  # bytes of a pair of tokens and head under way in eager attention: two copies, or softmax, input and result
ADAM = 8  # bytes: two moments in float32
# Flat copies that a collective makes of what it brings: NCCL none; gloo one, which lives as long as the call
# (`newLikeFlat` in PyTorch's ProcessGroupGloo.cpp).
COLLECTIVE_COPIES = {"cuda": 0, "cpu": 1}


def memory(run: PlannedRun, gpu: float = 0.0) -> dict[str, Components]:
    """
    Returns the components of the memory of one GPU at the peak of each phase.

    Args:
        run ([`PlannedRun`]): The run.
        gpu (`float`): Bytes of a GPU, of which an engine that is colocated takes its share.
    """
    always, states = resident(run), {"teacher's states": 0.0 if run.offload_teacher_states else states_bytes(run)}
    asleep = engine(run, gpu) if run.engine and not run.engine.sleeps else {}
    scored = {**always, **asleep, "per-token numbers": numbers(run)}
    teachers = [scoring(run, teacher, "teacher scoring") for teacher in run.teachers.values()]
    found = {
        "rollout": {**always, **(served(run, run.engine, gpu) if run.engine else generation(run))},
        "teacher scoring": {**scored, **states, **largest(teachers)},
        "student scoring": {**scored, **states, **scoring(run, student_of(run), "student scoring")},
        "update": {**scored, **states, **update(run)},
    }
    return {phase: {name: size for name, size in parts.items() if size} for phase, parts in found.items()}


def peak(parts: Components) -> float:
    """Returns the bytes of a phase."""
    return sum(parts.values())


def largest(several: list[Components]) -> Components:
    """Returns the one that takes most."""
    return max(several, key=peak, default={})


# What stays


def resident(run: PlannedRun) -> Components:
    """
    Returns what lies on a GPU from the first step to the last.

    - The student's weights, as they are loaded. ZeRO-3 and FSDP divide them by the ranks. DeepSpeed casts them to 16
      bits under mixed precision (`_configure_distributed_model` in deepspeed/runtime/engine.py); accelerate keeps them
      in float32 for FSDP 2 and autocast casts them for each product.
    - Copies in float32 that the optimizer steps, `4 T / N`: DeepSpeed has them at every stage, also of weights in
      float32 (`fp32_partitioned_groups_flat` in zero/stage3.py). Stage 3 means to do without them there, but it
      compares a tensor's device with the name of one, which PyTorch never finds equal (`_create_fp32_partitions`,
      DeepSpeed 0.19.8).
    - Adam's moments, `8 T / N`. Both are on the host where the optimizer is offloaded.
    - ZeRO-3 has a buffer for its part of the gradients, in the precision of the weights
      (`grad_partitions_flat_buffer`), and one for those that wait to be reduced (`reduce_bucket`).
    - Teachers and a reference: whole, or their part; what is offloaded has only what its forwards bring.
    """
    parts: Components = {}
    student, trained, held = run.student, trainable(run), run.student_bits / 8
    parts["student's weights"] = 0.0 if run.offload_parameters else student.parameters * held / sharded_by(run)
    if run.adapter:
        parts["adapter"] = 4.0 * trained
    if not run.offload_optimizer:
        parts["master weights"] = 4.0 * trained / run.gpus if keeps_copies(run) else 0.0
        parts["optimizer"] = ADAM * trained / (1 if run.sharding == "none" else run.gpus)
    if run.sharding == "zero3":
        parts["gradients"] = gradient_bytes(run) * trained / run.gpus * (not run.offload_optimizer)
        # PyTorch takes the whole buffer of a GPU at once; the host's memory is taken as it is filled.
        bucket = run.reduce_bucket if run.device == "cuda" else min(run.reduce_bucket, trained)
        parts["reduce bucket"] = gradient_bytes(run) * bucket
    for name, teacher in run.teachers.items():
        parts[f"teacher {name}" if name != "teacher" else "teacher"] = frozen(run, teacher)
    if run.reference:
        parts["reference"] = frozen(run, run.reference)
    return parts


def trainable(run: PlannedRun) -> int:
    """Returns how many parameters the optimizer steps."""
    return run.adapter or run.student.parameters


def sharded_by(run: PlannedRun) -> int:
    """Returns by how many ranks the student's weights are divided."""
    return run.gpus if run.sharding in ("zero3", "fsdp2") else 1


def student_of(run: PlannedRun) -> Placed:
    """Returns the student as a model that scores."""
    where = "replicated" if sharded_by(run) == 1 else "offload" if run.offload_parameters else "sharded"
    return Placed(run.student, run.student_bits, where)


def keeps_copies(run: PlannedRun) -> bool:
    """Whether DeepSpeed steps copies of the weights in float32: it does so at each of its stages."""
    return run.sharding.startswith("zero")


def gradient_bytes(run: PlannedRun) -> int:
    """Returns the bytes of a gradient: as those of the weight, and of adapters in float32 4."""
    return 2 if run.student_bits == 16 and not (run.adapter and run.sharding == "none") else 4


def frozen(run: PlannedRun, model: Placed) -> float:
    """Returns the bytes of a frozen model between its forwards."""
    shape, weight = model.shape, model.bits / 8
    if model.placement == "student":
        return 0.0
    if model.placement == "sharded":
        return shape.parameters * weight / run.gpus
    if model.placement == "offload":  # streamed from files, embeddings and head stay on the device
        return 0.0 if run.sharding == "zero3" else shape.outside * weight
    return shape.parameters * weight


# What forwards bring


def gathered(run: PlannedRun, model: Placed, phase: str) -> float:
    """
    Returns the bytes of the weights that the forwards of a phase bring to the device.

    - ZeRO-3 gathers module by module, all experts of a mixture together (`keep_mixtures_whole`), and gives a module
      free behind its forward. Once it knows the order of the modules, it gathers ahead with every module, in steps of
      `prefetch_bucket` numbers, until `max_live` are there; what it gathers together lies in a flat buffer and then in
      a copy (`fetch_sub_module` in zero/partitioned_param_coordinator.py, `AllGatherCoalescedHandle` in
      zero/partition_parameters.py). A teacher's order is always the same. The student's is not, since it scores
      without a backward and then trains: it scores module by module, and in training holds up to `max_live`. On the
      CPU gloo has a copy of the module that it brings.
    - FSDP 2 gathers a layer, and the next one ahead of it; embeddings and head, which are in the root, stay gathered.
    - What is streamed brings a layer.
    - A student that is its own teacher is brought as when it scores.
    """
    if model.placement == "student":
        model, phase = student_of(run), "student scoring"
    shape, weight = model.shape, model.bits / 8
    if model.placement == "offload" and run.sharding != "zero3":
        return shape.largest_layer * weight
    if model.placement not in ("sharded", "offload"):
        return 0.0
    if run.sharding == "fsdp2":
        return run.compute_bytes * (2 * shape.largest_layer + shape.outside) + 4 * shape.head
    module = max(shape.largest_layer if shape.experts else shape.hidden * shape.intermediate, shape.head)
    live, ahead = min(shape.parameters, max(module, run.max_live)), min(shape.parameters, run.prefetch_bucket)
    copies = 1 + COLLECTIVE_COPIES[run.device]
    return weight * {"student scoring": module * copies, "update": live, "teacher scoring": live + 2 * ahead}[phase]


def scoring(run: PlannedRun, model: Placed, phase: str) -> Components:
    """
    Returns what a forward without gradients takes: gathered weights, the widest place of a layer, a tile of the head.
    """
    tokens, shape = scored_tokens(run), model.shape
    wide = run.compute_bytes if model.bits > 16 or run.autocast else 2
    parts = {
        "gathered weights": gathered(run, model, phase),
        "activations": tokens * (widest(shape, wide) + scores(run, shape, run.longest)),
        "logits' tile": head_tile(run, shape),
    }
    if run.whole_distributions:  # the hidden states at the completions, once more
        parts["activations"] += completion_share(run) * tokens * shape.hidden * wide
    if run.top_k:
        parts["logits' tile"] = max(parts["logits' tile"], 3 * 4 * OBSERVED[run.device])
    return parts


def scored_tokens(run: PlannedRun) -> float:
    """Returns the padded tokens of the largest forward of scoring."""
    window = run.rows * run.steps_per_generation * min(run.longest, UNEVEN * run.mean)
    return max(run.longest, min(run.scoring_token_budget, window))


def updated_tokens(run: PlannedRun) -> float:
    """
    Returns the padded tokens of the largest micro-batch. Rows are packed by length, so that it is as large as the
    longest row, or as its even share of all tokens; with one micro-batch a step it holds all rows.
    """
    rectangle = run.rows * run.longest
    if run.steps_per_generation == 1:
        return rectangle
    return min(rectangle, max(run.longest, UNEVEN * run.rows * run.mean * (1 - run.drop_fraction)))


def completion_share(run: PlannedRun) -> float:
    """Returns which part of a row's tokens is the completion, where the head computes."""
    return run.completion_longest / run.longest


def widest(shape: ModelShape, number: int) -> float:
    """
    Returns the bytes a token at the widest place of a layer without gradients: the residual, the normed states (once
    more in float32 where layers have 16 bits), and either `act(gate)`, `up` and their product or, in attention, the
    queries as projected, normed, turned and turned by half, and the result.
    """
    inside = 3 * shape.intermediate
    if shape.experts:
        inside = shape.experts_per_token * (3 * shape.expert_intermediate + 2 * shape.hidden)
    attention = 4 * shape.heads * shape.head_dim + 3 * shape.kv_heads * shape.head_dim
    return number * (2 * shape.hidden + max(inside, attention)) + (4 * shape.hidden if number == 2 else 0)


def scores(run: PlannedRun, shape: ModelShape, longest: int, number: int = SCORES) -> float:
    """
    Returns the bytes a token of attention's scores, of which a head has one for each token of the row: only eager
    attention has all of them at once. Every row is taken to be as long as the longest beside it.
    """
    return number * shape.heads * longest * run.eager


def head_tile(run: PlannedRun, shape: ModelShape, models: int = 1) -> float:
    """
    Returns the bytes of the tiles of a fused head: on a GPU one of logits, and one of the head's weights cast for it.
    The kernel that compares two models has a tile of each in float32, and one of gradients.
    """
    tokens, columns, copies = TILES[run.device]
    rows, columns = min(tokens, scored_tokens(run)), min(columns, shape.vocabulary)
    if run.device == "cpu":
        return 4 * copies * models * rows * columns
    cast = run.compute_bytes * columns * shape.hidden if run.autocast else 0
    if models > 1:
        return rows * columns * (4 * models + run.compute_bytes) + models * cast
    return run.compute_bytes * rows * columns + cast


def states_bytes(run: PlannedRun) -> float:
    """
    Returns what a rank holds of its rows from scoring to their update: hidden states of the teacher, or its top k.
    """
    tokens = run.rows * run.steps_per_generation * run.completion_mean
    widths = [states_of_token(t.shape.hidden, run.whole_distributions, run.top_k, run.compute_bytes) for t in
              run.teachers.values()]  # fmt: skip
    return tokens * max(widths, default=0)


def states_of_token(hidden: int, whole: bool, top_k: int, number: int) -> int:
    """
    Returns the bytes that are kept of a teacher for a token: its hidden states if whole distributions are compared,
    and ids and log-probabilities of its top k in 32 bits.
    """
    return whole * hidden * number + 8 * top_k


def numbers(run: PlannedRun) -> float:
    """
    Returns the per-token numbers of a window: ids and masks of 64 bits, log-probabilities, entropies, weights and
    advantages in float32. 62 bytes a token are a generous sum of them.
    """
    return 62.0 * run.rows * run.steps_per_generation * run.longest


# Sampling


def engine(run: PlannedRun, gpu: float) -> Components:
    """Returns what vLLM takes of a GPU that it shares: its weights in 16 bits, and the rest of its share as cache."""
    if run.engine is None or run.engine.mode != "colocate":
        return {}
    weights = 2 * run.student.parameters / run.engine.tensor_parallel
    return {"engine's weights": weights, "engine's cache": max(0.0, run.engine.memory * gpu - weights)}


def served(run: PlannedRun, of_vllm: Engine, gpu: float) -> Components:
    """
    Returns what a rollout by vLLM takes at the worse of two moments: when the new weights go to it, for which a
    partitioned student is gathered, and when it samples. An engine that has slept has no cache yet when the weights
    come. They are gathered parameter by parameter; but under ZeRO-3 the student of an adapter is gathered whole, since
    the adapter is merged into it (`_iter_named_params` in trl/generation/vllm_generation.py).
    """
    sampling, student = engine(run, gpu), run.student
    sending = {name: size for name, size in sampling.items() if name != "engine's cache" or not of_vllm.sleeps}
    if sharded_by(run) > 1:
        at_once = student.parameters if run.adapter and run.sharding == "zero3" else student.largest_parameter
        sending["gathered weights"] = run.student_bits / 8 * at_once
    return largest([sending, sampling])


def generation(run: PlannedRun) -> Components:
    """
    Returns what transformers' `generate` takes for all rows of a rank at once: keys and values of all layers, those of
    one layer twice while a token is appended, the logits of a token for each row, the prompts' forward, and under
    ZeRO-3 and FSDP the whole student (`ds3_gather_for_generation`).
    """
    student = run.student
    parts = {"gathered weights": run.student_bits / 8 * student.parameters if sharded_by(run) > 1 else 0.0}
    rows = run.rows * run.steps_per_generation
    cache = rows * run.longest * student.keys_and_values * run.compute_bytes
    parts["cache of keys and values"] = cache * (1 + 1 / student.layers)
    parts["logits"] = SAMPLING_COPIES * 4.0 * rows * student.vocabulary
    token = widest(student, run.compute_bytes) + scores(run, student, run.prompt_longest)
    parts["activations"] = rows * run.prompt_longest * token
    return parts


# Update


def update(run: PlannedRun) -> Components:
    """
    Returns what the largest micro-batch adds at the worst of these moments: when the backward begins (all activations,
    and the gradient of the head), when it ends (all gradients), in the optimizer's step, and under ZeRO-3 when the
    gradients of a bucket are reduced.
    """
    student, tokens = run.student, updated_tokens(run)
    parts = {
        "activations": activations(run, tokens),
        "gathered weights": gathered(run, student_of(run), "update"),
        "logits' tile": head_tile(run, student, 2 if run.whole_distributions and run.divergence else 1),
        "cast weights": cast_weights(run),
    }
    of_teachers = 0.0
    if run.whole_distributions and run.divergence:
        of_teachers = sum(t.shape.head * t.bits / 8 for t in run.teachers.values() if is_in_parts(t))
        parts["gathered weights"] += of_teachers
    if run.top_k:
        parts["logits' tile"] += 2 * 4 * OBSERVED[run.device]
    head = 0.0 if run.adapter else (4 + (2 if run.student_bits == 16 else 0)) * student.head
    gradients, one_layer = gradients_of_step(run), activations(run, tokens) / student.layers
    first = run.accumulation == 1 and run.sharding in ("none", "zero1")  # there are no gradients before
    begins = {**parts, "gradients": 0.0 if first else gradients, "gradient of the head": head}
    ends = {
        **parts,
        "activations": one_layer,
        "gradients": gradients,
        "gradient of the head": 0.0,
        "logits' tile": 0.0,
    }
    if student.tied and not run.adapter:
        ends["gradient of the head"] = gradient_bytes(run) * student.head * (1 if first else 2)
    elif not first and not run.adapter:
        ends["gradient of the head"] = gradient_bytes(run) * student.embedding
    steps = {"gradients": gradients, "gradients in float32": 0.0}
    if run.sharding == "zero2":
        steps["gradients"] = gradient_bytes(run) * trainable(run) / run.gpus
    if run.sharding.startswith("zero") and run.student_bits < 32 and not run.offload_optimizer:
        steps["gradients in float32"] = 6.0 * trainable(run) / run.gpus  # as they are, put together, and in float32
    if run.sharding == "zero3":
        for moment in (begins, ends, steps):
            del moment["gradients"]  # they are always there
        return largest([begins, ends, steps, reduces(run, parts, of_teachers)])
    return largest([begins, ends, steps])


def reduces(run: PlannedRun, parts: Components, of_teachers: float) -> Components:
    """
    Returns what ZeRO-3 has when it reduces a bucket of gradients: a second copy of them, sorted by rank
    (`reduce_scatter_coalesced` in runtime/comm/coalesced_collectives.py) and, on the CPU, gloo's. A bucket that holds
    all gradients is reduced behind the backward, when only the heads are still gathered; a smaller one is full when
    as large a part of the activations is gone.
    """
    trained, student = trainable(run), run.student
    bucket = min(run.reduce_bucket, trained)
    left = max(1 - bucket / trained, 1 / student.layers)
    heads = student.head * run.student_bits / 8 + of_teachers
    return {
        "activations": parts["activations"] * left,
        "gathered weights": heads if bucket == trained else parts["gathered weights"],
        "cast weights": parts["cast weights"],
        "gradients on their way": gradient_bytes(run) * bucket * (1.0 + COLLECTIVE_COPIES[run.device]),
    }


def is_in_parts(model: Placed) -> bool:
    """Whether the head of a teacher must be gathered."""
    return model.placement in ("sharded", "offload")


def gradients_of_step(run: PlannedRun) -> float:
    """
    Returns the gradients that micro-batches add up: whole, or from ZeRO-2 on a rank's part. DDP has buckets for them
    besides, as large as they are (`gradient_as_bucket_view` is off).
    """
    whole = gradient_bytes(run) * trainable(run)
    if run.sharding in ("zero2", "fsdp2"):
        bucket = gradient_bytes(run) * min(run.reduce_bucket, trainable(run)) if run.sharding == "zero2" else 0
        return whole / run.gpus + bucket
    return whole * (2 if run.sharding == "none" and run.gpus > 1 else 1)


def activations(run: PlannedRun, tokens: float) -> float:
    """
    Returns what the backward of a micro-batch finds: what each layer has saved or, if layers are computed again, the
    input of each and what one layer saves; what the layer that is under way adds; the last norm; and the scored hidden
    states with their gradient.
    """
    student, number = run.student, run.compute_bytes
    residual = 4 if run.autocast else number
    layer = saved(run)
    layers = student.layers * student.hidden * residual + layer if run.gradient_checkpointing else (
        student.layers * layer
    )  # fmt: skip
    inside = 2 * student.intermediate
    if student.experts:
        inside = 2 * student.experts_per_token * (student.expert_intermediate + student.hidden)
    under_way = number * (inside + 2 * student.hidden) + scores(run, student, run.longest)
    last = student.hidden * (2 * residual + number)
    scored = completion_share(run) * student.hidden * (number + 8)
    if run.divergence:  # their copy at the compared tokens, with its gradient, and the teacher's
        of_teacher = max((t.shape.hidden for t in run.teachers.values()), default=0) if run.whole_distributions else 0
        scored += completion_share(run) * (student.hidden * (2 * number + 8) + of_teacher * number)
    return tokens * (layers + under_way + last + scored)


def saved(run: PlannedRun) -> float:
    """
    Returns the bytes that a layer saves of a token for its backward. In float32:

        4 (6 h + (4 q + 4 k if queries and keys are normed else 2 q + 2 k) + 4 i)

    each norm its input, the normed states and its output; queries and keys before their norm, normed, and as attention
    reads them; values, and the result of attention; gate, its activation, up, and their product. In 16 bits a norm
    computes in float32. With autocast the residual is in float32, and each product has a copy of its input in 16 bits.
    A mixture has `n (4 m + 2 h)` in place of `4 i`, for `n` experts of `m`. Eager attention also saves the softmax of
    all scores, in float32 and as the values are multiplied with it, and keys and values once for each head of the
    queries. The tests count the same with PyTorch's hooks of saved tensors.
    """
    shape, number = run.student, run.compute_bytes
    h, q, k = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    inside = 4 * shape.intermediate
    if shape.experts:
        inside = shape.experts_per_token * (4 * shape.expert_intermediate + 2 * h)
    eager = scores(run, shape, run.longest, 6 if number == 2 else 4) + 2 * number * (q - k) * run.eager
    if run.autocast:
        return 26 * h + (10 if shape.normed_heads else 4) * (q + k) + 2 * inside + eager
    if number == 2:
        return 16 * h + (10 if shape.normed_heads else 4) * (q + k) + 2 * inside + eager
    return 4 * (6 * h + (4 if shape.normed_heads else 2) * (q + k) + inside) + eager


def cast_weights(run: PlannedRun) -> float:
    """
    Returns the weights that autocast has cast to 16 bits, which the backward reads: of all layers or, if these are
    computed again, of one.
    """
    if not run.autocast:
        return 0.0
    layers = 1 if run.gradient_checkpointing else run.student.layers
    return 2.0 * run.student.largest_layer * layers
