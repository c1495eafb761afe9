"""The latency of the whole path by image size, as a picture."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

COLOURS = ("#999999", "#0072B2", "#009E73", "#D55E00", "#CC79A7")  # Okabe and Ito: told apart with any colour vision
GROUP_WIDTH = 0.8


def latency_by_size(path: Mapping[str, Any]) -> Figure:
    """Grouped bars of the medians with their range over the rounds; a black line is the decoding alone."""
    cases = path["cases"]
    runtimes = list(next(iter(cases.values()))["runtimes"])
    seconds = any(case["runtimes"][runtimes[0]]["median_ms"] >= 1000 for case in cases.values())
    scale, unit = (1e-3, "s") if seconds else (1, "ms")
    places = np.arange(len(cases))
    width = GROUP_WIDTH / len(runtimes)

    figure = Figure(figsize=(8, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for index, (runtime, colour) in enumerate(zip(runtimes, COLOURS[: len(runtimes)], strict=True)):
        timings = [case["runtimes"][runtime] for case in cases.values()]
        medians = scale * np.array([timing["median_ms"] for timing in timings])
        below = medians - scale * np.array([timing["min_ms"] for timing in timings])
        above = scale * np.array([timing["max_ms"] for timing in timings]) - medians
        bars = axes.bar(
            places + (index - (len(runtimes) - 1) / 2) * width,
            medians,
            width * 0.92,
            yerr=(below, above),
            color=colour,
            ecolor="#444444",
            capsize=3,
            label=runtime,
        )
        axes.bar_label(bars, fmt="%.2f" if seconds else "%.0f", padding=2, fontsize=8)
    decoding = scale * np.array([case["decode"]["median_ms"] for case in cases.values()])
    half = GROUP_WIDTH / 2
    axes.hlines(decoding, places - half, places + half, color="black", linewidth=1.5, label="decoding the PNG alone")

    axes.set_xticks(places, [f"{size} px" for size in cases])
    axes.set_ylabel(f"PNG in, vector out: latency, {unit}")
    axes.grid(axis="y", color="#DDDDDD")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside upper center", ncols=len(runtimes) + 1, fontsize=9)
    return figure
