"""`fire-opd inspect --student --teacher --prompts`: one window of a pair, and whether the teacher fits."""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from support.folders import adapter_folder, loaded
from transformers import Qwen3Config, Qwen3ForCausalLM

from fire_opd_trl.demo import task
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.evaluation.inspect import pair
from fire_opd_trl.evaluation.inspect.verdict import interval_of_kl


STUDENT, TEACHER = model_path("student"), model_path("teacher")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """Sixty-four additions in a file."""
    path = tmp_path_factory.mktemp("data") / "addition.jsonl"
    task.dataset("train", 64, seed=0).to_json(path)
    return str(path)


class Look:
    """What a look at a pair has printed and left behind."""

    def __init__(self, folder: Path, printed: str):
        self.folder, self.printed = folder, printed
        self.run = json.loads((folder / "run.json").read_text())
        self.fits = self.run["fit"]
        (line,) = (folder / "metrics.jsonl").read_text().splitlines()
        self.metrics = json.loads(line)
        self.rows = pd.read_parquet(folder / "rollouts" / "rollouts_00000.parquet")

    @property
    def said(self) -> str:
        """The verdict without its line breaks."""
        return " ".join(self.printed[self.printed.index("VERDICT") :].split())


def asked(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    pair.add_arguments(parser)
    return parser.parse_args(argv)


@pytest.fixture
def look(data, tmp_path, monkeypatch, capsys):
    """`look(student, teacher, ...)` in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def look(student=STUDENT, *teachers, **options) -> Look:
        options = {"prompts": data, "max_completion_length": 33, **options}
        argv = ["--student", student, "--teacher", *(teachers or [TEACHER])]
        for name, value in options.items():
            argv += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        folder = pair.sample_pair(asked(*argv))
        return Look(folder, capsys.readouterr().out)

    return look


def listed(folder: str | Path) -> dict[str, str]:
    """All files of a folder, by what is in them."""
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# What is left behind


def test_a_look_leaves_a_folder_that_reads_like_a_runs_and_nothing_else(look, tmp_path):
    models = listed(STUDENT), listed(TEACHER)
    seen = look()
    assert seen.folder == Path("outputs/inspect-student-teacher") and set(listed(tmp_path)) == {
        f"{seen.folder}/{name}" for name in ("run.json", "metrics.jsonl", "rollouts/rollouts_00000.parquet")
    }
    assert (listed(STUDENT), listed(TEACHER)) == models
    run = seen.run
    assert (run["status"], run["steps"], run["method"]["name"]) == ("inspected", 0, "fire")
    assert run["student"]["name"] == STUDENT and run["teachers"]["teacher"]["name"] == TEACHER
    assert run["asked"]["student"] == STUDENT and (run["asked"]["rows"], run["asked"]["seed"]) == (32, 0)
    assert run["versions"]["trl"].startswith("1.16") and run["metrics"]["last"]["fire/rows"] == 32
    # fire drops floor(0.2 x 32) = 6 of the whole window, as a training would
    assert len(seen.rows) == 32 and (~seen.rows.kept).sum() == 6 and seen.metrics["fire/keep_ratio"] == 26 / 32
    assert set(seen.rows.step) == {seen.metrics["step"]} == {0}


def test_the_terminal_says_what_the_records_hold(look):
    seen = look()
    tokens = seen.rows.explode(["student_logp", "teacher_logp"])
    gap = (tokens.student_logp - tokens.teacher_logp).astype(float)
    fit = seen.fits["teacher"]
    assert fit["kl"] == pytest.approx(gap.mean(), abs=1e-5) == pytest.approx(seen.metrics["fire/reverse_kl"], abs=1e-5)
    low, high = fit["kl_interval"]
    assert low < fit["kl"] < high
    assert f"KL(student || teacher)       {fit['kl']:.3f} nats a token, 95 % interval {low:.3f} to {high:.3f}" in (
        seen.printed
    )
    assert fit["rejected"] == pytest.approx((tokens.teacher_logp.astype(float) < -4.60517).mean())
    assert f"in {(seen.rows.apply(lambda r: (r.student_logp - r.teacher_logp).max(), axis=1) > 2).sum()} of 32" in (
        seen.printed
    )
    assert fit["verdict"] == "fits" and "VERDICT: the teacher fits." in seen.said


def test_equal_seeds_give_equal_rows_and_a_new_look_replaces_the_old_one(look):
    one = look(rows=12)
    (one.folder / "metrics.jsonl").write_text("{}\n{}\n")
    again = look(rows=12)
    pd.testing.assert_frame_equal(one.rows, again.rows)
    assert one.fits == again.fits and not list(again.folder.glob("metrics-before*"))
    other = look(rows=12, seed=1)
    assert set(other.rows.prompt) != set(one.rows.prompt)


def test_a_window_that_is_sampled_in_parts_is_still_one_window(look):
    # 130 tokens at once: three answers of at most 8 + 33 tokens, so that 10 answers are four parts.
    seen = look(rows=10, tokens_at_once=130, dtype="bfloat16")
    assert "3 at a time" in seen.printed and "  10 of 10" in seen.printed
    assert len(seen.rows) == 10 and (~seen.rows.kept).sum() == 2  # floor(0.2 x 10), not 4 x floor(0.2 x 3) = 0
    assert seen.metrics["fire/rows"] == 10 and seen.fits["teacher"]["verdict"] == "fits"


def test_several_answers_to_each_prompt_are_resampled_together(look):
    seen = look(rows=3, num_generations=2, method="opd")
    assert seen.rows.group.tolist() == [0, 0, 1, 1, 2, 2] and seen.run["settings"]["num_generations"] == 2
    rows = [(row, gap, 10) for row, gap in enumerate([0.0, 6.0, 3.0, 3.0, 2.0, 4.0])]
    fit = argparse.Namespace(row_sums=rows)
    # Both answers to a prompt sum to 6 in each prompt: between prompts nothing varies.
    assert interval_of_kl(fit, 2, seed=0) == pytest.approx((0.3, 0.3))
    low, high = interval_of_kl(fit, 1, seed=0)
    assert low < 0.25 and high > 0.35


# Teachers of all kinds


def changed_teacher(folder: Path, how: str) -> str:
    """The demo teacher with its tokenizer, and with other weights."""
    shutil.copytree(TEACHER, folder)
    model = loaded("teacher")
    with torch.no_grad():
        if how == "swapped":  # the rows of its tokens, as if the ids meant something else
            model.get_input_embeddings().weight.copy_(model.get_input_embeddings().weight.roll(3, 0))
        elif how == "nan":
            model.model.norm.weight.fill_(torch.nan)
        else:
            torch.manual_seed(0)
            model = Qwen3ForCausalLM(Qwen3Config.from_pretrained(folder))
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("how", "because"),
    [("swapped", "no likelier than guessing"), ("random", "guessing"), ("nan", "NaN or infinite log-probabilities")],
)
def test_a_teacher_with_other_weights_does_not_fit(look, tmp_path, how, because):
    seen = look(STUDENT, changed_teacher(tmp_path / how, how), rows=12)
    assert seen.fits["teacher"]["verdict"] == "does not fit"
    assert "VERDICT: the teacher does not fit." in seen.said and because in seen.said
    assert len(seen.rows) == 12  # and one can look at what it says
    assert (seen.rows.dropped_because == "nonfinite_teacher").all() == (how == "nan")


def test_the_student_as_its_own_teacher_has_nothing_to_learn(look):
    seen = look(STUDENT, STUDENT, rows=4)
    assert seen.fits["teacher"]["kl"] == 0 and "VERDICT: the teacher fits with doubts." in seen.said
    assert "nothing to learn" in seen.said


def test_adapters_are_read_as_student_and_as_teacher(look, tmp_path):
    student, merged_student = adapter_folder(tmp_path / "s", base="student", init_lora_weights=False, lora_alpha=1)
    teacher, merged_teacher = adapter_folder(tmp_path / "t", lora_alpha=1)
    adapted = look(student, teacher, rows=8, output_dir=tmp_path / "one")
    merged = look(merged_student, merged_teacher, rows=8, output_dir=tmp_path / "two")
    assert adapted.fits["teacher"]["kl"] == pytest.approx(merged.fits["teacher"]["kl"], abs=1e-3)
    assert adapted.fits["teacher"]["student"] != look(STUDENT, rows=8).fits["teacher"]["student"]
    itself = look(student, "self", rows=8)
    assert itself.rows.completion.tolist() == adapted.rows.completion.tolist()  # teachers judge the same answers
    assert itself.fits["teacher"]["kl"] > 0 and itself.run["teachers"]["teacher"]["name"].startswith("the student")


def test_each_of_two_teachers_has_its_own_verdict(look, tmp_path):
    rows = [{"prompt": f"{a}+{a}=", "teacher_id": "ab"[a % 4 == 0]} for a in range(40)]
    (tmp_path / "two.jsonl").write_text("\n".join(map(json.dumps, rows)))
    seen = look(STUDENT, f"a={TEACHER}", f"b={STUDENT}", prompts="two.jsonl", rows=16)
    assert (seen.rows.teacher == "a").sum() == (seen.rows.teacher == "b").sum() == 8
    assert [seen.fits[name]["verdict"] for name in "ab"] == ["fits", "fits with doubts"]
    assert "VERDICT: teacher a fits." in seen.said and "VERDICT: teacher b fits with doubts." in seen.said


def test_a_teacher_that_expects_another_chat_template_parts_at_once(look, tmp_path):
    folders = []
    for name, template in (("student", "{{ m['content'] }}"), ("teacher", "{{ m['content'][::-1] }}")):
        folder = tmp_path / name
        shutil.copytree(model_path(name), folder)
        (folder / "chat_template.jinja").write_text("{% for m in messages %}" + template + "{% endfor %}")
        folders.append(str(folder))
    chats = {"rows": 12, "prompt_as_chat": True}
    same = look(*folders, **chats)
    assert same.rows.prompt.str.endswith("=").all() and same.fits["teacher"]["verdict"] == "fits"
    other = look(*folders, **chats, teacher_chat_template="own")
    assert other.rows.prompt.tolist() == same.rows.prompt.tolist()  # the student still reads its own
    assert "They part at once" in other.said and other.fits["teacher"]["first"] > same.fits["teacher"]["first"] + 1


def test_a_text_file_has_a_prompt_a_line(look, tmp_path):
    (tmp_path / "prompts.txt").write_text("12+34=\n5+6=\n7+8=\n")
    assert sorted(look(prompts="prompts.txt").rows.prompt) == ["12+34=", "5+6=", "7+8="]


# What is refused, before weights are loaded


def without_weights(folder: Path, name: str) -> str:
    shutil.copytree(model_path(name), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return str(folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"student": "nowhere"}, "'nowhere' could not be loaded: it is neither a local folder"),
        ({"teachers": ["nowhere"]}, "'nowhere' could not be loaded"),
        ({"teachers": ["self"]}, "this student has none"),
        ({"teachers": [TEACHER, TEACHER]}, "several teachers need names. Give each as NAME=DIR"),
        ({"teachers": [f"a={TEACHER}", f"a={TEACHER}"]}, "two teachers have one name"),
        ({"teachers": [f"a={TEACHER}", f"b={TEACHER}"]}, "teacher_column='teacher_id' is no column"),
        ({"prompts": "nowhere.jsonl"}, "--prompts='nowhere.jsonl': no such file"),
        ({"prompts": "empty.jsonl"}, "--prompts='empty.jsonl' could not be read: it has no rows"),
        ({"prompt_column": "question"}, "prompt_column='question' is no column of the dataset, which has: prompt"),
        ({"split": "test"}, "--split test is no split"),
        ({"prompt_as_chat": True}, "has no chat template"),
        ({"max_completion_length": 128}, "leaves no room for a prompt"),
        ({"max_completion_length": 121}, "long.jsonl row 1: the prompt has 9 tokens, and 7 fit"),
        ({"max_completion_length": 121}, "lower max_completion_length, or draw other rows (--seed)."),
        ({"method": "fier"}, "Did you mean 'fire'?"),
        ({"rows": -1}, "--rows -1: give at least 0."),
        ({"output_dir": "taken"}, "--output_dir taken holds something else"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence_before_weights_are_loaded(look, tmp_path, options, said):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "long.jsonl").write_text('{"prompt": "1+2="}\n{"prompt": "1234+567="}\n')
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    if options.get("max_completion_length"):
        options = {**options, "prompts": "long.jsonl"}
    student, teachers = without_weights(tmp_path / "s", "student"), [without_weights(tmp_path / "t", "teacher")]
    options = {"student": student, "teachers": teachers, **options}
    before = listed(tmp_path)
    with pytest.raises(ValueError) as refusal:
        look(options.pop("student"), *options.pop("teachers"), **options)
    assert said in str(refusal.value)
    assert listed(tmp_path) == before and not (tmp_path / "outputs").exists()


def test_another_tokenizer_is_refused_before_weights_are_loaded(look, tmp_path):
    teacher = without_weights(tmp_path / "t", "teacher")
    tokenizer = json.loads((tmp_path / "t" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["3"], vocabulary["7"] = vocabulary["7"], vocabulary["3"]
    (tmp_path / "t" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="is '3' to the student and '7' to the teacher"):
        look(STUDENT, teacher)


@pytest.mark.parametrize("missing", ["student", "teacher", "prompts"])
def test_a_pair_without_one_of_its_parts_is_refused(missing):
    given = {"--student": STUDENT, "--teacher": TEACHER, "--prompts": "x"}
    del given[f"--{missing}"]
    with pytest.raises(ValueError, match=f"^--{missing} missing: a look at a pair needs"):
        pair.sample_pair(asked(*(word for item in given.items() for word in item)))


def test_broken_weights_are_refused_in_a_sentence(look, tmp_path):
    nan = changed_teacher(tmp_path / "nan", "nan")
    with pytest.raises(ValueError, match="The student has NaN or infinite values"):
        look(nan, TEACHER, rows=4)
    assert json.loads(next(tmp_path.glob("outputs/*/run.json")).read_text())["status"] == "failed"
    weights = tmp_path / "nan" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="SafetensorError"):
        look(STUDENT, nan, rows=4, output_dir=tmp_path / "two")
