"""
What is found before a weight is loaded: every fault once and all of them, the window in numbers, whose rows, where
teachers can be. No weight is read anywhere in this file.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
from datasets import Dataset, IterableDataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.methods import METHODS
from fire_opd_trl.preflight.findings import WIDTH, Checked
from fire_opd_trl.preflight.inspection import check_inputs, inspect_run
from fire_opd_trl.refusals import chosen_method
from fire_opd_trl.stages import World
from fire_opd_trl.teachers.placement import choose_placement
from fire_opd_trl.teachers.routing import route_to_teachers
from fire_opd_trl.teachers.sources import Source, teacher_sources
from fire_opd_trl.teachers.vocabulary import config_of


TEACHER, STUDENT = model_path("teacher"), model_path("student")
ROWS = [{"prompt": "12+34="}, {"prompt": "123+456="}]
TWO = {"a": TEACHER, "b": STUDENT}
ROUTED = [{"prompt": "12+34=", "teacher_id": "a"}, {"prompt": "123+456=", "teacher_id": "b"}]


def settings(**config) -> FiReOPDConfig:
    config = {"method": "opd", "max_completion_length": 33, "per_device_train_batch_size": 1, **config}
    return FiReOPDConfig("output", use_cpu=True, bf16=False, **config)


def looked(
    teacher=TEACHER, rows=ROWS, *, model=STUDENT, tokenizer=None, evaluated=None, recipe=None, others=(), **config
) -> Checked:
    """What the inspection says of a student, its teachers and rows."""
    args, others = settings(**({"method": "fire"} if recipe else {}), **config), dict(others)
    sources = teacher_sources(teacher, model, args, adapted="peft_config" in others)
    dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
    method = chosen_method(recipe, args, rewarded=False)
    return inspect_run(model, sources, args, method, dataset, evaluated, tokenizer, others)


def said(checked: Checked) -> dict[str, tuple[str, str]]:
    assert len({finding.subject for finding in checked.findings}) == len(checked.findings)
    return {finding.subject: (finding.outcome, finding.text) for finding in checked.findings}


def fault(checked: Checked) -> str:
    (only,) = checked.faults
    return only


def without_weights(folder: Path, name: str = "teacher", **changes) -> str:
    """Config and tokenizer of an embedded model, with other entries in the config."""
    shutil.copytree(model_path(name), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(folder)


def with_template():
    """The embedded tokenizer with a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}=;"
    return tokenizer


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# Nothing wrong


def test_of_good_input_nothing_is_wrong_and_all_is_said():
    findings = said(looked(TWO, ROUTED))
    assert {outcome for outcome, _ in findings.values()} == {"ok"}
    assert list(findings) == [
        "student", "teacher a", "teacher a, tokens", "teacher a, ends", "teacher b", "teacher b, tokens",
        "teacher b, ends", "dataset", "routing", "teacher a, prompt", "teacher b, prompt", "window", "work",
    ]  # fmt: skip
    texts = {subject: text for subject, (_, text) in findings.items()}
    # Embedding 16 x 128; a layer: 2 x 128 x 128 + 2 x 128 x 64 attention, 3 x 128 x 384, norms 2 x 128 + 2 x 64; 128.
    parameters = 16 * 128 + 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384 + 2 * 128 + 2 * 64) + 128
    assert parameters == 790_144
    assert texts["teacher a"] == (
        "Qwen3ForCausalLM, 790 k parameters in bfloat16 (1.58 MB), 16 tokens in 16 rows, context 128, ends with 1 "
        "'<eos>'; replicated"
    )
    assert texts["teacher a, tokens"] == "16 of the student's 16 ids mean the same to it"
    assert texts["teacher a, ends"] == "as the student: 1 '<eos>'"
    assert texts["dataset"] == "2 rows, the longest prompt has 8 tokens, completions up to 33"
    assert texts["routing"] == "`teacher_id`: a 1, b 1"


def test_the_table_has_short_lines_and_no_empty_text():
    for checked in (looked(TWO, ROUTED), looked({"a": TEACHER, "b": "nobody/nothing"}, ROUTED)):
        assert all(finding.text.strip() for finding in checked.findings)
        lines = checked.table().splitlines()
        assert max(map(len, lines)) <= WIDTH == 118
        heads = [line for line in lines if not line.startswith(" ")]
        assert [head.split("  ")[0] for head in heads] == [finding.subject for finding in checked.findings]
        assert " ".join(checked.table().split()) == " ".join(
            " ".join([f.subject, f.outcome, *f.text.split()]) for f in checked.findings
        )


