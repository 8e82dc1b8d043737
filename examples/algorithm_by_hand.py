"""
FiRe-OPD ("filter, then reweight", arXiv 2606.02684) by hand, to be read once from top to bottom.

In plain torch and transformers, without a trainer: sample, score, filter, reweight, advantage, update. A student
answers prompts, a teacher says of every token how likely it finds it, and the student moves towards what the teacher
likes. FiRe-OPD drops the answers that the teacher finds least likely, and lets a token count more where the teacher is
sure and the student is not. `fire_opd_trl` computes the same, and a test compares the two.

Models and task are embedded in the package: additions of three digits with their working. On one CPU core, it takes
about a minute:

    python examples/algorithm_by_hand.py

The suffix of a tensor names its axes: B rows, each one sampled answer; T tokens of an answer, padded on the right;
L tokens of prompt and answer, padded on both sides; V entries of the vocabulary.
"""

import argparse
import time
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fire_opd_trl.demo import task
from fire_opd_trl.demo.run import model_path


DROP_FRACTION = 0.2  # the share of the rollouts that is dropped
CONFIDENCE, CONFUSION = 1.0, 1.0  # a and b of the token weights
EPSILON = 0.2  # how far from 1 the ratio of the update may go
ROLLOUTS, LEARNING_RATE = 256, 4e-4


class Rollouts(NamedTuple):
    """What the student sampled for the prompts of one step."""

    ids_BL: torch.Tensor
    attention_BL: torch.Tensor  # 1 on tokens of prompt and answer, 0 on padding
    mask_BT: torch.Tensor  # true on the tokens of the answer, its end token included

    def rows(self, keep_B: torch.Tensor) -> "Rollouts":
        return Rollouts(*(tensor[keep_B] for tensor in self))


