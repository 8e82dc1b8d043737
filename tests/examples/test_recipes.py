"""
The recipes as they are shipped: each names the source of each value, its window is what it says, a baseline is its
base with another method, and each takes two steps on models and rows of the same shape, tiny.
"""

import gc
import json
import math
import re
import shutil
import sys

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset, Features, Image, Value
from PIL.Image import Image as Picture
from support.commands import ACCELERATE_CONFIGS, SCRIPT
from support.recipes_page import PAGE, RECIPES, ROWS, command_of, filled, parsed, steps
from support.vision import picture, processor, vision_model
from transformers import AutoTokenizer

from fire_opd_trl import METHODS, FiReOPDTrainer
from fire_opd_trl.demo import task
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.preflight import packaged
from fire_opd_trl.preflight.recipes import read_recipe, recipes_by_folder


_, BASELINES = recipes_by_folder().values()
SOURCES = ("paper", "script", "code", "verl", "TRL", "data", "ours", "as in strong-to-weak")
# What a baseline may set: its method with all that this needs, and no more of the run.
BLOCK = {"method", "method_kwargs", "drop_fraction", "confidence", "confusion", "offload_teacher_states"}
OUTCOMES = {"reward_funcs", "num_generations", "max_steps"}
PROMPTS = ROWS["zwhe99/DeepMath-103K"]
RUNS_OF_THE_PAPER = ("strong-to-weak", "single-teacher", "multi-teacher")


def own_lines(name: str) -> list[str]:
    return RECIPES[name].read_text().splitlines()


@pytest.mark.parametrize("name", RECIPES)
def test_each_value_has_its_source_behind_it_or_above_it(name):
    lines = own_lines(name)
    starts = [number for number, line in enumerate(lines) if re.match(r"\w+:", line)]
    assert len(starts) == len(yaml.safe_load("\n".join(lines)))
    for start in starts:
        above = start
        while lines[above - 1].startswith("#"):
            above -= 1
        comments = [line.partition("# ")[2] for line in lines[above : start + 1]]
        said = " ".join(comment for comment in comments if comment)
        assert re.search(rf"(?:^|[;.] |, )(?:{'|'.join(SOURCES)})\b", said), lines[start]
    assert max(map(len, lines)) <= 119


@pytest.mark.parametrize("name", RECIPES)
def test_the_top_of_a_file_says_how_to_run_it_and_whether_anyone_has(name):
    about = own_lines(name)[0]
    words = command_of(name)
    assert words[words.index("--config") + 1] == name
    assert words[words.index("--accelerate_config") + 1] in ACCELERATE_CONFIGS
    assert about.endswith("NOT run by us.") or name == "smoke"


def test_every_method_has_a_recipe_of_its_name():
    assert sorted(BASELINES) == sorted(METHODS)
    assert [read_recipe(name)["method"] for name in BASELINES] == BASELINES


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_its_base_with_one_block_changed(name):
    own, method = yaml.safe_load(RECIPES[name].read_text()), METHODS[name]()
    assert own.pop("extends") == "strong-to-weak"
    if name == "fire":
        assert own == {}
        return
    needs = OUTCOMES if "group_B" in method.needs else {"reward_funcs"} if method.needs else set()
    assert own.keys() - BLOCK == needs and own["method"] == name
    assert ("offload_teacher_states" in own) == bool(method.divergence and not method.divergence.top_k)
    assert own.get("max_steps", 165) == 165
    # The method is built with these arguments, and they are the defaults of the literature.
    arguments = {**own.get("method_kwargs", {}), **{k: own[k] for k in ("drop_fraction", "confidence") if k in own}}
    assert repr(METHODS[name](**arguments)) == repr(method)
    assert repr(parsed(name)[1].build_method()) == repr(method)


@pytest.mark.parametrize("name", [*RUNS_OF_THE_PAPER, *BASELINES])
def test_the_windows_of_the_papers_runs_are_the_papers(name):
    script, args, _, _ = parsed(name)
    assert args.generation_batch_size == 1024 and args.steps_per_generation == args.gradient_accumulation_steps
    assert (args.max_completion_length, args.learning_rate, args.temperature, args.top_p) == (16384, 1e-6, 1.0, 1.0)
    assert args.vllm_max_model_length == args.max_prompt_length + args.max_completion_length
    if name != "multi-teacher":  # whose mixture has another length, which the paper does not say
        # 57,046 = 55 x 1024 + 726, and the paper's "about 165" is three times 55: exactly so, without a tolerance.
        assert steps(PROMPTS, args) == 165 and script.dataset_filter == ["difficulty >= 6"]
    method = args.build_method()
    assert args.num_generations == (1 if "group_B" not in method.needs else {"uni_opd": 16}.get(name, 8))


