"""Pictures of results: the latency of the whole path by image size, and how cost grows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

COLOURS = ("#999999", "#0072B2", "#009E73", "#D55E00", "#CC79A7")  # Okabe and Ito: told apart with any colour vision
GROUP_WIDTH = 0.8
TOWERS = {"image": ("#0072B2", "o"), "text": ("#D55E00", "s")}  # of Okabe and Ito's colours for the colour-blind


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


def growth(report: Mapping[str, Any]) -> Figure:
    """How cost grows, by the report of the case `scaling`: four panels, one line for each tower."""
    figure = Figure(figsize=(10, 7), dpi=150, layout="constrained")
    with rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        (latency, peak), (rate, p99) = figure.subplots(2, 2)
        batches, loads = report["batches"], report["serving"]["loads"]
        panel(latency, batches, "batch", lambda row: row["median_ms"], "time of a batch (ms)")
        panel(peak, batches, "batch", lambda row: row["peak_bytes"] / 1e6, "peak memory of the process (MB)", "linear")
        panel(rate, loads, "concurrency", lambda row: row["per_second"], "requests per second")
        panel(p99, loads, "concurrency", lambda row: row["p99_ms"], "99th percentile latency (ms)")
        for axes in (latency, peak):
            axes.set_xlabel("batch size (encoder alone, ONNX Runtime)")
        for axes in (rate, p99):
            axes.set_xlabel("requests in flight (whole path, Triton)")
        latency.legend(frameon=False, loc="upper left")
    return figure


def panel(axes: Axes, rows: Sequence[dict], x: str, y: Callable[[dict], float], label: str, scale: str = "log") -> None:
    """One quantity over a base-2 axis; over decades, because an image costs many times a text, or from zero."""
    for tower, (colour, marker) in TOWERS.items():
        points = [(row[x], y(row)) for row in rows if row["tower"] == tower]
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=tower)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({row[x] for row in rows}))
    axes.xaxis.set_minor_locator(NullLocator())
    if scale == "log":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_ylabel(label)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
