"""The results as Markdown: the floor, the table of the model card, and what stands behind it.

Everything is read from the JSON of a run. Sections that a run has not measured (yet) are left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from perf.suite.device import OURS
from perf.suite.floor import floor_ms

Content = Mapping[str, Any]

# Points by which an export may differ from PyTorch in fp32, of Accuracy, BACC and mAUC.
GOALS = {"fp16": (0.2, 0.2, 0.1), "bf16": (0.2, 0.2, 0.1), "int8": (0.5, 0.5, 0.5)}
CARD = ("**Image size**", "**Model**", "**Latency** (ms)", "**Speed-up**", "**Accuracy**", "**BACC**", "**mAUC**")
NONE = "-"


def report(content: Content) -> str:
    """The whole report."""
    parts = [about(content["about"])]
    if "floor" in content:
        parts.append(floor(content["floor"]))
    if "whole_path" in content and "accuracy" in content:
        parts.append(card(content["whole_path"], content["accuracy"]))
    if "encoders" in content:
        parts.append(encoders(content["encoders"], content["floor"]))
    if "whole_path" in content:
        parts.append(whole_path(content["whole_path"]))
    if "accuracy" in content:
        parts.append(accuracy(content["accuracy"]))
    return "\n\n".join(parts) + "\n"


def about(run: Content) -> str:
    """Machine, versions, weights and commit in a line."""
    device = run["gpu"] if run["device"] == "cuda" else f"{run['cpu']}, {run['cores']} cores"
    versions = f"torch {run['torch']}, onnxruntime {run['onnxruntime']}"
    return f"{device}; {versions}; {run['weights']}; commit {run['commit']}"


def floor(rates: Content) -> str:
    """The matrix rates, and an image's published arithmetic at each of them."""
    rows = [(precision, f"{rate['gflop_per_s']:,.0f}", _ms(rate["image_ms"])) for precision, rate in rates.items()]
    return (
        "The floor: the machine's best matrix rate at the shapes of the image encoder, and one image's published "
        "615 GFLOP at that rate. The exported graph does 581 of them.\n\n"
        + table(("precision", "GFLOP/s", "image ms"), rows, left=1)
    )


def card(path: Content, scores: Content) -> str:
    """PNG in, vector out, in the layout of the model card; speed-up is the reduction of the baseline's latency."""
    rows = []
    for size, case in path["cases"].items():
        baseline, *others = case["runtimes"].items()
        rows.append((f"**{size}**", f"**Baseline** ({baseline[0]})", *_card_cells(baseline, None, scores)))
        rows += [("", name, *_card_cells((name, timing), baseline[1], scores)) for name, timing in others]
    return (
        f"One PNG in, its vector out, batch 1; ours {path['through']}. Speed-up is the reduction of the "
        "baseline's latency. Accuracy, BACC and mAUC are of the phantom checkpoint, measured once for each precision "
        f"on {scores['drawings']:,} drawings of 512 x 512.\n\n" + table(CARD, rows, left=2)
    )


def _card_cells(runtime: tuple[str, Content], baseline: Content | None, scores: Content) -> tuple[str, ...]:
    name, timing = runtime
    quality = scores["runtimes"][name]
    speed_up = NONE if baseline is None else f"**{reduction(baseline['median_ms'], timing['median_ms']):.2%}**"
    return (
        _ms(timing["median_ms"]),
        speed_up,
        *(f"{quality[metric]:.2%}" for metric in ("accuracy", "balanced_accuracy", "macro_auc")),
    )


def reduction(baseline_ms: float, ms: float) -> float:
    """The fraction of the baseline's latency that is saved; negative where it is slower."""
    return 1 - ms / baseline_ms


