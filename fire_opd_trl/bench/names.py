"""The arms by name, and what each is."""

OURS = {
    "fire": "FiReOPDTrainer, `fire`: a fifth of the rows dropped, tokens reweighted",
    "fire_keep_all": "FiReOPDTrainer, `fire` with `drop_fraction=0`",
    "opd": "FiReOPDTrainer, `opd`: nothing dropped, no entropies",
    "opd_entropies": "FiReOPDTrainer, `opd` that also computes both entropies",
}
THEIRS = {
    "grpo": "TRL's GRPOTrainer with a teacher added: scoring and training in its layout",
    "distillation": "TRL's DistillationTrainer: divergence of whole distributions, in tiles",
    "iw_opd": "TRL's experimental IWOPDTrainer: sampled tokens, whole logits",
}
ARMS = {**OURS, **THEIRS}
EQUAL_LENGTHS = ("opd", "fire", "grpo")
GROWING = ("fire", "grpo")
FLOOR = "floor"  # a worker like any arm, whose step measures rates
