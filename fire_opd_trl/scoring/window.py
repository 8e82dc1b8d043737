"""One window under all models: every teacher, the student and the reference score it, each once."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..pipeline import Divergence, Method, Scores
from ..rollouts.layout import Batch, with_prompts
from .divergences import FullDivergence, TopK, TopKDivergence, hidden_states, observe_all, pad_ragged
from .heads import Observer
from .token_scores import ModelScorer, Scorer, TokenScores


Mode = Literal["train", "eval"]


@dataclass
class Window:
    """
    What is known so far of the window that is being scored.

    Args:
        mode (`str`): `"train"` or `"eval"`.
        method ([`Method`]): The recipe, which says what must be computed.
        teacher_B (`torch.Tensor`): Number of each row's teacher.
        prompts (`list`): Tokens of each row's prompt as its teacher reads it; `None` where that is the student's.
        teacher ([`TokenScores`], *optional*): What the teachers say, once they have scored.
        for_trl (`list`): What TRL has asked for on its way through the window, in its order.
    """

    mode: Mode
    method: Method
    teacher_B: torch.Tensor
    prompts: list[list[int] | None]
    teacher: TokenScores | None = None
    for_trl: list[TokenScores] = field(default_factory=list)


@dataclass
class WindowScorer:
    """
    Scores windows. The trainer makes one, calls `begin` before TRL samples, and `scored` after; in between TRL itself
    may ask for log-probabilities of the student or the reference, which go through `asked_by_trl`. What the window
    holds, hidden states among it, lives from `begin` to `end`.

    Args:
        student ([`ModelScorer`]): The student.
        teachers (`dict`): The teachers by name, in the order of their numbers.
        reference ([`Scorer`], *optional*): The reference model of a method that has one.
        temperature (`float`): By which logits are divided.
        pad_token_id (`int`): Fills the teachers' prompts.
    """

    student: ModelScorer
    teachers: dict[str, ModelScorer]
    reference: Scorer | None
    temperature: float
    pad_token_id: int
    window: Window | None = None

    @property
    def scorers(self) -> dict[str, Scorer]:
        """All models that score a window, by the name under which they are logged."""
        reference = {"reference": self.reference} if self.reference else {}
        return {"student": self.student, **self.teachers, **reference}

    def begin(self, mode: Mode, method: Method, teacher_B: torch.Tensor, prompts: list[list[int] | None]) -> None:
        """
        The trainer calls this before a window is sampled.

        Args:
            mode (`str`): `"train"` or `"eval"`.
            method ([`Method`]): The recipe, in an evaluation without its filter.
            teacher_B (`torch.Tensor`): Number of each row's teacher.
            prompts (`list`): Tokens of each row's prompt as its teacher reads it; `None` where that is the student's.
        """
        self.window = Window(mode, method, teacher_B, prompts)

    def end(self, keep_B: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        """
        The trainer calls this as soon as the filter has decided, since hidden states are large. Returns what the loss
        needs of the teachers, by name: for each survivor a tensor of the row's own length, for other rows an empty
        one. What was observed of those is freed with the window.
        """
        teacher, self.window = self._window().teacher, None
        assert teacher is not None
        kept = keep_B.tolist()
        return {
            name: [
                value if keep else value.new_empty((0, *value.shape[1:]))
                for value, keep in zip(rows, kept, strict=True)
            ]
            for name, rows in teacher.observed.items()
        }

    def asked_by_trl(self, batch: Batch, scorer: Scorer | None = None) -> TokenScores:
        """
        The trainer calls this when TRL asks for the log-probabilities of a whole window: of the policy that sampled,
        and of the reference of `beta`.

        Args:
            batch (`dict`): The window.
            scorer ([`Scorer`], *optional*): A reference model of TRL's; by default the student, which is the reference
                too when TRL has switched its adapter off.
        """
        window = self._window()
        scores = scorer.token_scores(batch) if scorer else self._student(batch)
        window.for_trl.append(scores)
        return scores

    def scored(self, batch: Batch) -> Scores:
        """
        The trainer calls this once for each window, when TRL has sampled it. Returns all that is known of it: what the
        method reads, and entropies wherever a head computes them anyway.
        """
        teacher = self._teacher(batch)
        student = self._old_policy(batch) or self._student(batch)
        divergence = student.observed.get("divergence")
        knows = all(scorer.entropies for scorer in self.teachers.values())
        return Scores(
            teacher_logp_BT=teacher.logp_BT,
            student_logp_BT=student.logp_BT,
            teacher_entropy_BT=teacher.entropy_BT if knows else None,
            student_entropy_BT=student.entropy_BT if self.student.entropies else None,
            reference_logp_BT=self.reference.token_scores(batch).logp_BT if self.reference else None,
            reverse_kl_BT=None if divergence is None else pad_ragged(divergence, teacher.logp_BT),
        )

    def loss_observer(self, part: Batch, divergence: Divergence | None) -> Observer | None:
        """The loss calls this for each micro-batch: what compares the student with its teachers in its forward."""
        return self._comparison(part, part["divergence"] != 0, divergence) if divergence else None

    def _window(self) -> Window:
        assert self.window is not None, "a window is scored between begin and end"
        return self.window

    def _teacher(self, batch: Batch) -> TokenScores:
        """
        Every row by its own teacher, after the prompt that this teacher reads: once for each window. Every teacher
        runs equally often on every rank, also where it has no row.
        """
        window = self._window()
        if window.teacher is None:
            teacher_B, read = window.teacher_B.tolist(), with_prompts(batch, window.prompts, self.pad_token_id)
            scored = []
            for number, teacher in enumerate(self.teachers.values()):
                rows = [row for row, owner in enumerate(teacher_B) if owner == number]
                scored.append(teacher.token_scores(read, rows, self._teacher_observer))
            names = {name for scores in scored for name in scores.observed}
            window.teacher = TokenScores(
                logp_BT=torch.stack([scores.logp_BT for scores in scored]).sum(dim=0),
                entropy_BT=torch.stack([scores.entropy_BT for scores in scored]).sum(dim=0),
                observed={
                    name: [scored[owner].observed[name][row] for row, owner in enumerate(teacher_B)] for name in names
                },
            )
        return window.teacher

    def _student(self, batch: Batch) -> TokenScores:
        """The student, compared with its teachers in the same forward if the method reads that."""
        if "reverse_kl_BT" not in self._window().method.signals:
            return self.student.token_scores(batch)
        observed = self._teacher(batch).observed
        return self.student.token_scores(
            {**batch, **observed, "teacher_number": self._window().teacher_B},
            observe=lambda part: self._comparison(part, part["completion_mask"] != 0),
        )

    def _old_policy(self, batch: Batch) -> TokenScores | None:
        """
        What the student said when TRL asked. TRL asks for the policy that sampled before anything else, if it needs
        it, and then hands those log-probabilities on in its batch. A version of TRL that does otherwise is refused,
        since the student would be scored twice, or by other weights.
        """
        if "old_per_token_logps" not in batch:
            return None
        asked, given_BT = self._window().for_trl, batch["old_per_token_logps"]
        if not asked or not torch.equal(asked[0].logp_BT.nan_to_num(), given_BT.nan_to_num()):
            raise RuntimeError(
                "TRL returned other log-probabilities of the sampling policy than those that it had asked for. This "
                "version of TRL works in another way than the one that this trainer was written for: install trl 1.16."
            )
        return asked[0]

    def _teacher_observer(self, part: Batch) -> Observer | None:
        """What must be observed of a teacher while it scores, if anything: its hidden states, its top k, or both."""
        window = self._window()
        divergence = window.method.divergence if window.mode == "train" else None  # evaluation updates nothing
        observers: list[Observer] = []
        if "reverse_kl_BT" in window.method.signals or (divergence and not divergence.top_k):
            observers.append(hidden_states)
        if divergence and divergence.top_k:
            observers.append(TopK(divergence.top_k, self.temperature, part["completion_mask"].bool()))
        return observe_all(observers) if observers else None

    def _comparison(self, part: Batch, chosen_BT: torch.Tensor, divergence: Divergence | None = None) -> Observer:
        """
        What compares the student with its teachers at some tokens: with their top k, or with their whole
        distributions; without a divergence by KL(student || teacher).
        """
        if divergence and divergence.top_k:
            return TopKDivergence(part, chosen_BT, self.temperature)
        heads: list[Any] = [teacher.base() for teacher in self.teachers.values()]
        return FullDivergence(part, chosen_BT, heads, divergence.mixture if divergence else 1.0, self.temperature)