def test_one_prompt_of_each_teacher_is_shown_as_each_model_sees_it():
    rows = [{**ROUTED[0], "teacher_prompt": "46;12+34="}, {**ROUTED[1], "teacher_prompt": None}]
    assert looked(TWO, rows).example == (
        "\na prompt as the student sees it: 6 tokens, '12+34='\n"
        "and as teacher a sees it:        9 tokens, '46;12+34='\n"
        "\na prompt as the student sees it: 8 tokens, '123+456='\n"
        "and as teacher b sees it:        the same tokens"
    )


def test_the_example_is_attributed_to_its_own_teacher_where_another_has_no_view():
    rows = [{**row, "prompt": asked(row["prompt"])} for row in ROUTED]
    checked = looked(TWO, rows, tokenizer=with_template(), teacher_chat_template={"a": "own"})
    assert [f.subject for f in checked.findings if f.outcome == "fault"] == ["teacher a, prompt"]
    assert "teacher a sees it" not in checked.example
    assert "'123+456==;'\nand as teacher b sees it:        the same tokens" in checked.example


def test_no_weight_is_read(tmp_path):
    student = without_weights(tmp_path / "s", "student")
    teachers = {"a": without_weights(tmp_path / "a"), "b": without_weights(tmp_path / "b")}
    assert looked(teachers, ROUTED, model=student).faults == []


def test_a_teacher_in_memory_says_what_is_not_known_of_it():
    teacher = AutoModelForCausalLM.from_config(config_of(TEACHER))
    teacher.config._name_or_path = ""
    findings = said(looked(teacher))
    assert findings["teacher, tokens"] == (
        "ok", "a module in memory, whose tokenizer is not known: only its number of token rows was compared"
    )  # fmt: skip
    text = findings["teacher"][1]
    assert "790 k parameters" in text and text.endswith("; replicated")
    assert "0 tokens" not in text and "ends with ;" not in text  # neither is known


def test_a_stream_is_checked_as_it_is_sampled():
    stream = IterableDataset.from_generator(lambda: iter([{"prompt": "1+1=", "teacher_id": "neither"}]))
    assert said(looked(TWO, stream))["dataset"] == (
        "ok",
        "a stream, or prompts that an environment makes: routes and forms are checked as rows are sampled, lengths "
        "are not",
    )


# Everything wrong


def test_every_fault_is_reported_once_and_none_hides_another(tmp_path):
    small = without_weights(tmp_path / "small", vocab_size=12)
    teachers = {"gone": "nobody/nothing", "small": small, "right": TEACHER}
    rows = [{"prompt": asked("1+1="), "teacher_id": name} for name in ("right", "wrong")]
    config = {"teacher_chat_template": {"right": "own"}, "gradient_accumulation_steps": 4}
    checked = looked(teachers, rows, tokenizer=with_template(), **config)
    faults = {finding.subject: finding.text for finding in checked.findings if finding.outcome == "fault"}
    assert list(faults) == ["teacher gone", "teacher small", "teacher right, prompt", "dataset", "window"]
    assert len(set(checked.faults)) == 5
    assert faults["teacher gone"] == (
        "'nobody/nothing' could not be loaded: it is neither a local folder with a config.json nor a model that can "
        "be reached on the Hub. HF_HUB_OFFLINE is set: only local folders and models in the cache can be loaded."
    )
    assert faults["teacher small"] == (
        "teacher_model 'small' has 12 token rows, too few for the student's id 15 (';'). Use a teacher of the same "
        "tokenizer."
    )
    assert faults["dataset"] == (
        "train_dataset row 1: `teacher_id` is 'wrong'. Each row names one of: gone, small, right."
    )
    assert faults["window"] == (
        "train_dataset has 2 rows, and one window takes 4 prompts. Lower gradient_accumulation_steps or "
        "per_device_train_batch_size, or give more rows."
    )


def test_without_a_student_nothing_else_can_be_said():
    findings = said(looked(model="nobody/nothing"))
    assert list(findings) == ["student", "the rest"] and findings["student"][0] == "fault"
    assert findings["the rest"] == ("warning", "not checked, since nothing is known of the student")


