"""Teachers that are read layer by layer."""

from support.inspections import TEACHER, adapter, fault, looked
from transformers import AutoModelForCausalLM

from fire_opd_trl.teachers.vocabulary import config_of


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
