"""The learning curve of the demo: does the student get better, and does it come closer to the teacher?"""

from pathlib import Path


def draw_learning_curve(
    history: list[dict[str, float]],
    path: Path,
    *,
    title: str,
    before: float,
    after: float,
    interval: float,
    teacher: float,
) -> None:
    """
    Draw accuracy, KL to the teacher and kept share over optimizer steps.

    Args:
        history (`list[dict]`): One dict for each step with `step`, `accuracy`, `reverse_kl`, `keep_ratio`.
        path (`Path`): Where the picture goes; the ending decides the format.
        title (`str`): What was run.
        before, after, interval (`float`): Held-out accuracy with the half width of its 95 % interval.
        teacher (`float`): Held-out accuracy of the teacher.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import PercentFormatter

    steps = [entry["step"] for entry in history]
    figure, (top, middle, bottom) = plt.subplots(
        3, 1, figsize=(7, 7), sharex=True, height_ratios=[3, 2, 1], layout="constrained"
    )
    top.set_title(title, loc="left", fontsize=11)
    top.plot(steps, [entry["accuracy"] for entry in history], color="#8fb3d9", lw=1.2, label="sampled in training")
    top.errorbar([0, steps[-1]], [before, after], yerr=interval, fmt="o", color="#1f4e79", capsize=4, label="held out")
    top.axhline(teacher, color="#b5651d", ls="--", lw=1, label="teacher, held out")
    for x, value, shift in ((0, before, (-6, -40)), (steps[-1], after, (-10, -22))):
        top.annotate(
            f"{value:.1%}",
            (x, value),
            shift,
            textcoords="offset points",
            ha="left" if x == 0 else "right",
            fontsize=10,
        )
    top.set_ylabel("exact match")
    top.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    top.set_ylim(0, 1.04)
    top.legend(loc="lower right", frameon=False, fontsize=9)

    middle.plot(steps, [entry["reverse_kl"] for entry in history], color="#1f4e79", lw=1.2)
    middle.set_ylabel("KL(student || teacher),\nestimated, nats a token")
    middle.axhline(0, color="black", lw=0.6)  # an estimate from sampled tokens can lie below it

    bottom.plot(steps, [entry["keep_ratio"] for entry in history], color="#1f4e79", lw=1.2)
    bottom.set_ylabel("kept\ntrajectories")
    bottom.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bottom.set_ylim(0, 1.04)
    bottom.set_xlabel("optimizer step")
    for axes in (top, middle, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    figure.savefig(path, dpi=140)
    plt.close(figure)
