"""The calculator is called in rollouts of a tiny model, and what it writes is read, but not scored and not trained."""

import pytest
import torch
from support.commands import script_refusal
from support.trainers import logs_of
from support.worker import recorded

from fire_opd_trl.preflight.packaged import load_module, packaged_folder


@pytest.fixture(scope="module")
def example():
    module = load_module(packaged_folder("examples") / "tools.py")
    module.UPDATES, module.NOISE = 120, 0.02  # a third less to make, and a student that makes fewer mistakes
    return module


@pytest.fixture(scope="module")
def trained(example, tmp_path_factory):
    """The example after two steps, and its output folder."""
    folder = tmp_path_factory.mktemp("tools")
    return example.main(["--steps", "2", "--rows", "8", "--output_dir", str(folder)]), folder


@pytest.mark.parametrize(
    ("expression", "value"),
    [("12 * 7", "84"), (" -(2 + 3) * 4", "-20"), ("2 - -3", "5"), ("1000000 * 1000000", "1000000000000")],
)
def test_the_calculator_calculates(example, expression, value):
    assert example.calculator(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["__import__('os').getcwd()", "2 ** 9", "9 // 2", "1.5 + 1", "True + 1", "a + 1", "[1]", "1, 2", "", "1 +",
     "(" * 99, "1000000 * 1000001", "9" * 101, "1 < 2", "'a' * 3", "abs(3)"],
)  # fmt: skip
def test_the_calculator_refuses_everything_else(example, expression):
    with pytest.raises((ValueError, SyntaxError)):
        example.calculator(expression)


def test_the_tool_is_called_and_its_result_is_in_the_context(example, trained):
    trainer, folder = trained
    logs = logs_of(trainer)
    assert len(logs) == 2 and all(log["tools/call_frequency"] > 0.5 for log in logs)
    assert all(log["tools/failure_frequency"] < 0.5 for log in logs)
    answered = [record for record in recorded(folder) if "<tool_response>" in record["completion"]]
    assert len(answered) >= 4
    for record in answered:
        call, _, rest = record["completion"].partition("</tool_call>")
        expression = call.rpartition('"expression": "')[2].partition('"')[0]
        told = rest.partition("<tool_response>\n")[2].partition("\n</tool_response>")[0]
        assert told == example.calculator(expression)


def test_what_the_tool_wrote_has_no_weight_and_no_advantage_and_does_not_count(trained):
    _, folder = trained
    for record in recorded(folder):
        own = record["trains"]
        told = "".join(text for text, mine in zip(record["tokens"], own, strict=True) if not mine)
        assert ("<tool_response>" in told) == ("<tool_response>" in record["completion"])
        assert not any(
            weight or advantage
            for weight, advantage, mine in zip(record["weight"], record["advantage"], own, strict=True)
            if not mine
        )
        # The score by which `fire` ranks is the teacher's mean over the student's own tokens.
        likely = [logp for logp, mine in zip(record["teacher_logp"], own, strict=True) if mine]
        assert record["score"] == pytest.approx(sum(likely) / len(likely), abs=1e-4)
        everything = record["teacher_logp"]
        if not all(own):  # with the tool's tokens it would be another number
            assert abs(sum(everything) / len(everything) - record["score"]) > 1e-2


def test_the_gradient_does_not_depend_on_the_tokens_of_the_tool(trained):
    trainer, _ = trained
    told_of = [part["completion_mask"].bool() & ~part["train_mask"] for part in trainer._buffered_inputs]
    part, told = next((part, told) for part, told in zip(trainer._buffered_inputs, told_of, strict=True) if told.any())
    own, advantages = part["train_mask"], part["advantages"]

    def gradient(inputs) -> torch.Tensor:
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, inputs).backward()
        return torch.cat(
            [weights.grad.flatten() for weights in trainer.model.parameters() if weights.grad is not None]
        )

    before = gradient(part)
    changed = gradient({**part, "advantages": torch.where(told, 100.0, advantages)})
    assert before.abs().max() > 0 and torch.equal(before, changed)
    assert not torch.allclose(before, gradient({**part, "advantages": torch.where(own, 100.0, advantages)}))


def test_the_example_says_who_wrote_what(trained, example):
    table = example.who_wrote_what(trained[1])
    student, tool = (line.split() for line in table[-2:])
    assert student[:2] == ["the", "student"] and student[2] == student[-1] != "0"
    assert tool[:2] == ["the", "tool"] and tool[2] != "0" and tool[3:] == ["0.000", "0"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--model_name_or_path", "student"], "give both --model_name_or_path and --teacher"),
        (["--rows", "0"], "--rows 0: give a multiple of 4"),
        (["--rows", "6"], "--rows 6: give a multiple of 4"),
        (["--steps", "0"], "--steps 0: give at least 1"),
        (["--use_vllm"], "--use_vllm has no effect on the tiny models"),
        (["--method", "fir"], "method='fir' is refused."),
        (["--output_dir", __file__], "File exists"),
        (["--model_name_or_path", "nowhere/", "--teacher", "nowhere/", "--use_cpu"], "'nowhere/' could not be loaded"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_a_model_is_made(example, tmp_path, capsys, monkeypatch, argv, said):
    monkeypatch.chdir(tmp_path)
    for name in ("tiny_tokenizer", "tiny_teacher"):
        monkeypatch.setattr(example, name, pytest.fail)
    text = script_refusal(example.main, argv, capsys)
    assert said in text and "\n" not in text
