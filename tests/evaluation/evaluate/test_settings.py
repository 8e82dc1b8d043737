"""What an evaluation is asked: `help` names it, and what makes none is refused."""

import inspect
import pydoc

import pytest

from fire_opd_trl.evaluation.evaluate import evaluate
from fire_opd_trl.evaluation.evaluate.settings import Settings, kind_of


def test_help_names_every_setting_with_its_default_and_its_meaning():
    parameters = inspect.signature(evaluate).parameters
    assert list(parameters)[:3] == ["models", "tasks", "data_dir"] and list(parameters)[-2:] == [
        "overwrite",
        "command",
    ]
    said = pydoc.render_doc(evaluate, renderer=pydoc.plaintext)
    assert "max_new_tokens=16384" in said and "n (`int`, defaults to `8`): samples of each problem\n" in said
    assert "limit (`int`, *optional*): the first so many" in said and "SETTINGS" not in said
    with pytest.raises(TypeError, match="no argument 'temprature'. Did you mean 'temperature'"):
        evaluate("a", "b", temprature=1.0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"n": 0}, "--n 0: give at least 1"),
        ({"n": 2.0}, "--n 2.0: give a whole number"),
        ({"n": True}, "--n True: give a whole number"),
        ({"seed": False}, "--seed False: give a whole number"),
        ({"seed": None}, "--seed None: give a whole number"),
        ({"thinking": "off"}, "--thinking 'off': give True or False"),
        ({"temperature": float("nan")}, "--temperature nan: give at least 0"),
        ({"temperature": float("inf")}, "--temperature inf: give at least 0, and no infinity"),
        ({"temperature": 1e-40, "n": 1}, "--temperature 1e-40: give at least 0.01, or 0 for the likeliest token"),
        ({"dtype": "flaot32"}, "--dtype flaot32: there are auto, bfloat16, float16, float32. Did you mean 'float32'?"),
        ({"output_dir": ""}, "--output_dir '': it is empty"),
        ({"device": ""}, "--device '': it is empty"),
        ({"vllm_url": "http://127.0.0.1:1"}, "--vllm_url is for --backend vllm"),
        ({"vllm_args": "--enforce-eager"}, "--vllm_args is for --backend vllm"),
        ({"temperature": 0.0, "n": 2}, "--temperature 0 gives the same answer each time: --n 2"),
        ({"top_p": 0.0}, "--top_p 0.0: give more than 0"),
        ({"limit": 0}, "--limit 0"),
        ({"prompt_style": "boxd"}, "there are boxed, authors, none. Did you mean"),
        ({"backend": "vlm"}, "there are transformers, vllm. Did you mean"),
        ({"sandbox": "chroot"}, "--sandbox chroot: there are bubblewrap, docker"),
    ],
)
def test_what_makes_no_evaluation_is_refused(given, said):
    with pytest.raises(ValueError) as error:
        Settings(**given)
    assert said in str(error.value)


def test_kinds_and_sampling():
    assert [kind_of(name) for name in ("n", "limit", "top_p", "thinking", "data_dir")] == [int, int, float, bool, str]
    assert Settings(n=1, temperature=0).sampling == {
        "n": 1, "temperature": 0, "top_p": 1.0, "top_k": None, "max_new_tokens": 16384, "seed": 42,
    }  # fmt: skip
