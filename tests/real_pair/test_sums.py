"""Sums in words: what is asked, what counts as right, and how answers are sampled."""

import copy
import math

import pytest
import torch

from fire_opd_trl.evaluation.compare import embedded
from fire_opd_trl.evaluation.evaluate import prompts
from fire_opd_trl.real_pair import sums


def test_a_sum_its_working_and_its_prompt():
    numbers = (47, 8, -5)
    assert sums.problem(numbers) == "What is 47 + 8 - 5?"
    assert sums.worked(numbers) == "47 + 8 = 55\n55 - 5 = 50\nThe answer is \\boxed{50}."
    (message,) = sums.instructed(numbers)
    assert message == {"role": "user", "content": "What is 47 + 8 - 5?\n" + prompts.INSTRUCTION}
    assert sums.chat(numbers) == [
        {"role": "user", "content": "What is 12 + 9 - 3?"},
        {"role": "assistant", "content": "12 + 9 = 21\n21 - 3 = 18\nThe answer is \\boxed{18}."},
        {"role": "user", "content": "What is 47 + 8 - 5?"},
    ]


def test_splits_share_no_sum_and_are_drawn_anew_with_another_seed():
    train, test = sums.problems("train", 2000), sums.problems("test", 500)
    assert len(set(train)) == 2000 and len(set(test)) == 500 and not set(train) & set(test)
    assert not set(sums.problems("sft", 2000)) & set(test)
    assert sums.problems("test", 500) == test and sums.problems("test", 500, seed=1) != test
    assert all(10 <= first <= 99 and all(1 <= abs(n) <= 9 for n in rest) for first, *rest in train)


@pytest.mark.parametrize(
    "text, right",
    [
        ("47 + 8 = 55\nThe answer is \\boxed{50}.", True),
        ("\\boxed{55} and then \\boxed{ 50 }", True),  # the last box counts
        ("\\boxed{50}, or rather \\boxed{51}", False),
        ("The answer is 50.", False),
        ("\\boxed{050}", False),
        ("", False),
    ],
)
def test_the_number_in_the_last_box_counts(text, right):
    assert sums.exact_match([[{"role": "assistant", "content": text}]], ["50"]) == [float(right)]


@pytest.fixture(scope="module")
def embedded_student():
    model, tokenizer = embedded.load("student")
    return model.eval(), tokenizer


def test_greedy_answers_are_those_of_generate_however_many_leave_the_batch(embedded_student):
    model, tokenizer = embedded_student
    questions = [f"{a}+{b}=" for a, b in [(7, 5), (12, 345), (999, 1), (10, 10), (640, 28), (55, 5), (3, 78), (81, 9)]]
    questions += questions[:3]  # read once, answered twice
    ids = [tokenizer(question)["input_ids"] for question in questions]
    assert len(set(map(len, ids))) > 2
    answers = sums.sample(model, tokenizer, ids, temperature=0, limit=31)
    assert len({len(answer.ids) for answer in answers}) > 1  # some end before others, and leave
    for question, answer in zip(questions, answers, strict=True):
        tokens = tokenizer(question, return_tensors="pt")
        alone = model.generate(**tokens, do_sample=False, max_new_tokens=31)[
            0, tokens["input_ids"].shape[1] :
        ].tolist()
        assert answer.ids == alone
        assert answer.finished == (alone[-1] == tokenizer.eos_token_id)
        assert answer.text == tokenizer.decode(alone, skip_special_tokens=True)


def test_answers_are_cut_at_the_limit(embedded_student):
    model, tokenizer = embedded_student
    (answer,) = sums.sample(model, tokenizer, [tokenizer("12+34=")["input_ids"]], temperature=0, limit=5)
    assert len(answer.ids) == 5 and not answer.finished


def test_tokens_are_drawn_from_the_whole_distribution(embedded_student):
    model, tokenizer = copy.deepcopy(embedded_student[0]), embedded_student[1]
    with torch.no_grad():  # an untrained head: many tokens are likely
        model.get_output_embeddings().weight.mul_(0.1)
    ids = tokenizer("12+34=")["input_ids"]
    with torch.no_grad():
        chances = torch.softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1)
    count, generator = 4000, torch.Generator().manual_seed(0)
    answers = sums.sample(model, tokenizer, [ids] * count, 1.0, generator, limit=1)
    seen = torch.bincount(torch.tensor([answer.ids[0] for answer in answers]), minlength=len(chances)).double()
    assert (chances > 0.01).sum() > 8
    expected = chances * count
    statistic = float(((seen - expected) ** 2 / expected).sum())
    freedom = len(chances) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)  # four standard deviations of chi-square


def test_the_same_generator_draws_the_same_answers(embedded_student):
    model, tokenizer = embedded_student
    ids = [tokenizer(f"{n}+{n}=")["input_ids"] for n in range(10, 26)]
    first, second, other = (
        sums.sample(model, tokenizer, ids, 1.0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first == second != other
