"""A model, a card and a run so small that what a plan says of them can be counted by hand."""

from dataclasses import replace

from fire_opd_trl.preflight.plan.hardware import Assumptions, Hardware
from fire_opd_trl.preflight.plan.run import Placed, PlannedRun
from fire_opd_trl.preflight.plan.shapes import ModelShape


# A thousand parameters, a hundred of them the embeddings, which are also the head.
MODEL = ModelShape(
    name="hand",
    parameters=1000,
    active=1000,
    embedding=100,
    head=100,
    tied=True,
    layers=2,
    hidden=4,
    heads=2,
    kv_heads=1,
    head_dim=3,
    intermediate=5,
    vocabulary=25,
    experts=0,
    experts_per_token=0,
    expert_intermediate=0,
    largest_layer=450,
    largest_parameter=100,
    in_linear=880,
    context=64,
)
CARD = Hardware("hand", 1_000_000, 1e6, 1e6, link=1e5, network=1e4, host=1e4, source="by hand")
EXACT = Assumptions(
    compute_fraction=1,
    experts_fraction=1,
    decode_fraction=1,
    decode_overhead=0,
    eager_layer=0,
    bandwidth_fraction=1,
    link_fraction=1,
    overlap=0,
    forward_overhead=0,
    reserve=0,
)
# Two rows of 2 + 4 tokens on each of 8 cards, student and teacher partitioned.
RUN = PlannedRun(
    student=MODEL,
    teachers={"teacher": Placed(replace(MODEL, name="teacher"), 16, "sharded")},
    gpus=8,
    sharding="zero3",
    student_bits=16,
    autocast=False,
    rows=2,
    prompt_mean=2,
    prompt_longest=2,
    completion_mean=4,
    completion_longest=4,
    scoring_token_budget=6,
)


def moved(placement: str, **changes) -> PlannedRun:
    """The run with its teacher elsewhere."""
    return replace(RUN, teachers={"teacher": Placed(MODEL, 16, placement)}, **changes)
