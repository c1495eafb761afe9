"""Pictures of how right predicted labels are: the confusion matrix and the ROC curves."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimage_client.errors import MissingExtra

DPI = 150
N_COLOURS = 10  # of matplotlib's cycle, after which the next kind of line begins
LINES = ("-", "--", ":", "-.")


def confusion_matrix(labels: Sequence[str], confusion: NDArray[np.int64]) -> bytes:
    """A PNG of counts of images, true labels down and predicted ones across; colours are shares of the true label."""
    figure_of = import_figure()
    side = 2.5 + 0.32 * len(labels)  # inches
    figure = figure_of(figsize=(side + 1, side), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    shares = confusion / confusion.sum(axis=1, keepdims=True)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(confusion):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, confusion[row, column], ha="center", va="center", color=colour, fontsize=8)
    places = range(len(labels))
    axes.set_xticks(places, [shown(label) for label in labels], rotation=90, fontsize=8)
    axes.set_yticks(places, [shown(label) for label in labels], fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return png(figure)


def roc_curves(curves: Mapping[str, tuple[NDArray[np.bool_], NDArray[np.floating[Any]]]]) -> bytes:
    """A PNG of ROC curves, by their text in the legend: which images are positive, and the score of each."""
    figure_of = import_figure()
    from sklearn.metrics import roc_curve

    width = 6.8 + 0.07 * max(map(len, curves))  # inches: of the axes and of the longest text
    figure = figure_of(figsize=(width, max(5.2, 0.19 * len(curves))), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for index, (text, (positive, scores)) in enumerate(curves.items()):
        false_positive_rate, true_positive_rate, _ = roc_curve(positive, scores)
        style = LINES[index // N_COLOURS % len(LINES)]
        axes.plot(false_positive_rate, true_positive_rate, label=shown(text), linestyle=style)
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1, zorder=0)
    axes.set_xlabel("1 - specificity")
    axes.set_ylabel("sensitivity")
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right center", fontsize=8)
    return png(figure)


def shown(text: str) -> str:
    """As it stands: matplotlib reads what is between two dollar signs as a formula, and drops what begins with _."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def png(figure: Any) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def import_figure() -> Any:
    """Matplotlib's class of a picture, without the state that pyplot keeps."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("a picture", "matplotlib", "evaluate") from None
    return Figure
