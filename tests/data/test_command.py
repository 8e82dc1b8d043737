"""`fire-opd data` as a user runs it: the scripts, the check, what is refused, and every command of its page."""

import importlib.machinery
import json
import re
import shlex
import sys
import time
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, load_dataset
from support.inspections import preflight_table
from support.prompt_sets import chat_model, deepmath, eurus, words, written

import fire_opd_trl
from fire_opd_trl import cli
from fire_opd_trl.data import command
from fire_opd_trl.preflight import loading, packaged


PAGE = (Path(fire_opd_trl.__file__).parents[1] / "docs" / "data.md").read_text()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*argv, code=0):
    """Run `fire-opd data` in this process."""
    assert cli.main(["data", *map(str, argv)]) == code


def rows_of(path) -> list[dict]:
    return (
        Dataset.from_parquet(str(path)).to_list()
        if str(path).endswith("parquet")
        else [*map(json.loads, Path(path).open())]
    )


@pytest.mark.parametrize("streaming", [[], ["--streaming"]], ids=["table", "stream"])
@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".csv"])
def test_deepmath_becomes_prompts_and_says_what_it_left_out(here, capsys, ending, streaming):
    rows = deepmath(
        40, row3={"question": " "}, row7={"question": deepmath()[2]["question"]}, row6={"difficulty": None}
    )
    source = written(rows, here / f"upstream{ending}")
    run("deepmath", "--source", source, "--output", "out/prompts.jsonl", *streaming)
    kept = [row for row in (2, *range(10, 40)) if row % 4 > 1]
    made = rows_of("out/prompts.jsonl")
    assert [row["answer"] for row in made] == [str(row) for row in kept]
    assert made[0] == {
        "prompt": [{"role": "user", "content": f"{words(2)} n=2"}],
        "answer": "2", "difficulty": 6.0, "topic": "Mathematics -> Algebra",
    }  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        f"out/prompts.jsonl: {len(kept)} of 40 rows",
        "       21 left out: the difficulty is below 6, or not known",
        "        1 left out: there is no question",
        "        1 left out: the prompt of an earlier row",
    ]


def test_deepmath_gives_the_teacher_a_solution_and_draws_rows_with_a_seed(here, capsys):
    source = written(deepmath(40, row5={"r1_solution_2": "thinking</think> "}), here / "upstream.parquet")
    given = [
        "deepmath",
        "--source",
        source,
        "--min_difficulty",
        "5.5",
        "--teacher_prompt",
        "r1_solution_2",
        "--rows",
        "7",
    ]
    run(*given, "--output", "a.parquet", "--instruction", "In a box.", "--hint", "{question} | {solution} | {x}")
    run(*given, "--output", "b.parquet", "--instruction", "In a box.", "--hint", "{question} | {solution} | {x}")
    made = rows_of("a.parquet")
    assert len(made) == 7 and made == rows_of("b.parquet")
    question, answer = made[0]["prompt"][0]["content"], made[0]["answer"]
    assert question == f"{words(int(answer))} n={answer}\nIn a box."
    (told,) = made[0]["teacher_prompt"]
    assert told["content"] == f"{words(int(answer))} n={answer} | The answer is {answer}. | {{x}}"
    shown = capsys.readouterr().out
    assert "1 left out: there is no solution in r1_solution_2" in shown and "left out: not drawn (--rows)" in shown


def test_sources_are_mixed_for_their_teachers(here, capsys):
    written(deepmath(40, row3={"question": ""}), here / "math.csv")
    written(eurus(8), here / "code.parquet")
    given = ["multi-teacher", "--source", "math=math.csv", "code=code.parquet", "--prompt_column", "math=question",
             "--answer_column", "math=final_answer", "code=reward_model.ground_truth", "--weight", "math=2",
             "--dataset_filter", "math=difficulty >= 5.5", "--instruction", "code=In Python."]  # fmt: skip
    run(*given, "--output", "out.jsonl")
    made = rows_of("out.jsonl")
    assert [row["teacher_id"] for row in made] == [*["math", "code", "math"] * 8, "math"]
    assert {row["answer"] for row in made if row["teacher_id"] == "code"} == {f'{{"inputs": [{n}]}}' for n in range(8)}
    assert (
        re.fullmatch(r"Write a program\. .*\nIn Python\.", made[1]["prompt"][0]["content"])
        and len(made[1]["prompt"]) == 1
    )
    shown = capsys.readouterr().out
    assert "out.jsonl: 25 of 48 rows" in shown and "10 left out: math, not difficulty >= 5.5" in shown
    assert "1 left out: math, there is no prompt" in shown and "12 left out: math, beyond its part" in shown
    run(*given, "--output", "again.jsonl", "--streaming")
    assert rows_of("again.jsonl") == made


