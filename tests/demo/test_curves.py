"""The demo's picture is drawn from a run's history."""

import pytest

from fire_opd_trl.demo.curves import draw_learning_curve


def test_the_learning_curve_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    history = [{"step": step, "accuracy": 0.5, "reverse_kl": 1 / step, "keep_ratio": 0.8} for step in (1, 2, 3)]
    path = tmp_path / "curve.png"
    draw_learning_curve(history, path, title="fire", before=0.4, after=0.6, interval=0.05, teacher=0.9)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_an_estimate_of_the_kl_below_0_is_in_the_picture(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    history = [{"step": s, "accuracy": 0.5, "reverse_kl": kl, "keep_ratio": 0.8} for s, kl in ((1, 0.1), (2, -0.05))]
    draw_learning_curve(history, tmp_path / "c.png", title="", before=0.4, after=0.6, interval=0.1, teacher=0.9)
    low, high = figures[0].axes[1].get_ylim()
    assert low < -0.05 and high > 0.1
