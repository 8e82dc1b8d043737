"""The names of the arms, and what each arm is."""

OURS = {
    "fire": "FiReOPDTrainer, `fire`: a fifth of the rows dropped, tokens reweighted",
    "fire_keep_all": "FiReOPDTrainer, `fire` with `drop_fraction=0`",
    "opd": "FiReOPDTrainer, `opd`: nothing dropped, the teacher's entropy is not computed",
    "opd_entropies": "FiReOPDTrainer, `opd` that also computes the teacher's entropy, as `fire` does",
    "opd_full": "FiReOPDTrainer, `opd_full`: divergence of whole distributions, as in DistillationTrainer",
}
THEIRS = {
    "grpo": "TRL's GRPOTrainer with a teacher added: scoring and training in its layout",
    "grpo_tiles": "the same with the head's tiles as this library sets them where there is no Triton",
    "distillation": "TRL's DistillationTrainer: divergence of whole distributions, in tiles",
    "distillation_tiles": "the same with smaller tiles, as `grpo_tiles`",
    "iw_opd": "TRL's experimental IWOPDTrainer: sampled tokens, whole logits",
}
ARMS = {**OURS, **THEIRS}
SCORING = (
    *OURS,
    "grpo",
    "grpo_tiles",
)  # the arms that score before the update, so that a teacher is timed with its head
EQUAL_LENGTHS = ("opd", "opd_entropies", "grpo", "grpo_tiles")
GROWING = ("fire", "grpo")
FLOOR = "floor"  # this worker measures the rates of the machine in each of its steps
