"""The colours and the style that the pictures of comparisons and benchmarks share."""

# Okabe and Ito: told apart with any kind of colour vision, and in grey.
BLUE, ORANGE, VERMILION, GREY = "#0072B2", "#E69F00", "#D55E00", "#7a7a7a"
COLORS = {"higher": BLUE, "lower": VERMILION, "unclear": GREY, "none": GREY}
VERDICTS = {
    "higher": "higher, after Holm at 5 %",
    "lower": "lower, after Holm at 5 %",
    "unclear": "not distinguishable",
    "none": "no interval: too few seeds",
}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "fire-opd",  # equal results make equal files
}


def pyplot():
    """Return `matplotlib.pyplot`, which draws into files and opens no window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt
