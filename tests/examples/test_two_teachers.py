"""Two teachers: routed to its specialists the student gains both skills, routed wrongly neither; the short example."""

import json
import re

import pytest
from transformers import AutoModelForCausalLM

from benchmarks.two_teachers import main as benchmark
from fire_opd_trl.demo import task
from fire_opd_trl.preflight.packaged import load_module, packaged_folder


@pytest.fixture(scope="module")
def example():
    return load_module(packaged_folder("examples") / "two_teachers.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An output folder with the specialist and the student, which are made once, in fewer steps than there."""
    folder = tmp_path_factory.mktemp("two_teachers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(benchmark.FINE_TUNED["digits_teacher"], "steps", 80)
        for name in benchmark.FINE_TUNED:
            benchmark.fine_tuned(name, folder)
    return folder


def test_both_skills_have_a_working_of_one_form(example):
    def question(*problem):
        return example.row(*problem)["prompt"]

    def working(*problem):
        return example.row(*problem)["completion"]

    assert question("carry", 437, 85) == "437+85="
    assert question("digits", 437, 85) == "437,85="
    assert working("carry", 437, 85) == task.working(437, 85) == "7+5+0=12,3+8+1=12,4+0+1=05;522"
    assert working("digits", 437, 85) == "7+5+0=12,3+8+0=11,4+0+0=04;412"
    assert working("digits", 662, 459) == "2+9+0=11,6+5+0=11,6+4+0=10;11"  # leading zeros are dropped
    assert working("digits", 123, 456).rpartition(";")[2] == "579"  # without a carry the answers agree
    assert [example.row(skill, 1, 2)["teacher_id"] for skill in benchmark.SKILLS] == list(benchmark.SKILLS)


def test_the_routes_differ_in_the_teacher_alone():
    rows = {name: benchmark.routed_prompts(route, steps=2, seed=0) for name, route in benchmark.ROUTES.items()}
    assert all(list(some["prompt"]) == list(rows["right"]["prompt"]) for some in rows.values())
    right, wrong = list(rows["right"]["teacher_id"]), list(rows["wrong"]["teacher_id"])
    assert right.count("carry") == right.count("digits") == benchmark.ROWS  # two updates, half of each
    assert all(own != other for own, other in zip(right, wrong, strict=True))
    assert ["+" in prompt for prompt in rows["right"]["prompt"]] == [name == "carry" for name in right]


def test_the_wrong_teachers_undo_what_the_right_ones_teach(folder, capsys):
    """And the benchmark from end to end. That the right ones teach both skills is what the next test sees."""
    arms = ["right_full", "wrong_full"]
    quick = ["--steps", "12", "--seeds", "1", "--problems", "300", "--arms", *arms]
    table = benchmark.main(["--output_dir", str(folder), *quick])

    before, after = table["before"], table["arms"]
    for skill, other in (("carry", "digits"), ("digits", "carry")):
        assert before[skill][skill].mean > 0.9 and before[other][skill].mean < 0.1  # specialists
        # Gains in points with seeds 0, 1 and 2 of these arguments: right, carry +13.0, +16.7, +10.3, digits +2.3,
        # +4.7, +6.0; wrong, carry -42.0, -39.3, -41.0, digits -39.0, -34.7, -39.0. With 300 problems the standard
        # error of a gain is at most 4 points, and less by what the problems share.
        assert after["right_full"][skill]["gain"].mean > {"carry": 0.04, "digits": -0.04}[skill]
        assert after["wrong_full"][skill]["gain"].mean < -0.25
        assert after["right_full"][skill]["after"].mean - after["wrong_full"][skill]["after"].mean > 0.3

    printed = capsys.readouterr().out
    assert "right: opd_full" in printed and "a,b=, columns without carries" in printed
    record = json.loads((folder / "results.json").read_text())
    assert record["table"]["arms"]["right_full"]["carry"]["gain"]["n"] == 1
    assert {file.name for file in (folder / "runs").iterdir()} == {f"{arm}-seed0.json" for arm in arms}
    assert (folder / "accuracy.png").stat().st_size > 10_000


def test_the_example_distils_both_skills_into_its_student(example, folder, tmp_path, monkeypatch, capsys):
    """
    Its `main`, from the models that the benchmark makes alike, with fewer updates. As it is shipped it takes 80 s of a
    core; one run gave carry 52.8 -> 75.3 %, digits 47.0 -> 57.2 %.
    """
    made = {"teacher": "digits_teacher", "student": "student"}

    def fine_tuned(name, skills, updates, batch):
        recipe = benchmark.FINE_TUNED[made[name]]
        wanted = {"start": name, "skills": list(skills), "rows": batch, "steps": updates}
        assert recipe == wanted  # the example makes them by the same recipe
        return AutoModelForCausalLM.from_pretrained(folder / "models" / made[name], dtype="float32")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(example, "fine_tuned", fine_tuned)
    monkeypatch.setattr(example, "UPDATES", 20)
    example.main()
    printed = re.findall(r"(\w+): (\d+\.\d)% .* before, (\d+\.\d)% after", capsys.readouterr().out)
    assert [skill for skill, *_ in printed] == ["carry", "digits"]
    for skill, before, after in printed:
        assert float(after) > float(before) + {"carry": 10, "digits": 4}[skill]


def test_fine_tuning_in_the_example_follows_the_right_answers(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    taught = []
    monkeypatch.setattr(
        example.SFTTrainer, "train", lambda trainer: taught.append(trainer.train_dataset) or trainer.model
    )
    assert example.fine_tuned("student", ["digits", "carry"], updates=2, batch=3).num_parameters() > 1e5
    (rows,) = taught
    assert len(rows) == 6 and "labels" in rows.column_names
    texts = example.tokenizer.batch_decode(list(rows["input_ids"]), skip_special_tokens=True)
    assert ["," in text.partition("=")[0] for text in texts] == [True, False] * 3
    for row in rows:  # prompts are not learned
        learned = [token for token in row["labels"] if token != -100]
        assert example.tokenizer.decode(learned, skip_special_tokens=True) == row["completion"].replace("<eos>", "")
