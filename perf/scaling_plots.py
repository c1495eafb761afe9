"""How cost grows, as a picture: four panels, one line for each tower.

Run: by scaling.py, or `python -m perf.scaling_plots` to draw perf/results/scaling.json again
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only, no window
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

ROOT = Path(__file__).parents[1]
TOWERS = {"image": ("#0072B2", "o"), "text": ("#D55E00", "s")}  # of Okabe and Ito's colours for the colour-blind


def plot(report: dict, path: Path) -> None:
    """Draw the report of scaling.py."""
    with plt.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure, ((latency, peak), (rate, p99)) = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
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
        figure.savefig(path, dpi=150)
        plt.close(figure)


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


if __name__ == "__main__":
    plot(json.loads((ROOT / "perf" / "results" / "scaling.json").read_text()), ROOT / "docs" / "scaling.png")
