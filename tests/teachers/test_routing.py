"""Which row is whose."""

import re

import pytest
from datasets import Dataset, IterableDataset
from support.inspections import (
    ROUTED,
    STUDENT,
    TEACHER,
    TWO,
    fault,
    looked,
    said,
    settings,
)
from support.trainers import GOOD, sample_trainer

from fire_opd_trl import FiReOPDTrainer
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.preflight.inspection import check_inputs
from fire_opd_trl.refusals import chosen_method
from fire_opd_trl.teachers.routing import route_to_teachers
from fire_opd_trl.teachers.sources import teacher_sources


@pytest.mark.parametrize("name", [None, "Left", "centre"])
def test_f16_a_row_without_a_known_teacher_is_refused(tmp_path, name):
    teachers = {"left": model_path("teacher"), "right": model_path("teacher")}
    rows = [{**GOOD, "teacher_id": "left"}, {**GOOD, "teacher_id": name}]
    with pytest.raises(ValueError, match=f"row 1: `teacher_id` is {name!r}.* names one of: left, right"):
        sample_trainer(tmp_path, rows, teacher_model=teachers)


@pytest.mark.parametrize("name", [None, "A", "c"])
@pytest.mark.parametrize("column", ["teacher_id", "who"])
def test_a_row_that_names_no_teacher_is_refused_with_the_allowed_names(name, column):
    rows = [{"prompt": "1+1=", column: "a"}, {"prompt": "2+2=", column: name}]
    assert fault(looked(TWO, rows, teacher_column=column)) == (
        f"train_dataset row 1: `{column}` is {name!r}. Each row names one of: a, b."
    )


def test_rows_are_counted_for_each_teacher():
    rows = [{"prompt": "1+1=", "who": name} for name in "abbab"]
    assert said(looked(TWO, rows, teacher_column="who"))["routing"] == ("ok", "`who`: a 2, b 3")


def test_a_teacher_that_no_row_names_warns():
    rows = [{"prompt": "1+1=", "teacher_id": "b"}] * 3
    teachers = {**TWO, "c": TEACHER}
    assert said(looked(teachers, rows))["routing"] == ("warning", "`teacher_id`: a 0, b 3, c 0; no row names a, c")
    args = settings()
    sources, method = teacher_sources(teachers, STUDENT, args, False), chosen_method(None, args, rewarded=False)
    with pytest.warns(UserWarning, match=re.escape("routing: `teacher_id`: a 0, b 3, c 0; no row names a, c")):
        check_inputs(STUDENT, sources, args, method, Dataset.from_list(rows), None, None, {})


def test_a_stream_that_names_no_teacher_stops_where_it_is_sampled():
    rows = [{"prompt": "1+1=", "teacher_id": "b"}, {"prompt": "2+2=", "teacher_id": "c"}]
    assert route_to_teachers(rows[:1] * 2, ["a", "b"], ("teacher_id", "teacher_prompt"), "cpu").tolist() == [
        1,
        1,
    ]
    message = "window row 1: `teacher_id` is 'c'. Each row names one of: a, b."
    with pytest.raises(ValueError, match=re.escape("window row 0: `teacher_prompt` is empty")):
        route_to_teachers([{**rows[0], "teacher_prompt": ""}], ["a", "b"], ("teacher_id", "teacher_prompt"), "cpu")
    with pytest.raises(ValueError, match=re.escape(message)):
        route_to_teachers(rows, ["a", "b"], ("teacher_id", "teacher_prompt"), "cpu")


def test_a_wrongly_routed_stream_stops_training(tmp_path):
    stream = IterableDataset.from_generator(lambda: iter([ROUTED[0], {**ROUTED[1], "teacher_id": "c"}]))
    args = settings(per_device_train_batch_size=2, max_steps=1)
    args.output_dir = str(tmp_path)
    trainer = FiReOPDTrainer(STUDENT, TWO, args, stream)
    with pytest.raises(ValueError, match="train_dataset row 1: `teacher_id` is 'c'.* names one of: a, b"):
        trainer.train()
