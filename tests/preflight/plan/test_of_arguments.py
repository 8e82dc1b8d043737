"""A plan of the arguments of a training: what is said, and what is taken where nothing is."""

from types import SimpleNamespace

from support.plans import RUN

from fire_opd_trl.preflight.plan import of_arguments
from fire_opd_trl.preflight.plan.hardware import HARDWARE


def made(monkeypatch, max_steps: int = -1, device: str = "cuda", **said):
    monkeypatch.setattr(of_arguments, "run_of_arguments", lambda parts, accelerate, gpus, **lengths: RUN)
    monkeypatch.setattr(of_arguments, "read_accelerate", lambda file: {"device": device})
    monkeypatch.setattr(of_arguments.torch.cuda, "is_available", lambda: said.get("card") is not None)
    monkeypatch.setattr(of_arguments.torch.cuda, "get_device_name", lambda: said["card"])
    parts = {"args": SimpleNamespace(max_steps=max_steps)}
    return of_arguments.plan_of_arguments(parts, None, **said)


def test_hardware_is_what_is_said_or_what_is_here(monkeypatch):
    assert made(monkeypatch, hardware="a100", card="NVIDIA H200").hardware is HARDWARE["a100"]
    assert made(monkeypatch, card="NVIDIA H200").hardware is HARDWARE["h200"]
    assert made(monkeypatch, card="NVIDIA GeForce RTX 4090").hardware is HARDWARE["rtx4090"]
    assert made(monkeypatch, card="Some other card").hardware is HARDWARE["h100"]
    assert made(monkeypatch).hardware is HARDWARE["h100"]
    assert made(monkeypatch, device="cpu").hardware is HARDWARE["cpu"]


def test_steps_are_those_that_are_said_or_of_the_training(monkeypatch):
    assert made(monkeypatch, max_steps=30).steps == 30
    assert made(monkeypatch, max_steps=30, steps=5).steps == 5
    assert made(monkeypatch).steps is None


def test_assumptions_are_changed_one_by_one(monkeypatch):
    plan = made(monkeypatch, overlap=0.25, spread=None)
    assert (plan.assumptions.overlap, plan.assumptions.spread) == (0.25, 0.6)