def test_the_trainer_raises_all_faults_in_one_message():
    args = settings(teacher_chat_template={"teacher": "own"}, gradient_accumulation_steps=4)
    sources = teacher_sources(TEACHER, STUDENT, args, adapted=False)
    method = chosen_method(None, args, rewarded=False)
    with pytest.raises(ValueError, match="(?s)has no chat template of its own.*\n.*one window takes 4 prompts"):
        check_inputs(STUDENT, sources, args, method, Dataset.from_list(ROWS), None, None, {})


def test_what_was_checked_is_printed_unless_switched_off(capsys):
    for preflight in (True, False):
        args = settings(preflight=preflight)
        sources = teacher_sources(TEACHER, STUDENT, args, adapted=False)
        method = chosen_method(None, args, rewarded=False)
        checked = check_inputs(STUDENT, sources, args, method, Dataset.from_list(ROWS), None, None, {})
        assert capsys.readouterr().out == (f"{checked.table()}\n{checked.example}\n" if preflight else "")


def test_a_dataset_for_evaluation_is_checked_too():
    bad = Dataset.from_list([{"prompt": "1+1="}, {"prompt": ""}])
    for evaluated, name in ((bad, "eval_dataset"), ({"hard": bad}, "eval_dataset 'hard'")):
        assert fault(looked(evaluated=evaluated)) == (
            f"{name} row 1: `prompt` is empty. Give a string or a list of messages, or remove the row."
        )


def test_a_context_without_room_for_a_prompt_is_refused(tmp_path):
    short = without_weights(tmp_path / "short", max_position_embeddings=33)
    assert fault(looked(short)) == (
        "max_completion_length=33 leaves no room for a prompt in the context of teacher, 33 tokens. Lower it."
    )
    assert fault(looked(model=without_weights(tmp_path / "s", "student", max_position_embeddings=20))) == (
        "max_completion_length=33 leaves no room for a prompt in the context of the student, 20 tokens. Lower it."
    )


# Whose rows


@pytest.mark.parametrize("name", [None, "A", "c"])
@pytest.mark.parametrize("column", ["teacher_id", "who"])
def test_a_row_that_names_no_teacher_is_refused_with_the_allowed_names(name, column):
    rows = [{"prompt": "1+1=", column: "a"}, {"prompt": "2+2=", column: name}]
    assert fault(looked(TWO, rows, teacher_column=column)) == (
        f"train_dataset row 1: `{column}` is {name!r}. Each row names one of: a, b."
    )


def test_a_dataset_without_the_column_is_refused():
    message = "train_dataset row 0: `who` is None. Each row names one of: a, b."
    assert fault(looked(TWO, ROUTED, teacher_column="who")) == message


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
    assert route_to_teachers(rows[:1] * 2, ["a", "b"], ("teacher_id", "teacher_prompt"), World(), "cpu").tolist() == [
        1,
        1,
    ]
    message = "window row 1: `teacher_id` is 'c'. Each row names one of: a, b."
    with pytest.raises(ValueError, match=re.escape("window row 0: `teacher_prompt` is empty")):
        route_to_teachers(
            [{**rows[0], "teacher_prompt": ""}], ["a", "b"], ("teacher_id", "teacher_prompt"), World(), "cpu"
        )
    with pytest.raises(ValueError, match=re.escape(message)):
        route_to_teachers(rows, ["a", "b"], ("teacher_id", "teacher_prompt"), World(), "cpu")


def test_a_wrongly_routed_stream_stops_training(tmp_path):
    stream = IterableDataset.from_generator(lambda: iter([ROUTED[0], {**ROUTED[1], "teacher_id": "c"}]))
    args = settings(per_device_train_batch_size=2, max_steps=1)
    args.output_dir = str(tmp_path)
    trainer = FiReOPDTrainer(STUDENT, TWO, args, stream)
    with pytest.raises(ValueError, match="window row [01]: `teacher_id` is 'c'.* names one of: a, b"):
        trainer.train()


# Which teachers


@pytest.mark.parametrize("name", ["student", "reference"])
def test_names_of_other_models_are_taken(name):
    message = f"teacher_model: a teacher may not be called {name!r}, which names another model in the logs."
    with pytest.raises(ValueError, match=re.escape(message)):
        looked({name: TEACHER})