def mean_B(value_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Returns the mean over the tokens of each answer."""
    return (value_BT * mask_BT).sum(dim=1) / mask_BT.sum(dim=1)


@torch.no_grad()
def sample(student, tokenizer, prompts: list[str]) -> Rollouts:
    """Step 1. The student itself answers every prompt, from its full distribution: the training is on-policy."""
    prompt = tokenizer(prompts, return_tensors="pt", padding=True)
    ids_BL = student.generate(
        **prompt, max_new_tokens=task.MAX_COMPLETION_TOKENS, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
    )
    is_end_BT = ids_BL[:, prompt["input_ids"].shape[1] :] == tokenizer.eos_token_id
    mask_BT = is_end_BT.cumsum(dim=1) - is_end_BT.long() == 0  # no end token stands before this token
    return Rollouts(ids_BL, torch.cat([prompt["attention_mask"], mask_BT.long()], dim=1), mask_BT)


def score(model, rollouts: Rollouts) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Step 2. One forward of a model over what was sampled. Returns `logp_BT`, the log-probability of every token, and
    `entropy_BT`, the entropy of the distribution that the model has at the token's place, both in nats.
    """
    ids_BL, attention_BL, mask_BT = rollouts
    position_BL = (attention_BL.cumsum(dim=1) - 1).clamp(min=0)  # a prompt's first token is at 0 behind the padding
    logits_BLV = model(input_ids=ids_BL, attention_mask=attention_BL, position_ids=position_BL).logits
    tokens = mask_BT.shape[1]
    logp_BTV = logits_BLV[:, -tokens - 1 : -1].log_softmax(dim=2)  # the distribution at a place predicts the next one
    logp_BT = logp_BTV.gather(2, ids_BL[:, -tokens:].unsqueeze(2)).squeeze(2)
    return logp_BT, -(logp_BTV.exp() * logp_BTV).sum(dim=2)


def survivors(teacher_logp_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """
    Step 3, filter: `s(y) = 1/|y| sum_t log pi_T(y_t)` is how likely the teacher finds an answer. Of the N answers, the
    floor(0.2 N) with the lowest `s` are dropped; of two equal ones the first. Returns `keep_B`, true where it trains.
    """
    score_B = mean_B(teacher_logp_BT, mask_BT)
    keep_B = torch.ones(len(score_B), dtype=torch.bool)
    keep_B[score_B.argsort(stable=True)[: int(DROP_FRACTION * len(score_B))]] = False
    return keep_B


def token_weights(teacher_entropy_BT, student_entropy_BT, mask_BT) -> torch.Tensor:
    """
    Step 4, reweight: it counts more where the teacher is sure (confidence c) and the student is not (confusion u):

        c_t = 1 - H_T(t) / max H_T,   u_t = H_S(t) / max H_S,   w_t = (1 + a c_t)(1 + b u_t),

    with the maxima over all tokens of all surviving answers. Then each weight is divided by the mean weight of its
    answer (Eq. 8), so that an answer as a whole counts as much as before. Returns `weight_BT`, 0 on padding.
    """
    c_BT = 1 - teacher_entropy_BT / teacher_entropy_BT[mask_BT].max()
    u_BT = student_entropy_BT / student_entropy_BT[mask_BT].max()
    weight_BT = (1 + CONFIDENCE * c_BT) * (1 + CONFUSION * u_BT)
    return weight_BT * mask_BT / mean_B(weight_BT, mask_BT).unsqueeze(1)


def advantages(weight_BT, teacher_logp_BT, student_logp_BT) -> torch.Tensor:
    """
    Step 5: `A_t = w_t (log pi_T(y_t) - log pi_old(y_t))`, positive where the teacher finds the token likelier than the
    student does. It is a number, not a function of the parameters: nothing is differentiated through it.
    """
    return weight_BT * (teacher_logp_BT - student_logp_BT)


def clipped_loss(logp_BT, old_logp_BT, advantage_BT, mask_BT) -> torch.Tensor:
    """
    Step 6, update (Eq. 9): with the ratio `r_t = exp(log pi_theta(y_t) - log pi_old(y_t))`,

        l_t = -min(r_t A_t, clip(r_t, 1 - eps, 1 + eps) A_t),

    the mean over the tokens of an answer, then over the surviving answers. With one update for each sample, as here,
    `r_t` is 1, and the gradient of `l_t` is `-A_t` times that of `log pi_theta(y_t)`.
    """
    ratio_BT = (logp_BT - old_logp_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - EPSILON, 1 + EPSILON)
    return mean_B(-torch.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT), mask_BT).mean()


def fire_loss(student, teacher, rollouts: Rollouts) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Steps 2 to 6: returns the loss that is differentiated, and what it was made of."""
    with torch.no_grad():
        teacher_logp_BT, teacher_entropy_BT = score(teacher, rollouts)
        keep_B = survivors(teacher_logp_BT, rollouts.mask_BT)
    kept = rollouts.rows(keep_B)  # from here on there are only survivors; the student does not score the others
    logp_BT, student_entropy_BT = score(student, kept)  # with gradient, for step 6
    old_logp_BT = logp_BT.detach()  # the student that sampled is the one that is updated
    teacher_logp_BT, teacher_entropy_BT = teacher_logp_BT[keep_B], teacher_entropy_BT[keep_B]
    weight_BT = token_weights(teacher_entropy_BT, student_entropy_BT.detach(), kept.mask_BT)
    advantage_BT = advantages(weight_BT, teacher_logp_BT, old_logp_BT)
    loss = clipped_loss(logp_BT, old_logp_BT, advantage_BT, kept.mask_BT)
    # An estimate of KL(student || teacher); too low, since the teacher chose the survivors that it is over.
    kl = (old_logp_BT - teacher_logp_BT)[kept.mask_BT].mean()
    return loss, {"keep_B": keep_B, "weight_BT": weight_BT, "advantage_BT": advantage_BT, "kl": kl}


def main(argv: list[str] | None = None) -> tuple[float, float]:
    """Trains the embedded student, prints a line for each step, and returns held-out accuracy before and after."""
    parser = argparse.ArgumentParser(description="FiRe-OPD in plain torch and transformers, on the embedded task.")
    parser.add_argument("--steps", type=int, default=60, help=f"updates, each on {ROLLOUTS} answers")
    parser.add_argument("--problems", type=int, default=1000, help="held-out problems")
    parser.add_argument("--seed", type=int, default=0, help="seed of the problems and of the samples")
    options = parser.parse_args(argv)
    for name in ("steps", "problems"):
        if vars(options)[name] < 1:
            parser.error(f"--{name} {vars(options)[name]}: give at least 1")

    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(model_path("student"))
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(model_path(name), dtype=torch.float32) for name in ("student", "teacher")
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    held_out = task.problems("test", options.problems, seed=options.seed)
    before = task.accuracy(student, tokenizer, held_out)
    pairs, started = task.problems("train", options.steps * ROLLOUTS, seed=options.seed), time.perf_counter()
    for step in range(options.steps):
        problems = pairs[step * ROLLOUTS : (step + 1) * ROLLOUTS]
        rollouts = sample(student, tokenizer, [task.prompt(a, b) for a, b in problems])
        loss, parts = fire_loss(student, teacher, rollouts)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        print(
            f"step {step + 1:3} of {options.steps}   kept {int(parts['keep_B'].sum())} of {ROLLOUTS}   "
            f"loss {loss:.4f}   KL to the teacher {parts['kl']:.4f}   {time.perf_counter() - started:3.0f} s"
        )
    after = task.accuracy(student, tokenizer, held_out)
    print(f"held-out accuracy: {before:.1%} before, {after:.1%} after")
    return before, after


if __name__ == "__main__":
    main()
