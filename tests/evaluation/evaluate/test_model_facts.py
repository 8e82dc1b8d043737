"""What a model is: hashes that change with what changes numbers, and sentences for what is no model."""

import json
import shutil

import pytest

from fire_opd_trl.demo.run import model_path
from fire_opd_trl.evaluation.evaluate.model_facts import model_facts, model_folder, versions


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(model_path("student"), tmp_path / "model")


def test_each_file_changes_its_own_hash(model):
    before = model_facts(model)
    assert before["weights_sha256"] and before["tokenizer_sha256"] and before["chat_template_sha256"] is None
    assert model_facts(shutil.copytree(model, model.parent / "copy")) == before  # where it lies changes nothing

    def changed():
        after = model_facts(model)
        return {name for name in after if after[name] != before[name]}

    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert changed() == {"weights_sha256"}
    (model / "model.safetensors").write_bytes(weights)
    generation = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**generation, "top_k": 20}))
    assert changed() == {"generation_config_sha256"}
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert changed() == {"generation_config_sha256", "chat_template_sha256"}


def test_the_weights_of_an_adapters_base_belong_to_it(model):
    adapter = model.parent / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    (adapter / "adapter_model.safetensors").write_bytes(b"1")
    assert model_facts(adapter)["base_weights_sha256"] == model_facts(model)["weights_sha256"]


def test_what_is_no_model_is_said(model, tmp_path):
    assert model_folder(str(model)) == model
    with pytest.raises(ValueError, match="there is no such folder"):
        model_folder(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"no config.json.*Below it are model"):
        model_folder(str(tmp_path))
    with pytest.raises(ValueError, match="config.json': it is no folder"):
        model_folder(str(model / "config.json"))
    with pytest.raises(ValueError, match="'': it is no folder"):
        model_folder("")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match="its file model.safetensors cannot be read.*not fully covered"):
        model_folder(str(model))
    weights.unlink()
    with pytest.raises(ValueError, match="no weights"):
        model_folder(str(model))


def test_a_model_without_a_tokenizer_is_said(model):
    for file in model.glob("*token*"):
        file.unlink()
    with pytest.raises(ValueError, match="the folder has no tokenizer"):
        model_folder(str(model))


def test_a_name_that_the_hub_does_not_give_is_said(monkeypatch):
    import huggingface_hub

    def nothing(name):
        raise OSError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing)
    with pytest.raises(ValueError, match="someone/model: there is no such folder, and the Hub.*no network$"):
        model_folder("someone/model")


def test_versions_are_of_what_is_installed():
    found = versions(("torch", "no-such-package"))
    assert set(found) == {"python", "torch"}