def test_a_teacher_is_needed_and_is_named_once():
    with pytest.raises(ValueError, match="teacher_model is missing: distillation needs a teacher"):
        looked(None)
    with pytest.raises(ValueError, match="teacher_model is missing"):
        looked({})
    with pytest.raises(ValueError, match="Name the teacher in one place"):
        looked(TEACHER, teacher_model_name_or_path=TEACHER)


def test_the_config_names_several_teachers_as_a_dict_or_as_json():
    for teachers in (TWO, json.dumps(TWO)):
        assert (
            said(looked(None, ROUTED, teacher_model_name_or_path=teachers))["routing"][1] == "`teacher_id`: a 1, b 1"
        )
    for wrong in ({}, {"a": ""}, {"a": {"b": "c"}}):
        with pytest.raises(ValueError, match="Give each teacher a name, and a model id or a local folder."):
            settings(teacher_model_name_or_path=wrong)


def test_self_without_an_adapter_is_refused():
    message = (
        "teacher_model='self' is the student with its adapter switched off, and this student has none: it would be "
        "its own teacher, with nothing to learn. Pass a peft_config, or name a teacher."
    )
    for teacher in ("self", {"a": TEACHER, "b": "self"}):
        with pytest.raises(ValueError, match=re.escape(message)):
            looked(teacher)
    assert said(looked("self", others={"peft_config": object()}))["teacher"] == (
        "ok", "the student with its adapter switched off: no second model"
    )  # fmt: skip


def test_revisions_of_several_teachers_are_given_by_name():
    config = {"teacher_model_name_or_path": TWO}
    for wrong in ("main", {"c": "main"}):
        message = (
            f"teacher_model_revision={wrong!r} is refused. With several teachers give a dict with these keys: a, b."
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            settings(**config, teacher_model_revision=wrong)
    args = settings(**config, teacher_model_revision={"b": "v2"})
    sources = teacher_sources(None, STUDENT, args, adapted=False)
    assert [source.hub["revision"] for source in sources.values()] == [None, "v2"]


@pytest.mark.parametrize(
    "field", ["teacher_chat_template", "teacher_chat_template_kwargs", "teacher_model_init_kwargs"]
)
def test_a_setting_by_name_that_names_no_teacher_is_refused(field):
    """A slip in one name must not turn the settings of all teachers into variables of a template."""
    value = "{{ messages }}" if field == "teacher_chat_template" else {"dtype": "float32"}
    rows = [{**row, "prompt": asked(row["prompt"])} for row in ROUTED]
    with pytest.raises(ValueError, match="(?s)c.*a, b"):
        checked = looked(TWO, rows, **{field: {"a": value, "c": value}}, tokenizer=with_template())
        raise ValueError("\n".join(checked.faults))


# Adapters


def adapter(folder: Path, **config) -> str:
    folder.mkdir()
    base = {"peft_type": "LORA", "base_model_name_or_path": TEACHER, "r": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**base, **config}))
    return str(folder)


def test_an_adapter_is_its_base_with_a_tokenizer(tmp_path):
    findings = said(looked(adapter(tmp_path / "adapter")))
    assert {outcome for outcome, _ in findings.values()} == {"ok"}
    assert findings["teacher"][1].startswith(f"adapter {tmp_path / 'adapter'} on Qwen3ForCausalLM, 790 k")