def test_the_check_ends_with_its_exit_code(here, capsys):
    good = [{"prompt": [{"role": "user", "content": words(n)}]} for n in range(5)]
    written(good, here / "good.jsonl")
    run("check", "good.jsonl")
    assert "no faults, 2 warnings." in capsys.readouterr().out  # no student, no evaluation problems
    (here / "bad.jsonl").write_text("\n".join(map(json.dumps, [*good, {"prompt": None}, good[0]])))
    run("check", "bad.jsonl", code=1)
    assert "1 fault, 3 warnings. --output FILE writes the rows that pass." in capsys.readouterr().out
    run("check", "bad.jsonl", "--output", "clean.parquet", "--streaming")
    assert rows_of("clean.parquet") == good
    shown = capsys.readouterr().out.splitlines()
    assert shown[-3:] == [
        "clean.parquet: 5 of 7 rows",
        "        1 left out: malformed",
        "        1 left out: the prompt of an earlier row",
    ]
    run("check", "bad.jsonl", "--rows", "5")
    (here / "none.jsonl").write_text('{"prompt": ""}')
    run("check", "none.jsonl", "--output", "none.parquet", code=1)
    assert "none.parquet is not written: no row passes." in capsys.readouterr().out
    assert not (here / "none.parquet").exists()


def test_a_csv_with_another_column_becomes_chats(here, capsys):
    written([{"question": "12+3", "level": n} for n in range(4)], here / "mine.csv")
    given = ["--prompt_column", "question", "--prompt_as_chat", "--dataset_filter", "level >= 2"]
    run("check", "mine.csv", *given, "--student", chat_model(here / "student"), "--output", "mine.jsonl")
    assert rows_of("mine.jsonl") == [{"prompt": [{"role": "user", "content": "12+3"}], "level": 2}]
    said = capsys.readouterr().out
    assert "row 0 to the student: 5 tokens, '12+3='" in said
    assert "columns question, level" in said and "the trainer reads `question` (the student's prompt)" in said
    assert "needs no prompt_column=question any more" in said


