"""A plan of the arguments of a training: what is said, and what is taken where nothing is."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.plans import RUN

from fire_opd_trl.preflight.plan import of_arguments
from fire_opd_trl.preflight.plan.hardware import HARDWARE
from fire_opd_trl.preflight.plan.run import Engine


def made(
    monkeypatch, max_steps: int = -1, device: str = "cuda", on_cpu: bool = False, memory: float = 0.0, run=RUN, **said
):
    def run_of_arguments(parts, accelerate, gpus, **lengths):
        return replace(run, prompt_mean=lengths["prompts"][0]) if lengths["prompts"] else run

    monkeypatch.setattr(of_arguments, "run_of_arguments", run_of_arguments)
    monkeypatch.setattr(of_arguments, "read_accelerate", lambda file: {"device": device})
    monkeypatch.setattr(of_arguments.torch.cuda, "is_available", lambda: said.get("card") is not None)
    monkeypatch.setattr(of_arguments.torch.cuda, "get_device_name", lambda: said["card"])
    properties = SimpleNamespace(total_memory=memory)
    monkeypatch.setattr(of_arguments.torch.cuda, "get_device_properties", lambda device: properties)
    parts = {"args": SimpleNamespace(max_steps=max_steps, on_cpu=on_cpu)}
    return of_arguments.plan_of_arguments(parts, None, **said)


def test_hardware_is_what_is_said_or_what_is_here(monkeypatch):
    assert made(monkeypatch, hardware="a100", card="NVIDIA H200").hardware is HARDWARE["a100"]
    here = made(monkeypatch, card="NVIDIA H200", memory=149e9).hardware
    assert here == replace(HARDWARE["h200"], memory=149e9)
    assert made(monkeypatch, card="NVIDIA GeForce RTX 4090", memory=25.4e9).hardware.name == "rtx4090"
    assert made(monkeypatch, card="NVIDIA A100-SXM4-80GB", memory=85e9).hardware.name == "a100"
    with pytest.raises(ValueError, match="H100 PCIe with 85.0 GB, is none whose rates are known"):
        made(monkeypatch, card="NVIDIA H100 PCIe", memory=85e9)
    assert made(monkeypatch).hardware is HARDWARE["h100"]
    assert made(monkeypatch, device="cpu").hardware is HARDWARE["cpu"]
    assert made(monkeypatch, on_cpu=True, card="NVIDIA H200", memory=149e9).hardware is HARDWARE["cpu"]


@pytest.mark.parametrize(
    "card, memory",
    [("NVIDIA A100-SXM4-40GB", 42e9), ("NVIDIA GH200 480GB", 102e9), ("NVIDIA GH200", 150e9), ("Tesla T4", 15.6e9)],
)
def test_a_card_of_unknown_rates_is_no_other_card(monkeypatch, card, memory):
    with pytest.raises(
        ValueError, match=f"{card} with .* GB, is none whose rates are known. Give `fire-opd plan` --hardware"
    ):
        made(monkeypatch, card=card, memory=memory)


def test_the_prompts_that_were_read_are_planned(monkeypatch):
    assert made(monkeypatch, prompts=(1.5, 2)).run.prompt_mean == 1.5


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"completion_mean": 5}, "--mean_completion 5 is more than the 4 tokens"),
        ({"prompt_mean": 3}, "--mean_prompt 3 is more than the 2 tokens"),
        ({"engine": Engine("colocate", tensor_parallel=3)}, "does not divide the 8 cards"),
        ({"engine": Engine("server", tensor_parallel=2, gpus=3)}, "_parallel 2 does not divide the 3 cards"),
    ],
)
def test_what_cannot_be_is_refused(monkeypatch, changes, said):
    with pytest.raises(ValueError, match=said):
        made(monkeypatch, run=replace(RUN, **changes))


def test_options_of_a_server_are_refused_without_one(monkeypatch):
    with pytest.raises(ValueError, match="--engine_gpus is of a vLLM server, which this run has not"):
        made(monkeypatch, engine_gpus=2)


def test_steps_are_those_that_are_said_or_of_the_training(monkeypatch):
    assert made(monkeypatch, max_steps=30).steps == 30
    assert made(monkeypatch, max_steps=30, steps=5).steps == 5
    assert made(monkeypatch).steps is None


def test_assumptions_are_changed_one_by_one(monkeypatch):
    plan = made(monkeypatch, overlap=0.25, spread=None)
    assert (plan.assumptions.overlap, plan.assumptions.spread) == (0.25, 0.6)
