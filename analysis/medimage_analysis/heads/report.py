"""What is written beside the weights of a head: tables in Markdown, and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medimage_analysis.heads.head import Head, Scores
from medimage_analysis.heads.measures import HeadMeasures, Point, Targets, calibration
from medimage_client.cli.evaluate_classification import TITLES, cell
from medimage_client.labels.pictures import DPI, confusion_matrix, import_figure, png, roc_curves

POINT_TITLES = {"youden_j": "Youden's J", "sensitivity_90": "sensitivity 0.9", "best_f1": "best F1"}
Curve = Sequence[tuple[int, float, float]]  # images to learn from, their share, and the measure on the test part


def write_pictures(
    folder: Path, head: Head, found: HeadMeasures, scores: Scores, targets: Targets, curve: Curve
) -> None:
    curves = {
        f"{label} ({found.of_label[label]['auc'].value:.3f})": (targets[:, i], scores[:, i])
        for i, label in enumerate(head.labels)
    }
    (folder / "roc.png").write_bytes(roc_curves(curves))
    (folder / "calibration.png").write_bytes(calibration_curve(scores, targets))
    if found.confusion is not None:
        (folder / "confusion.png").write_bytes(confusion_matrix(head.labels, found.confusion))
    if curve:
        (folder / "learning_curve.png").write_bytes(learning_curve_picture(curve))


def calibration_curve(scores: Scores, targets: Targets) -> bytes:
    """A PNG: of the scores in each bin their mean, and the share that is true."""
    figure = import_figure()(figsize=(5.2, 5.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1, zorder=0)
    mean_scores, shares, _ = zip(*calibration(scores, targets), strict=True)
    axes.plot(mean_scores, shares, marker="o")
    axes.set_xlabel("score")
    axes.set_ylabel("share of images that have the label")
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def learning_curve_picture(curve: Curve) -> bytes:
    figure = import_figure()(figsize=(5.6, 4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    sizes, values = [n for n, _, _ in curve], [value for *_, value in curve]
    axes.semilogx(sizes, values, marker="o")
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    axes.set_ylim(min(0.9, *values) - 0.02, 1.01)
    axes.set_xlabel("images to learn from")
    axes.set_ylabel("mAUC of the test part")
    axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column is text, the others are numbers."""
    marks = ["---", *(["---:"] * (len(head) - 1))]
    return [f"| {' | '.join(escaped(value) for value in row)} |" for row in [head, marks, *rows]]


def escaped(text: str) -> str:
    return text.replace("|", "\\|")


def render_report(
    head: Head,
    chosen: Mapping[str, Any],
    sizes: Mapping[str, int],
    found: HeadMeasures,
    points: Mapping[str, Mapping[str, Point]],
    at_points: Mapping[str, Mapping[str, Point]],
    curve: Curve,
) -> str:
    """Markdown, with the pictures beside it.

    Args:
        chosen: what the validation part has chosen.
        sizes: images of each part.
        points: operating points of the validation part; `at_points` what they are on the test part.
    """
    told = ", ".join(f"{name} {value:g}" for name, value in chosen.items() if isinstance(value, int | float))
    kind = f"{head.kind}, {'labels by themselves' if head.multilabel else 'one label an image'}"
    lines = [
        "# Head",
        "",
        f"Kind: {kind}. Vectors of {head.encoder}.",
        "",
        f"Images: {', '.join(f'{n} {name}' for name, n in sizes.items())}."
        + (f" Chosen by the validation part: {told}." if told else ""),
        "",
        "For research only, not for clinical use.",
        "",
        "## Test part",
        "",
        *markdown_table(["", "score"], [[TITLES[name], cell(one)] for name, one in found.overall.items()]),
        "",
        f"Calibration error: {found.calibration_error:.3f}. In brackets 95 % intervals of a bootstrap.",
        "",
        *markdown_table(
            ["label", "images", "precision", "recall", "F1", "AUC", "MCC"],
            [[label, str(found.counts[label]), *map(cell, ones.values())] for label, ones in found.of_label.items()],
        ),
        "",
        "![ROC curves](roc.png)",
        "",
        *(["![Confusion matrix](confusion.png)", ""] if found.confusion is not None else []),
        "![Calibration](calibration.png)",
        "",
        "## Operating points",
        "",
        "A label counts as found from the threshold on. Thresholds are of the validation part; sensitivity, "
        "specificity and F1 are those of the test part.",
        "",
        *markdown_table(
            ["label", "point", "threshold", "sensitivity", "specificity", "F1"],
            [
                [
                    label,
                    POINT_TITLES[name],
                    f"{points[label][name].threshold:.4f}",
                    *(f"{value:.3f}" for value in (one.sensitivity, one.specificity, one.f1)),
                ]
                for label, ones in at_points.items()
                for name, one in ones.items()
            ],
        ),
        "",
    ]
    if curve:
        rows = [[f"{share:g}", str(n), f"{value:.3f}"] for n, share, value in curve]
        lines += ["## Learning curve", "", *markdown_table(["share", "images", "mAUC"], rows), ""]
        lines += ["![Learning curve](learning_curve.png)", ""]
    return "\n".join(lines)