HELP = ["--help"]
THERE = ["check", "there.jsonl"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["chek"], "there is no command 'chek'. Did you mean 'check'?"),
        (["check", "their.jsonl"], "FILE='their.jsonl': no such file or folder"),
        (["check", "gone/"], "FILE='gone/': no such file or folder"),
        ([*THERE, "--max_prompt_length", "many"], "--max_prompt_length: 'many' is no whole number above 0"),
        ([*THERE, "--overlap", "1.5"], "--overlap: '1.5' is no share"),
        ([*THERE, "--chat_template_kwargs", "{a: 1}"], "'{a: 1}' is no JSON object"),
        ([*THERE, "--maximal", "5"], "unrecognized arguments: --maximal 5"),
        (["deepmath", "--output", "there.jsonl"], "there.jsonl is there already. --overwrite replaces it"),
        ([*THERE, "--output", "there.jsonl", "--overwrite"], "would replace a file that is read (there.jsonl)"),
        (["check", ".", "--output", "there.jsonl", "--overwrite"], "would replace a file that is read (.)"),
        (["deepmath", "--output", "there.jsonl", "--source", "there.jsonl", "--overwrite"], "would replace"),
        (["multi-teacher", "--output", "there.jsonl", "--source", "a=there.jsonl", "--overwrite"], "would replace"),
        ([*THERE, "--output", "a.csv"], "give a file that ends in .jsonl or .parquet"),
        (
            [*THERE, "--teacher_column", "prompt"],
            "--teacher_column prompt, --teacher_prompt_column teacher_prompt and ",
        ),
        ([*THERE, "--answer_column", "teacher_id"], "--answer_column teacher_id must be three columns"),
        ([*THERE, "--drop_near_duplicates"], "has no effect without --output"),
        ([*THERE, "--teacher", "a"], "--teacher has no effect without --student"),
        ([*THERE, "--max_prompt_length", "5"], "name it with --student"),
        (
            [*THERE, "--student", "s", "--teacher", "a", "b"],
            "--teacher a: of several teachers give each as NAME=MODEL",
        ),
        ([*THERE, "--student", "s", "--teacher", "a=x", "a=y"], "--teacher a=y: a is there twice"),
        ([*THERE, "--against", "gone.jsonl"], "--against='gone.jsonl': no such file"),
        ([*THERE, "--against", "maths500"], "There is no task 'maths500'. Did you mean 'math500'?"),
        ([*THERE, "--output", "there.jsonl/a.jsonl"], "nothing can be written in its folder (Not a directory)"),
        ([*THERE, "--output", "/proc/a.jsonl"], "nothing can be written in its folder"),
        (["deepmath"], "required: --output"),
        (["deepmath", "--output", "a.txt"], "give a file that ends in"),
        (["deepmath", "--output", "a.jsonl", "--rows", "0"], "--rows 0: give at least 1"),
        (["deepmath", "--output", "a.jsonl", "--min_difficulty", "nan"], "--min_difficulty nan: give a number"),
        (["deepmath", "--output", "a.jsonl", "--teacher_prompt", ""], "--teacher_prompt: invalid choice: ''"),
        (["deepmath", "--output", "a.jsonl", "--teacher_prompt", "difficulty"], "invalid choice: 'difficulty'"),
        (["deepmath", "--output", "a.jsonl", "--hint", "{solutoin}"], "there is no {solution} in it"),
        (["deepmath", "--output", "a.jsonl", "--source", "ther.jsonl"], "Did you mean 'there.jsonl'?"),
        (["multi-teacher", "--output", "a.jsonl", "--source", "there.jsonl"], "give it as NAME=VALUE"),
        (["multi-teacher", "--output", "a.jsonl", "--source", "a=b=c.csv"], "--source a='b=c.csv': no such file"),
        (
            ["multi-teacher", "--output", "a.jsonl", "--weight", "law=2"],
            "there is no source 'law'. Sources: math, code",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_anything_is_loaded(here, capsys, monkeypatch, argv, said):
    written([{"prompt": "a"}], here / "there.jsonl")
    monkeypatch.setattr(loading, "load_dataset", pytest.fail)
    started = time.monotonic()
    try:
        code = cli.main(["data", *argv])
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code == 2 and said in error and len(error.splitlines()) <= 12 and "Traceback" not in error
    assert len([line for line in error.splitlines() if "error:" in line]) == 1 and time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([*THERE, "--prompt_column", "question"], "prompt_column='question' is no column"),
        ([*THERE, "--dataset_filter", "level > 3"], "'level' is no column"),
        ([*THERE, "--split", "test"], "--split test is no split of there.jsonl, which has: train"),
        (
            ["deepmath", "--output", "a.jsonl", "--source", "there.jsonl"],
            "--source there.jsonl: 'question' is no column",
        ),
        (
            ["multi-teacher", "--output", "a.jsonl", "--source", "m=there.jsonl", "--prompt_column", "m=q"],
            "'q' is no column",
        ),
        (["check", "org/name"], "FILE='org/name' could not be loaded"),
        (["check", "there.jsonl", "--student", "org/name", "--output", "a/b/c.jsonl"], "no tokenizer could be loaded"),
        (
            ["multi-teacher", "--output", "a.jsonl", "--source", "m=there.jsonl", "--answer_column", "m=prompt.x"],
            "--answer_column m=prompt.x: no row has a value there",
        ),
        (
            ["multi-teacher", "--output", "a.jsonl", "--source", "m=there.jsonl", "--prompt_column", "m=prompt.x"],
            "no row is left. Read: 1. Left out: m, there is no prompt (1).",
        ),
        (
            "multi-teacher --output a.jsonl --source m=there.jsonl --dataset_filter m=prompt==b --streaming".split(),
            "--dataset_filter m=prompt==b: no row of there.jsonl fulfils it",
        ),
        (["check", "latin.jsonl"], "latin.jsonl line 2 is not UTF-8: invalid continuation byte at byte 11"),
        (
            ["multi-teacher", "--output", "a.jsonl", "--source", "m=latin.jsonl"],
            "latin.jsonl line 2 is not UTF-8: invalid continuation byte at byte 11",
        ),
        (["check", "folder"], "FILE='folder' could not be read: a text in the column 'prompt' is not UTF-8"),
        (["check", "broken.jsonl"], "broken.jsonl line 1 is not JSON"),
        (["check", "broken.jsonl", "--streaming"], "broken.jsonl line 1 is not JSON"),
        (["check", ""], "FILE='': no such file or folder"),
    ],
)
def test_what_the_rows_are_not_is_said_in_one_line(here, capsys, argv, said):
    written([{"prompt": "a"}], here / "there.jsonl")
    (here / "broken.jsonl").write_text('{"prompt": ')
    (here / "folder").mkdir()
    for latin in ("latin.jsonl", "folder/latin.jsonl"):
        (here / latin).write_text('{"prompt": "a"}\n{"prompt":"\xe9 b"}\n', encoding="latin-1")
    assert cli.main(["data", *argv]) == 2
    assert said in capsys.readouterr().err and not list(here.glob("a*"))


