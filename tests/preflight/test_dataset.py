"""What is wrong with a dataset, with the row."""

import sqlite3

import pytest
from datasets import Dataset, disable_caching, enable_caching
from support.inspections import ROUTED, TWO, fault, looked, said, with_template

from fire_opd_trl.preflight import dataset


def test_prompts_that_an_environment_makes_are_checked_as_they_are_sampled():
    checked = looked(TWO, others={"environment_factory": object})  # rows of the dataset name no teacher
    assert said(checked)["dataset"] == (
        "ok",
        "prompts that an environment makes: routes and forms are checked as rows are sampled, lengths are not",
    )


def test_a_dataset_for_evaluation_is_checked_too():
    bad = Dataset.from_list([{"prompt": "1+1="}, {"prompt": ""}])
    for evaluated, name in ((bad, "eval_dataset"), ({"hard": bad}, "eval_dataset 'hard'")):
        assert fault(looked(evaluated=evaluated)) == (
            f"{name} row 1: `prompt` is empty. Give a string or a list of messages, or remove the row."
        )


def test_a_dataset_without_the_column_is_refused():
    message = "train_dataset row 0: `who` is None. Each row names one of: a, b."
    assert fault(looked(TWO, ROUTED, teacher_column="who")) == message


def test_longer_prompts_are_counted_where_they_are_left_out():
    rows = [{"prompt": "1" * length} for length in (30, 31, 5)]
    with pytest.warns(UserWarning, match="train_dataset: 1 of 3 rows left out, their prompts are longer than"):
        checked = looked(rows=rows, max_prompt_length=30, overlong_prompts="drop")
    assert said(checked)["dataset"][1] == (
        "3 rows, 1 left out as too long, the longest prompt has 30 tokens, completions up to 33"
    )
    assert [row["prompt"] for row in checked.train_dataset] == ["1" * 30, "1" * 5]
    assert fault(looked(rows=rows, max_prompt_length=30)) == (
        "train_dataset row 1: the prompt has 31 tokens, and 30 fit (max_prompt_length, or the models' context beside "
        "max_completion_length). Prompts are never cut: shorten it, lower max_completion_length, or set "
        "overlong_prompts='drop'."
    )


# Many rows: read once, by several processes, and found again in the cache of `datasets`


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Small numbers in place of those at which a pool is worth it, and a cache of its own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(dataset, "POOL_ROWS", 20)
    monkeypatch.setattr(dataset, "ROWS_OF_A_PROCESS", 15)
    monkeypatch.setattr(dataset, "BATCH", 4)
    return tmp_path


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.arrow"))


THIRTY = [{"prompt": "1" * (1 + row % 7), "teacher_id": "ab"[row % 2], "teacher_prompt": None} for row in range(30)]
THIRTY[3]["teacher_prompt"] = "1" * 9
MANY = {"max_prompt_length": 5, "overlong_prompts": "drop"}


def test_many_rows_are_read_in_this_process_where_a_tool_cannot_be_pickled(many):
    class Client:
        def __init__(self):
            self.store = sqlite3.connect(":memory:")

        def search(self, text: str) -> str:
            """
            Searches.

            Args:
                text: What for.

            Returns:
                What was found.
            """
            return text

    checked = looked(rows=THIRTY, others={"tools": [Client().search]})
    assert checked.faults == [] and said(checked)["dataset"][1].startswith("30 rows") and files(many) == []


@pytest.mark.filterwarnings("ignore:train_dataset")
def test_a_pool_finds_what_one_process_finds_and_a_second_run_reads_nothing(many, monkeypatch):
    pooled = looked(TWO, THIRTY, **MANY)
    assert len(files(many)) == 2  # two processes, 15 rows each
    monkeypatch.setattr(dataset, "measure", pytest.fail)
    again = looked(TWO, THIRTY, **MANY)
    assert len(files(many)) == 2
    monkeypatch.undo()
    alone = looked(TWO, THIRTY, **MANY)
    # Of 7 rows 2 are longer than 5; row 3 is read as 9 tokens by its teacher, whose limit is its context.
    assert said(alone)["dataset"][1].startswith("30 rows, 8 left out as too long, the longest prompt has 5 tokens")
    for checked in (pooled, again):
        assert checked.findings == alone.findings and checked.example == alone.example
        assert checked.train_dataset.to_list() == alone.train_dataset.to_list()


def test_the_first_wrong_row_of_a_pool_is_named(many):
    rows = [*THIRTY[:28], {**THIRTY[28], "prompt": ""}, {**THIRTY[29], "teacher_id": "c"}]
    assert fault(looked(TWO, rows)).startswith("train_dataset row 28: `prompt` is empty.")


def test_what_the_numbers_depend_on_has_files_of_its_own(many):
    """The limits do not: another max_prompt_length finds the same numbers."""
    rows = [{"prompt": [{"role": "user", "content": "1"}]}] * 30
    tokenizer, other = with_template(), with_template()
    other.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}=="
    for number, (change, mine) in enumerate(
        [
            ({}, tokenizer),
            ({}, other),
            ({"chat_template_kwargs": {"enable_thinking": False}}, tokenizer),
            ({"teacher_chat_template": other.chat_template}, tokenizer),
        ],
        start=1,
    ):
        looked(rows=rows, tokenizer=mine, **change)
        looked(rows=rows, tokenizer=with_template() if mine is tokenizer else other, max_prompt_length=9, **change)
        assert len(files(many)) == 2 * number, change
    looked(rows=rows[1:] + [{"prompt": [{"role": "user", "content": "2"}]}], tokenizer=tokenizer)
    assert len(files(many)) == 2 * 5


def test_few_rows_leave_no_file_and_a_folder_of_the_users_gets_none(many):
    looked(rows=THIRTY[:19])
    Dataset.from_list(THIRTY).save_to_disk(many / "mine")
    before = sorted((many / "mine").iterdir())
    assert not (many / "cache").exists()
    looked(rows=Dataset.load_from_disk(many / "mine"))
    assert sorted((many / "mine").iterdir()) == before and len(files(many / "cache")) == 2


def test_without_a_cache_the_rows_are_read_all_the_same(many):
    disable_caching()
    try:
        assert said(looked(rows=THIRTY))["dataset"][1].startswith("30 rows, the longest prompt has 7 tokens")
    finally:
        enable_caching()
    assert not (many / "cache").exists()


@pytest.mark.launch
def test_of_two_ranks_one_reads_the_rows_and_the_other_finds_the_numbers(pairs, tmp_path):
    pairs("ddp").run("support.works:checked_rows", str(tmp_path), timeout=60)
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["30 rows measured, 7", "0 rows measured, 7"]


def test_a_picture_may_stand_without_words():
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": ""}], "images": ["a.png"]}])
    reader = dataset.Reader(dataset.no_ids, None)
    arguments = {"overlong": "error", "columns": ("teacher_id", "teacher_prompt")}
    assert dataset.check_dataset(rows, "rows", student=reader, teachers={"teacher": reader}, **arguments)[1].rows == 1