def test_an_adapter_without_a_base_is_refused(tmp_path):
    path = adapter(tmp_path / "adapter", base_model_name_or_path=None)
    message = (
        f"teacher_model 'a': the adapter {path!r} does not name its base. Set base_model_name_or_path in its "
        "adapter_config.json, or merge it into its base and name the result."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        looked({"a": path})


def test_an_adapter_of_virtual_tokens_is_refused(tmp_path):
    path = adapter(tmp_path / "adapter", peft_type="PROMPT_TUNING", num_virtual_tokens=8)
    message = (
        f"teacher_model 'teacher': the adapter {path!r} (PROMPT_TUNING) writes virtual tokens before the prompt, so "
        "that positions do not agree with the student's. Use a LoRA adapter."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        looked(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": "lm_head"},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["model.lm_head"]},
    ],
)
def test_an_adapter_on_the_head_is_refused(changed, tmp_path):
    path = adapter(tmp_path / "adapter", **changed)
    message = (
        f"teacher_model 'teacher': the adapter {path!r} changes lm_head, which the fused head reads directly. Merge "
        "it into its base (merge_and_unload), save that, and name it."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        looked(path)


def test_an_adapter_whose_base_is_not_here_is_refused(tmp_path):
    assert fault(looked(adapter(tmp_path / "adapter", base_model_name_or_path="nobody/nothing"))).startswith(
        "'nobody/nothing' could not be loaded: it is neither a local folder"
    )


# Where teachers can be


PACKED = {"quantization_config": {"load_in_8bit": True}}


@pytest.fixture
def under_fsdp(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")


def test_sharded_wants_a_sharded_student():
    assert fault(looked(teacher_placement="sharded")) == (
        "teacher_placement='sharded' partitions the teacher as the student is, and the student is whole on every "
        "rank. Launch with ZeRO-3 or FSDP 2 (configs/accelerate/zero3.yaml, fsdp2.yaml), or use 'replicated' or "
        "'offload'."
    )


def test_a_quantized_teacher_is_replicated(under_fsdp, tmp_path):
    for teacher, config in (
        (TEACHER, {"teacher_model_init_kwargs": PACKED}),
        ({"teacher": TEACHER}, {"teacher_model_init_kwargs": {"teacher": PACKED}}),
        (without_weights(tmp_path / "packed", **PACKED), {}),
    ):
        for placement in ("sharded", "offload"):
            assert fault(looked(teacher, teacher_placement=placement, **config)) == (
                f"teacher_placement={placement!r}: teacher 'teacher' is quantized, and its packed weights can be "
                "neither partitioned nor streamed. Use 'replicated'."
            )
        assert said(looked(teacher, **config))["teacher"][1].endswith("; replicated")
    assert said(looked())["teacher"][1].endswith("; sharded")


def test_a_module_cannot_be_offloaded():
    module = AutoModelForCausalLM.from_config(config_of(TEACHER))
    assert fault(looked(module, teacher_placement="offload")) == (
        "teacher_placement='offload': teacher 'teacher' is a module that is already in memory. Name its folder or id, "
        "from where it is read layer by layer."
    )


def test_an_adapter_cannot_be_offloaded(tmp_path):
    assert fault(looked(adapter(tmp_path / "adapter"), teacher_placement="offload")) == (
        "teacher_placement='offload': teacher 'teacher' is an adapter, whose base is streamed from the host only "
        "under ZeRO-3. Merge it (merge_and_unload), save that and name it, or use 'replicated'."
    )


def test_a_deepspeed_file_must_be_readable(tmp_path):
    for path, content in ((tmp_path / "gone.json", None), (tmp_path / "torn.json", "{")):
        if content:
            path.write_text(content)
        message = fault(looked(teacher_deepspeed=str(path)))
        assert message.startswith(f"teacher_deepspeed={str(path)!r} is not a JSON file that can be read: ")


@pytest.mark.parametrize(
    ("stage", "placement", "engine"),
    [
        (3, "replicated", "ZeRO-3"), (0, "sharded", "ZeRO-3"),
        (0, "offload", "ZeRO-3"), (3, "offload", "DeepSpeed"),
    ],
)  # fmt: skip
def test_a_deepspeed_stage_must_fit_the_placement(stage, placement, engine):
    args = settings(teacher_placement=placement, teacher_deepspeed={"zero_optimization": {"stage": stage}})
    message = (
        f"teacher_deepspeed is of ZeRO stage {stage}, which does not fit teacher_placement={placement!r}. Sharded and "
        "offloaded teachers want stage 3, replicas stage 0."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        choose_placement(args, Source("teacher", TEACHER), engine)


@pytest.mark.parametrize("stage", [2, "3", None])
def test_a_frozen_teacher_is_partitioned_or_whole(stage):
    args = settings(teacher_deepspeed={"zero_optimization": {"stage": stage}})
    with pytest.raises(
        ValueError, match=f"teacher_deepspeed has the ZeRO stage {stage!r}. .* partitioned .3. or whole"
    ):
        choose_placement(args, Source("teacher", TEACHER), "ZeRO-3")


@pytest.mark.parametrize("teacher", [None, ["a"], 3, ""])
def test_what_is_no_teacher_is_refused(teacher):
    with pytest.raises(ValueError, match="teacher_model 'a' is .*Give a model id, a local folder, or a model"):
        teacher_sources({"a": teacher}, STUDENT, settings(), adapted=False)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"teacher_prompt_column": "hint"},
            "teacher_prompt_column='hint' is no column of the dataset, which has: prompt",
        ),
        ({"teacher_model_init_kwargs": {"dtype": "bf16"}}, "dtype='bf16' is refused. Use 'auto', 'bfloat16'"),
    ],
)
def test_a_setting_that_would_do_nothing_or_fail_late_is_refused(config, message):
    assert fault(looked(**config)).startswith(message)


