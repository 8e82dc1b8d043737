"""Does a teacher fit a student? Numbers of some answers that both have scored, and what they say."""

import math
from dataclasses import dataclass

import torch

from ..config import FiReOPDConfig
from ..rollouts.layout import Batch
from ..stages import WATCHDOGS
from ..teachers.health import ENOUGH_TOKENS, GUESSING


BEGINNING = 3  # tokens of an answer at which prompts that were rendered otherwise show first
PART = 2.0  # nats by which a token is likelier to the student than to the teacher: more than sevenfold
REJECTED = math.log(0.01)  # a token to which a model gives less than 1 %
BROKEN: float = FiReOPDConfig.teacher_nonfinite_limit  # share of broken answers at which a training stops by default
# From here on there are doubts. Runs that we have made began at 0.16 nats a token (the demo) and at 0.9 to 2.5
# (SmolLM2-135M, from the same model after fine-tuning on another form of answer). At 3 nats the teacher gives the
# token in the middle a twentieth of the student's probability.
FAR = 3.0
END = WATCHDOGS["end_tokens"].limit  # by how many nats the teacher may find the end of an answer less likely
ENOUGH_ENDS = 4  # answers that ended by themselves, before their ends are judged
# Nats a token. A hundred tokens then differ by a factor of 1.1 in all: there is nothing to learn.
SAME = 0.001


@dataclass(frozen=True)
class Fit:
    """
    One teacher and the student on the same answers, in nats. Means are over the tokens of all answers whose values are
    finite.

    Args:
        answers (`int`): Answers of this teacher's prompts that have a token.
        broken (`int`): Those among them for which the teacher has a NaN or an infinite value.
        tokens (`int`): Tokens of the others.
        teacher (`float`): The teacher's mean log-probability of a token.
        student (`float`): The student's own. The difference estimates KL(student || teacher).
        guessing (`float`): What guessing among all tokens would be, -ln V.
        spread (`float`): How far the teacher's log-probabilities are from guessing, in the mean.
        first (`float`): By how much the student is above the teacher on the first tokens of an answer.
        later (`float`): The same for the tokens after those.
        rejected (`float`): Share of the tokens to which the teacher gives less than 1 %.
        own_rejected (`float`): Share of them to which the student itself gives less than 1 %.
        ended (`int`): Answers that the student has ended.
        end_gap (`float`, *optional*): Teacher minus student on the token that ends an answer.
        parted (`int`): Answers with a token that is less likely to the teacher by more than `PART`.
        place (`int`, *optional*): At which token the middle one of them parts first, counted from 1.
        row_sums (`list`): For each answer with finite values its row, student minus teacher in sum, and its tokens.
    """

    answers: int
    broken: int
    tokens: int
    teacher: float
    student: float
    guessing: float
    spread: float
    first: float
    later: float
    rejected: float
    own_rejected: float
    ended: int
    end_gap: float | None
    parted: int
    place: int | None
    row_sums: list[tuple[int, float, int]]

    @property
    def kl(self) -> float:
        """The estimate of KL(student || teacher) of a token."""
        return self.student - self.teacher