def encoders(cases: Content, rates: Content) -> str:
    """The encoders alone, with the share of the floor that each reaches where it does the work that is counted."""
    rows, notes = [], []
    for name, case in cases.items():
        baseline_ms = next(iter(case["runtimes"].values()))["median_ms"]
        for runtime, timing in case["runtimes"].items():
            rate = rates.get(runtime.split()[-1])  # by precision; none of bf16 where it was not measured
            share = NONE
            if rate and case["gflop"] and _does_the_counted_work(name, runtime):
                share = f"{floor_ms(case['gflop'], rate['gflop_per_s']) / timing['median_ms']:.0%}"
            rows.append(
                (
                    name,
                    runtime,
                    _ms(timing["median_ms"]),
                    _spread(timing),
                    f"{baseline_ms / timing['median_ms']:.2f}",
                    share,
                    f"{timing['max_abs_difference']:.1e}",
                    f"{timing['min_cosine']:.6f}",
                )
            )
        notes += [f"{name}: {runtime} was not measured. {reason}" for runtime, reason in case["not_measured"].items()]
    header = ("case", "runtime", "median ms", "min-max ms", "baseline ÷ it", "floor ÷ it", "max diff", "min cosine")
    text = "Encoders alone, from pixels or token ids to vectors; differences are from the baseline's vectors.\n\n"
    return "\n\n".join([text + table(header, rows, left=2), *notes])


def _does_the_counted_work(case: str, runtime: str) -> bool:
    """Texts are counted without their padding, which the exports cut; the baselines compute all 77 tokens."""
    return runtime.startswith(OURS) or not case.endswith("tokens")


def whole_path(path: Content) -> str:
    """The spread behind the card's table, and the time in which the PNG alone is decoded."""
    rows = []
    for size, case in path["cases"].items():
        baseline_ms = next(iter(case["runtimes"].values()))["median_ms"]
        rows.append((size, "Pillow, decoding alone", _ms(case["decode"]["median_ms"]), _spread(case["decode"]), "", ""))
        rows += [
            (
                size,
                runtime,
                _ms(timing["median_ms"]),
                _spread(timing),
                f"{baseline_ms / timing['median_ms']:.2f}",
                f"{timing['min_cosine']:.6f}",
            )
            for runtime, timing in case["runtimes"].items()
        ]
    header = ("image size", "runtime", "median ms", "min-max ms", "baseline ÷ it", "min cosine")
    return f"The whole path, preprocessing profile `{path['profile']}`.\n\n" + table(header, rows, left=2)


def accuracy(scores: Content) -> str:
    """Each precision's quality, its difference from the first one in percentage points, and whether that is allowed."""
    metrics = ("accuracy", "balanced_accuracy", "macro_auc")
    reference = next(iter(scores["runtimes"].values()))
    rows = [
        (
            name,
            *(f"{quality[m]:.2%} ({_points(quality[m], reference[m]):+.2f})" for m in metrics),
            _goal(name, [_points(quality[m], reference[m]) for m in metrics]),
            str(quality["changed_answers"]),
            f"{quality['min_cosine']:.6f}",
        )
        for name, quality in scores["runtimes"].items()
    ]
    goals = "; ".join(f"{precision} {', '.join(map(str, points))}" for precision, points in GOALS.items())
    header = (
        "phantom checkpoint",
        "Accuracy (points)",
        "BACC (points)",
        "mAUC (points)",
        "goal",
        "changed answers",
        "min cosine",
    )
    return (
        f"{scores['drawings']:,} unseen drawings, {scores['normal']} of each exam without a finding and "
        f"{scores['finding']} with each finding; in brackets the points that it differs from the first row. "
        f"Goals of an export, in points of Accuracy, BACC and mAUC: {goals}.\n\n" + table(header, rows, left=1)
    )


def _points(fraction: float, reference: float) -> float:
    return round(100 * (fraction - reference), 6)  # 0.2 points are 0.2, and not a little more


def _goal(runtime: str, points: Sequence[float]) -> str:
    """Whether an export meets the goal of its precision; of fp32, and of what is not ours, nothing is asked."""
    precision = runtime.split()[-1]
    if not runtime.startswith(OURS) or precision not in GOALS:
        return NONE
    met = all(abs(moved) <= goal for moved, goal in zip(points, GOALS[precision], strict=True))
    return "met" if met else "missed"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """A Markdown table, its first `left` columns aligned left and the others right, padded to be read as text, too."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if column < left else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.1f}"


def _spread(timing: Content) -> str:
    return f"{_ms(timing['min_ms'])}-{_ms(timing['max_ms'])}"