def test_help_is_there_at_once_and_fits_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for argv in (HELP, ["check", *HELP], ["deepmath", *HELP], ["multi-teacher", *HELP]):
        started = time.monotonic()
        with pytest.raises(SystemExit, match="0"):
            command.main(argv)
        assert time.monotonic() - started < 1
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 82
    assert cli.COMMANDS["data"][0] == "data.command"


def test_the_folder_of_scripts_does_not_hide_the_library_of_its_name():
    """`python examples/train_fire.py` looks for `datasets` in examples/ first: a package there would be taken."""
    found = importlib.machinery.PathFinder.find_spec(
        "datasets", [str(packaged.packaged_folder("examples")), *sys.path]
    )
    assert found.origin == datasets.__file__


# The page


def commands_of_the_page() -> list[list[str]]:
    """The words of each command of docs/data.md, which is one line."""
    lines = "".join(re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)).splitlines()
    return [shlex.split(line, comments=True) for line in lines]


def test_every_command_of_the_page_runs_in_its_order(here, capsys, monkeypatch):
    """The Hub is stood in for by rows with the columns of its sets, and its models by the embedded ones."""
    chat = {"Qwen/Qwen3-4B": chat_model(here / "chat"), "Qwen/Qwen3-0.6B": chat_model(here / "small")}
    upstream, code = written(deepmath(160), here / "upstream.parquet"), written(eurus(20), here / "eurus.parquet")
    original = loading.load_named
    monkeypatch.setattr(loading, "load_named", lambda name, *rest: original(
        str(upstream) if name == "zwhe99/DeepMath-103K" else name, *rest))  # fmt: skip
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: load_dataset("parquet", data_files=str(code)))
    mine = [
        {"prompt": [{"role": "user", "content": f"{n}+{n + 1}="}], "answer": str(2 * n + 1)} for n in range(10, 74)
    ]
    (here / "benchmarks").mkdir()
    written([{"problem": "Which sum is it?", "answer": "1"}], here / "benchmarks" / "math500.jsonl")
    written(mine, here / "mine.jsonl")
    written([{"question": f"{n}+7="} for n in range(20)], here / "mine.csv")
    written([{"text": f"Is {n} lawful?"} for n in range(10)], here / "law.jsonl")
    ran = []
    for words_ in commands_of_the_page():
        words_ = [re.sub("|".join(chat), lambda found: chat[found[0]], word) for word in words_]
        if words_[:2] == ["fire-opd", "data"]:
            (here / "prompts" / "mine.jsonl").unlink(missing_ok=True) if "multi-teacher" in words_ else None
            with pytest.warns() if "--against" in words_ else monkeypatch.context():
                assert cli.main(words_[1:]) == 0, words_
        elif words_[1] == "preflight":
            sizes = ["--gradient_accumulation_steps", "4", "--max_completion_length", "33"]
            code_, table = preflight_table(capsys, *words_[2:], *sizes)
            assert code_ == 0, table
        elif words_[1] == "train":
            parser = packaged.load_module(packaged.packaged_folder("examples") / "train_fire.py").make_parser()
            assert parser.parse_known_args(words_[2:])[1] == []
        else:
            script = packaged.packaged_folder("examples") / Path(words_[1]).relative_to("examples")
            with pytest.raises(SystemExit, match="0"):
                packaged.load_module(script).main(words_[2:])
        ran.append(" ".join(words_[:3]))
    assert len(ran) == 12 and (here / "prompts" / "math_and_code.jsonl").is_file()


def test_the_page_names_every_kind_of_finding():
    source = (Path(command.__file__).parent / "check.py").read_text() + (
        Path(command.__file__).parent / "prompts.py"
    ).read_text()
    kinds = set(re.findall(r'(?:record|rows)\(\s*"([\w -]+)",', source)) | set(
        re.findall(r'setdefault\("([\w ]+)"', source)
    )
    table = PAGE.split("| subject |")[1].split("\n\n")[0]
    assert len(kinds) > 10 and [kind for kind in kinds - {"file", "teacher_prompt"} if f"`{kind}`" not in table] == []


def test_a_difficulty_may_be_a_text_and_one_that_is_no_number_is_not_known(here, capsys):
    rows = [{**row, "difficulty": text} for row, text in zip(deepmath(3), ("7.5", "hard", "NaN"), strict=True)]
    run("deepmath", "--source", written(rows, here / "upstream.jsonl"), "--output", "out.jsonl")
    assert [row["difficulty"] for row in rows_of("out.jsonl")] == [7.5]
    assert "2 left out: the difficulty is below 6, or not known" in capsys.readouterr().out