def fit_of(batch: Batch, number: int, student_rows: int) -> Fit | None:
    """
    Returns how a teacher fits the student; `None` where no answer is to a prompt of it.

    Args:
        batch (`dict`): A window as the trainer has scored it.
        number (`int`): The teacher's number.
        student_rows (`int`): V, among how many tokens a guess would choose.
    """
    student_BT, teacher_BT = batch["old_per_token_logps"], batch["teacher_logps"]
    mask_BT = batch["train_mask"] & (batch["teacher_number"] == number).unsqueeze(1)
    alive_B = mask_BT.any(dim=1)
    if not alive_B.any():
        return None
    sound_B = (torch.isfinite(teacher_BT) | ~mask_BT).all(dim=1) & alive_B
    mask_BT = mask_BT & sound_B.unsqueeze(1)
    gap_BT = torch.where(mask_BT, student_BT - teacher_BT, 0.0).double()
    guessing, place_BT = -math.log(student_rows), mask_BT.cumsum(dim=1)

    def mean(value_BT: torch.Tensor, where_BT: torch.Tensor = mask_BT) -> float:
        return value_BT[where_BT].double().mean().item() if where_BT.any() else math.nan

    first = mean(gap_BT, mask_BT & (place_BT <= BEGINNING))
    later = mean(gap_BT, mask_BT & (place_BT > BEGINNING))
    end_B = (batch["completion_mask"].sum(dim=1, keepdim=True) - 1).clamp(min=0)
    ended_B = batch["finished"] & sound_B & mask_BT.gather(1, end_B).squeeze(1)
    end_gap_B = -gap_BT.gather(1, end_B).squeeze(1)[ended_B]
    part_BT = gap_BT > PART
    places = (place_BT * part_BT).masked_fill(~part_BT, place_BT.shape[1] + 1).amin(dim=1)[part_BT.any(dim=1)]
    rows = sound_B.nonzero().flatten().tolist()
    sums, tokens = gap_BT.sum(dim=1).tolist(), mask_BT.sum(dim=1).tolist()
    return Fit(
        answers=int(alive_B.sum()),
        broken=int((alive_B & ~sound_B).sum()),
        tokens=int(mask_BT.sum()),
        teacher=mean(teacher_BT),
        student=mean(student_BT),
        guessing=guessing,
        spread=mean((teacher_BT - guessing).abs()),
        first=first,
        later=first if math.isnan(later) else later,
        rejected=mean((teacher_BT < REJECTED).float()),
        own_rejected=mean((student_BT < REJECTED).float()),
        ended=int(ended_B.sum()),
        end_gap=end_gap_B.mean().item() if ended_B.any() else None,
        parted=len(places),
        place=int(places.median()) if len(places) else None,
        row_sums=[(row, sums[row], tokens[row]) for row in rows],
    )


def faults_of_fit(fit: Fit) -> list[str]:
    """Returns why nothing can be learned from this teacher, a sentence each: why it does not fit."""
    if fit.broken > BROKEN * fit.answers:
        what = "NaN or infinite log-probabilities: look at its weights, its precision, and tokens it does not know"
        return [f"In {fit.broken} of {fit.answers} answers it gives {what}"]
    if fit.teacher <= fit.guessing:
        return ["The teacher finds the answers no likelier than guessing: wrong weights, or other tokens"]
    if fit.tokens >= ENOUGH_TOKENS and fit.spread < GUESSING * -fit.guessing:
        return ["The teacher finds nearly every token as likely as any other: its weights are random or lost"]
    return []


def doubts_of_fit(fit: Fit) -> list[str]:
    """Returns what speaks against a teacher from which something can be learned, a sentence each."""
    doubts = []
    if fit.broken:
        doubts.append(
            f"In {fit.broken} of {fit.answers} answers it has a NaN or infinite value, most often for a token that it "
            "does not know: training drops these answers"
        )
    if fit.first > fit.later + 1:
        doubts.append(
            f"They part at once, by {fit.first:.1f} nats on the first {BEGINNING} tokens: probably the teacher "
            "expects another prompt (teacher_chat_template='own'). If the prompt is right, it begins its answers "
            "otherwise than the student"
        )
    if fit.end_gap is not None and fit.ended >= ENOUGH_ENDS and fit.end_gap < -END:
        doubts.append(
            f"The teacher would not end where the student ends ({-fit.end_gap:.1f} nats less likely, in {fit.ended} "
            "answers). Compare the end tokens and the chat templates of both: if they differ, answers will grow until "
            "they are cut"
        )
    if fit.kl > FAR:
        doubts.append(
            f"They are far apart, by {fit.kl:.1f} nats a token (limit {FAR:g}): most of the student's text is not the "
            "teacher's. Fine-tune the student on answers of the teacher first, or take a teacher of its family"
        )
    if abs(fit.kl) < SAME:
        doubts.append("The two agree on every token, so that there is nothing to learn: they may be the same model")
    return doubts