@pytest.mark.parametrize(
    ("name", "window", "rows", "expected"),
    [
        ("images", 256, 7690, 90),
        ("lora-24gb", 64, 7473, 116),
        ("self-distillation", 32, PROMPTS, 1782),
        ("smoke", 8, 64, 2),
    ],
)
def test_the_windows_of_the_others_are_what_their_comments_say(name, window, rows, expected):
    args = parsed(name)[1]
    assert args.generation_batch_size == window and steps(rows, args) == expected
    assert f" = {window} rows" in RECIPES[name].read_text()


def test_a_server_leaves_six_gpus_to_training_and_the_window_about_as_large():
    args = parsed("vllm-server")[1]
    assert args.generation_batch_size == 1032 == 6 * 4 * 43  # the multiple of 24 that is nearest to 1024
    text = RECIPES["vllm-server"].read_text()
    assert f"--port {args.vllm_server_port}" in text and f"--max-model-len {args.vllm_max_model_length}" in text


def test_the_page_has_each_recipe_with_its_window_its_steps_and_its_plan():
    """`make recipes` writes these tables."""
    page = PAGE.read_text()
    assert filled(page) == page
    assert page.count("](../configs/recipes/") == len(RECIPES)


# Two steps of each


PLAIN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture(scope="module", autouse=True)
def a_small_heap():
    """accelerate collects garbage in every training. What there is by now would be searched each time, for 0.4 s."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Models and rows of the shapes that the recipes name: a folder of each, and a file for each dataset."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("student", "teacher"):
        shutil.copytree(model_path(name), folder / name)
        tokenizer = AutoTokenizer.from_pretrained(folder / name)
        tokenizer.chat_template = PLAIN
        tokenizer.save_pretrained(folder / name)
    sums = [(task.prompt(a, b), str(a + b)) for a, b in task.problems("train", 64, seed=1)]
    rows = {
        "deepmath": [
            {"question": question, "final_answer": answer, "difficulty": 5.0 + number % 4, "topic": "Algebra"}
            for number, (question, answer) in enumerate(sums)
        ],
        "multi-teacher": [
            {"prompt": user(question), "teacher_id": ("math", "code")[number % 2]}
            for number, (question, _) in enumerate(sums)
        ],
        "hints": [
            {"prompt": user(question), "teacher_prompt": user(f"{answer};{question}")} for question, answer in sums
        ],
        "gsm8k": [{"question": question, "answer": f"#### {answer}"} for question, answer in sums],
    }
    for name, table in rows.items():
        Dataset.from_list(table).to_parquet(folder / f"{name}.parquet")
    features = Features({"problem": Value("string"), "solution": Value("string"), "image": Image()})
    pictures = [{"problem": f"What is {n}?", "solution": "1", "image": picture(n)} for n in range(16)]
    Dataset.from_list(pictures, features=features).to_parquet(folder / "pictures.parquet")
    return folder


DATA = {"multi-teacher": "multi-teacher", "self-distillation": "hints", "lora-24gb": "gsm8k", "images": "pictures"}
SIZES = [  # sizes, engine and device alone; what a recipe is about stays as it is
    *("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--max_steps", "2"),
    *("--max_completion_length", "12", "--max_prompt_length", "64", "--scoring_token_budget", "1024"),
    *("--use_vllm", "false", "--vllm_enable_sleep_mode", "false", "--bf16", "false", "--dtype", "float32"),
    *("--gradient_checkpointing", "false", "--preflight", "false", "--print_metrics", "none"),
    *("--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true", "--teacher_placement", "auto"),
]


def arguments_of(name: str, tiny, folder, *more: str) -> dict:
    """The arguments of the trainer for a recipe in which models, rows, sizes and engine are replaced by tiny ones."""
    settings, argv = read_recipe(name), [*SIZES, "--output_dir", str(folder)]
    if name != "smoke":
        argv += ["--dataset_name", str(tiny / f"{DATA.get(name, 'deepmath')}.parquet")]
    argv += ["--model_name_or_path", str(tiny / "student")]
    teacher = settings["teacher_model_name_or_path"]
    named = {key: str(tiny / "teacher") for key in teacher} if isinstance(teacher, dict) else str(tiny / "teacher")
    if teacher != "self":
        argv += ["--teacher_model_name_or_path", json.dumps(named) if isinstance(named, dict) else named]
    if settings.get("num_generations", 1) > 4:
        argv += ["--num_generations", "4"]
    if (settings.get("method_kwargs") or {}).get("top_k", 0) > 4:  # of a vocabulary of 16
        argv += ["--method_kwargs", json.dumps({**settings["method_kwargs"], "top_k": 4})]
    argv += more
    script = packaged.load_module(SCRIPT)
    return script.trainer_arguments(*parsed(name, *argv, processes=1))


def two_steps(trainer) -> list[dict]:
    """The logs of two steps, all of which are numbers."""
    trainer.train()
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    assert trainer.state.global_step == len(logs) == 2
    for log in logs:
        assert all(math.isfinite(log[name]) for name in ("loss", "grad_norm", "fire/reverse_kl"))
        assert log["grad_norm"] > 0
    return logs


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("images", "tools")])
def test_two_steps_on_the_embedded_pair(name, tiny, tmp_path):
    trainer = FiReOPDTrainer(**arguments_of(name, tiny, tmp_path))
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    logs = two_steps(trainer)
    settings = read_recipe(name)
    assert trainer.method.name == settings["method"]
    assert any((value != before[key]).any() for key, value in trainer.model.state_dict().items())
    dropped = settings["method"] in ("fire", "fire_full", "random")
    assert [log["fire/keep_ratio"] for log in logs] == [7 / 8 if dropped else 1.0] * 2  # 8 - floor(0.2 x 8)
    assert ("rewards/final_answer/mean" in logs[0]) == ("reward_funcs" in settings)
    if name == "multi-teacher":
        assert {"fire/math/rows", "fire/code/rows"} <= logs[0].keys()
    if settings.get("use_peft"):
        assert all("lora" in key for key, value in trainer.model.named_parameters() if value.requires_grad)
    if name == "self-distillation":  # the teacher has read the answer, and so finds other tokens likely
        assert logs[0]["fire/reverse_kl"] > 0


def test_two_steps_with_images(tiny, tmp_path):
    """The processor of the tiny model has no class that a folder could name, so that the models are given."""
    arguments = arguments_of("images", tiny, tmp_path)
    row = arguments["train_dataset"][0]
    assert row["prompt"] == user("What is 0?") and isinstance(row["image"], Picture)
    args = arguments["args"]
    args.teacher_model_name_or_path, args.model_init_kwargs, args.teacher_model_init_kwargs = None, None, None
    args.allow_guessing_teacher = True  # random weights
    given = {"model": vision_model(0), "teacher_model": vision_model(1), "processing_class": processor()}
    logs = two_steps(FiReOPDTrainer(**{**arguments, **given}))
    assert logs[0]["fire/keep_ratio"] == 7 / 8  # in the second step a completion may be empty


def test_two_steps_with_a_tool(tiny, tmp_path):
    """The student's prompt says what the calculator does. That it is called and what it returns: test_tools.py."""
    examples = packaged.load_module(packaged.packaged_folder("examples") / "tools.py")
    tokenizer = examples.tiny_tokenizer()
    teacher = examples.tiny_teacher(tokenizer, updates=1)
    for name, model in (("teacher", teacher), ("student", examples.spoilt(teacher, noise=0.05))):
        tokenizer.save_pretrained(tmp_path / name)
        model.save_pretrained(tmp_path / name)
    arguments = arguments_of("tools", tiny, tmp_path / "out", "--max_prompt_length", "1000", "--log_rollouts", "1")
    args = arguments["args"]
    args.allow_guessing_teacher = True  # random weights
    args.teacher_model_name_or_path = str(tmp_path / "teacher")
    trainer = FiReOPDTrainer(**{**arguments, "model": str(tmp_path / "student")})
    two_steps(trainer)
    assert [tool("6 * 7") for tool in trainer.tools] == ["42"]
    (file, *_) = (tmp_path / "out" / "rollouts").glob("*.parquet")
    (row,) = pq.read_table(file).to_pylist()
    assert '"name": "calculator"' in row["prompt"] and "Calculates" in row["prompt"]


def test_a_reward_without_its_package_is_refused_when_it_is_named(monkeypatch):
    path = packaged.packaged_folder("examples") / "rewards.py"
    assert callable(packaged.training_script().imported("reward_funcs", f"{path}:final_answer"))
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ValueError, match=r"^reward_funcs: .*needs math-verify: pip install -e '\.\[eval\]'"):
        packaged.training_script().imported("reward_funcs", f"{path}:final_answer")


def test_an_answer_is_right_by_its_box():
    module = packaged.load_module(packaged.packaged_folder("examples") / "rewards.py")
    said = ["so \\boxed{\\frac{1}{2}}", "\\boxed{3}, and 4 is no answer", "I do not know", "\\boxed{7}"]
    completions = [[{"role": "assistant", "content": text}] for text in said]
    for column in ("final_answer", "answer"):  # of DeepMath, and of what `fire-opd data` makes of it
        assert module.final_answer(completions, **{column: ["0.5", "3", "4", ""]}) == [1.0, 1.0, 0.0, None]
    assert module.final_answer(completions[:1], answer=[None]) == [None]
    with pytest.raises(ValueError, match="a column `final_answer` or `answer`. The rows have neither"):
        module.final_answer(completions, topic=["Algebra"] * 4)
