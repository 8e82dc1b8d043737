"""A stream's rows are checked as they are read, and every rank reads all of them."""

import json

import pytest
from datasets import IterableDataset
from support.inspections import ROUTED, TWO, asked, looked, said, with_template
from support.layouts import assert_same, in_this_process, layout
from support.trainers import sampling_trainer


def stream_of(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


PROMPTS = [{"prompt": "1" * length} for length in (30, 31, 5)]
TOO_LONG = "train_dataset row 1: the prompt has 31 tokens, and 30 fit"


def test_an_overlong_prompt_of_a_stream_is_refused_when_it_is_read():
    checked = looked(rows=stream_of(PROMPTS), max_prompt_length=30)
    rows = iter(checked.train_dataset)
    assert next(rows) == PROMPTS[0]
    with pytest.raises(ValueError, match=TOO_LONG):
        next(rows)


@pytest.mark.parametrize("evaluated", [False, True])
def test_overlong_prompts_of_a_stream_are_left_out_and_counted(evaluated):
    streams = {"evaluated": {"hard": stream_of(PROMPTS)}} if evaluated else {"rows": stream_of(PROMPTS)}
    checked = looked(**streams, max_prompt_length=30, overlong_prompts="drop")
    dataset = checked.eval_dataset["hard"] if evaluated else checked.train_dataset
    name = "eval_dataset 'hard'" if evaluated else "train_dataset"
    with pytest.warns(UserWarning, match=rf"{name} row 1 is left out, .* longer than 30 tokens.* 1 of 2 rows so far"):
        assert list(dataset) == [PROMPTS[0], PROMPTS[2]]
    assert checked.left_out[name] == 1
    assert len(list(dataset)) == 2 and checked.left_out[name] == 2  # counted again; said again at the tenth row


def test_a_prompt_beyond_the_context_of_its_teacher_is_overlong_too():
    rows = [{**ROUTED[0], "teacher_prompt": "1" * 100}, ROUTED[1]]
    with pytest.raises(ValueError, match="row 0: the prompt of teacher 'a' has 100 tokens, and 95 fit"):
        next(iter(looked(TWO, stream_of(rows)).train_dataset))


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "", "teacher_id": "a"}, "train_dataset row 1: `prompt` is empty"),
        ({"prompt": "1=", "teacher_id": "c"}, "train_dataset row 1: `teacher_id` is 'c'"),
        ({**ROUTED[0], "teacher_prompt": []}, r"train_dataset row 1: `teacher_prompt` is \[\]"),
    ],
)
def test_a_row_of_a_stream_is_refused_as_that_of_a_dataset_is(row, sentence):
    with pytest.raises(ValueError, match=sentence):
        list(looked(TWO, stream_of([ROUTED[0], row])).train_dataset)


def test_a_template_that_cannot_render_a_row_of_a_stream_names_the_row():
    tokenizer = with_template()
    tokenizer.chat_template = "{% if messages|length > 1 %}{{ raise_exception('one message alone') }}{% endif %}2="
    rows = stream_of([{"prompt": asked("1")}, {"prompt": asked("1") + asked("2")}])
    with pytest.raises(ValueError, match="train_dataset row 1: the chat template cannot render.*one message alone"):
        list(looked(rows=rows, tokenizer=tokenizer).train_dataset)


def test_a_stream_says_that_it_is_checked_as_it_is_read():
    assert said(looked(TWO, stream_of(ROUTED)))["dataset"] == (
        "ok",
        "a stream: every row is checked when it is read",
    )


@pytest.mark.parametrize(("lengths", "left_out"), [([9] * 8, 8), ([5] * 3, 0)])
@pytest.mark.filterwarnings("ignore:train_dataset row")
def test_a_stream_that_ends_before_the_first_step_is_no_success(lengths, left_out, tmp_path):
    stream = stream_of([{"prompt": "1" * length} for length in lengths])
    config = {"max_prompt_length": 5, "overlong_prompts": "drop", "preflight": False}
    sentence = f"train_dataset ended before .* fewer than the 8 prompts of a window, beside {left_out} rows"
    with pytest.raises(ValueError, match=sentence):
        sampling_trainer(tmp_path, dataset=stream, **config).train()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "failed"


def test_a_resumed_run_may_find_its_stream_at_the_end(tmp_path):
    for rows, checkpoint in (([{"prompt": "1+1="}] * 8, None), ([], str(tmp_path / "checkpoint-1"))):
        trainer = sampling_trainer(tmp_path, dataset=stream_of(rows), preflight=False, save_steps=1)
        trainer.train(resume_from_checkpoint=checkpoint)
        assert trainer.state.global_step == 1


@pytest.mark.launch
def test_a_stream_of_uneven_files_trains_two_ranks_like_the_dataset_that_it_holds(on_two_ranks, tmp_path):
    """Left to accelerate, each rank would read files of its own, and the long prompts with them."""
    case = {"method": "fire", "rows": 64, "max_steps": 4}
    one = in_this_process(layout(32, 1, case), tmp_path)
    two = on_two_ranks("ddp", layout(4, 4, {**case, "config": {"overlong_prompts": "drop"}, "stream": [50, 14]}))
    left_out = [log.pop("fire/left_out") for log in two["metrics"]]
    assert left_out == sorted(left_out) and left_out[0] >= 1 and left_out[-1] in (3, 4)  # 4 windows of 32: two epochs
    assert_same(one, two)


@pytest.mark.launch
def test_what_one_rank_cannot_use_stops_both_alike(pairs):
    pairs("ddp").run("support.works:refusals_of_one_rank", timeout=60)
