"""How a model reads and writes text, and what inspect-ai gets of a sampler."""

import asyncio
import json
import shutil

import pytest
from tokenizers import processors

from fire_opd_trl.demo.run import model_path
from fire_opd_trl.evaluation.evaluate.backend import Completed, Reader, base_of, room_for
from fire_opd_trl.evaluation.evaluate.provider import Transformers
from fire_opd_trl.evaluation.evaluate.settings import Settings


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """The student, with a second end token."""
    folder = shutil.copytree(model_path("student"), tmp_path_factory.mktemp("backend") / "student")
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": [1, 14]}))
    return folder


def test_a_reader_knows_the_model_without_its_weights(student):
    reader = Reader(student, Settings(max_new_tokens=124))
    assert (reader.context, reader.dtype, reader.ends) == (128, "bfloat16", {1, 14})
    assert reader.render("1+1=") == "1+1=" and len(reader.ids("1+1=")) == 4
    assert not reader.cuts(["1+1="]) and reader.cuts(["1+1=", "12+1="])
    with pytest.raises(ValueError, match="'111.*has 200 tokens of 128: .*Take the problem out"):
        reader.cuts(["1" * 200])
    assert room_for([1, 2, 3], 8, 4) == 1 and room_for([1], 8, None) == 8
    with pytest.raises(ValueError, match="4 tokens of 4"):
        room_for([1, 2, 3, 4], 8, 4)
    with pytest.raises(ValueError, match="has no token"):
        room_for([], 8, None)


def test_an_adapter_is_read_with_its_base(student, tmp_path):
    adapter = tmp_path / "adapter_config.json"
    adapter.write_text(json.dumps({"base_model_name_or_path": str(student)}))
    assert base_of(tmp_path) == student == base_of(student)
    for file in student.glob("*token*"):
        shutil.copy(file, tmp_path)
    assert Reader(tmp_path, Settings()).ends == {1, 14}


@pytest.mark.parametrize("written", ["{", "[]", "{}", '{"base_model_name_or_path": null}'])
def test_an_adapter_that_names_no_base_is_refused(written, tmp_path):
    (tmp_path / "adapter_config.json").write_text(written)
    with pytest.raises(ValueError, match=f"--model {tmp_path}: the name of its base model .* cannot be read"):
        base_of(tmp_path)


def test_an_adapter_whose_base_is_gone_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/gone/base/model"}')
    with pytest.raises(ValueError, match="it is an adapter of /gone/base/model, and there is no such folder"):
        base_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "written", "said"),
    [
        ("config.json", "{", "its config cannot be read"),
        ("config.json", "[]", "its config cannot be read"),
        ("config.json", '{"model_type": "foo"}', "its config cannot be read"),
        ("config.json", '{"model_type": "own", "auto_map": {"AutoConfig": "a.B"}}', "give --trust_remote_code on"),
        ("generation_config.json", "{", "its generation config cannot be read"),
        ("tokenizer.json", "{", "its tokenizer cannot be read"),
    ],
)
def test_a_broken_file_is_named(name, written, said, student, tmp_path):
    folder = shutil.copytree(student, tmp_path / "model")
    (folder / name).write_text(written)
    with pytest.raises(ValueError) as error:
        Reader(folder, Settings())
    assert str(error.value).startswith(f"--model {folder}: ") and said in str(error.value)


def test_a_broken_chat_template_is_not_the_datas_fault(student):
    reader = Reader(student, Settings())
    reader.tokenizer.chat_template = "{{ raise_exception('no system') }}"
    with pytest.raises(ValueError, match="its chat template cannot be read .*no system"):
        reader.cuts(["1+1="])


def test_prompts_have_one_beginning_token_and_know_whether_to_think(student):
    def read(template, thinking=False):
        reader = Reader(student, Settings(thinking=thinking))
        reader.tokenizer.chat_template = template
        reader.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<eos> $A", special_tokens=[("<eos>", reader.tokenizer.eos_token_id)]
        )
        return reader.tokenizer.decode(reader.ids("1+2="))

    template = "<eos>{{ messages[0].content }}{% if not enable_thinking %};;{% endif %}"
    assert read(None) == "<eos>1+2="
    assert (read(template), read(template, True)) == ("<eos>1+2=;;", "<eos>1+2=")


def test_inspect_gets_text_stop_reasons_and_tokens(student):
    class Sampler:
        async def sample(self, prompt, config):
            return Completed([7, 8, 1][: config.max_tokens], config.max_tokens > 2)

    from inspect_ai.model import GenerateConfig

    model = Transformers(Settings()).as_inspect_model(Sampler(), Reader(student, Settings()), "one")
    whole = asyncio.run(model.generate("1+2=", config=GenerateConfig(max_tokens=9)))
    assert (whole.completion, whole.stop_reason, whole.usage.output_tokens) == ("56", "stop", 3)
    cut = asyncio.run(model.generate("1+2=", config=GenerateConfig(max_tokens=1)))
    assert (cut.completion, cut.stop_reason, cut.usage.input_tokens) == ("5", "max_tokens", 4)
    assert model.api.max_connections() == 64 and str(model) == "fire_opd_transformers/one"