def test_the_columns_are_three():
    with pytest.raises(ValueError, match="It must be another column than prompt and teacher_column"):
        settings(teacher_prompt_column="prompt")


def test_a_deepspeed_file_wants_a_run_under_deepspeed():
    assert fault(looked(teacher_deepspeed={"zero_optimization": {"stage": 0}})) == (
        "teacher_deepspeed is set, and this run is not one of DeepSpeed's. Launch it with a DeepSpeed configuration "
        "(configs/accelerate/zero3.yaml), or remove teacher_deepspeed."
    )


# Whole distributions, and a reference


def test_whole_distributions_over_fewer_tokens_are_refused(tmp_path):
    student = without_weights(tmp_path / "student", "student", vocab_size=64)
    assert looked(model=student).faults == []
    for method in ("opd_full", "tip"):
        assert fault(looked(model=student, method=method)) == (
            f"teacher_model 'teacher' has 16 token rows and the student 64: method={method!r} compares whole "
            "distributions, which must be over the same tokens. Cut the student's embeddings to the teacher's rows "
            "(resize_token_embeddings), or use a method of the sampled token."
        )


# The window in numbers


def test_the_window_is_counted():
    rows = [{"prompt": "123+456="}] * 10 + [{"prompt": "1+1="}]
    config = {
        "method": "fire", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_generations": 2,
        "steps_per_generation": 4, "drop_fraction": 0.3, "scoring_token_budget": 100, "max_completion_length": 20,
    }  # fmt: skip
    findings = said(looked(rows=rows, **config))
    assert findings["dataset"] == ("ok", "11 rows, the longest prompt has 8 tokens, completions up to 20")
    assert findings["window"] == (
        "ok",
        "8 trajectories = 1 process x 2 x 4 (per_device_train_batch_size x steps_per_generation): 4 prompts, 2 "
        "completions each; 2 optimizer steps; 2 windows an epoch",
    )
    assert findings["filter"] == ("ok", "fire drops 2 of 8 trajectories and updates on 6, if all are sound")
    assert findings["work"] == (  # 100 // (8 + 20) = 3 rows at once, and 8 rows
        "ok",
        "a window and rank: sampling; scoring in at most 3 forwards of 100 padded tokens under each of student + "
        "teacher; 4 micro-batches forward and backward",
    )


def test_a_method_without_a_filter_says_nothing_of_one():
    findings = said(looked())
    assert "filter" not in findings
    assert findings["work"][1].startswith("a window and rank: sampling; scoring in at most 1 forward of 16384 padded ")


@pytest.mark.parametrize(
    "given",
    [{"method": "fire", "method_kwargs": {"drop_fraction": 0.5}}, {"recipe": METHODS["fire"](drop_fraction=0.5)}],
)
def test_what_the_filter_drops_is_what_the_recipe_drops(given):
    """Also where the recipe has its arguments from elsewhere than the config's own field."""
    checked = looked(rows=[{"prompt": "1+1="}] * 8, per_device_train_batch_size=8, **given)
    assert "drops 4 of 8 trajectories" in said(checked)["filter"][1]


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


def test_a_filter_within_each_teacher_drops_a_share_of_each():
    rows = [{"prompt": "1+1=", "teacher_id": "a" if row < 5 else "b"} for row in range(8)]
    findings = said(looked({"a": TEACHER, "b": TEACHER}, rows=rows, per_device_train_batch_size=8,
                           method="fire", statistics_scope="teacher", drop_fraction=0.4))  # fmt: skip
    assert "drops 3 of 8 trajectories" in findings["filter"][1]  # floor(0.4 x 5) + floor(0.4 x 3)


def test_one_teacher_with_a_name_takes_no_rows_of_another():
    rows = [{"prompt": "1+1=", "teacher_id": name} for name in ("math", "code")]
    assert fault(looked({"math": TEACHER}, rows=rows)) == (
        "train_dataset row 1: `teacher_id` is 'code'. Each row names one of: math."
    )
    assert not looked({"math": TEACHER}, rows=[{"prompt": "1+1="}]).faults  # without the column there is no doubt
    assert not looked(rows=rows).faults  # nor where the teacher has no name
