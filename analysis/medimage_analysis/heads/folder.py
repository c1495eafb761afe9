"""The folder of a head: written whole or not at all."""

import csv
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimage_analysis.heads.head import DESCRIPTION, REPORT, SPLITS_FILE, Head, read_description
from medimage_analysis.heads.labelled import Labelled
from medimage_analysis.heads.measures import measured, operating_points, point_at
from medimage_analysis.heads.report import Curve, render_report, write_pictures
from medimage_analysis.heads.splits import SPLITS
from medimage_client.errors import InvalidInput

THRESHOLD_OF = "best_f1"  # with which labels by themselves count as found, where one is needed


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which takes its place when the block has ended well.

    Raises:
        InvalidInput: there is something at that path, or no folder to put it into.
    """
    if path.exists():
        raise InvalidInput(f"{path} is there already; remove it, or name another folder")
    if not path.absolute().parent.is_dir():
        raise InvalidInput(f"{path}: folder {path.absolute().parent} does not exist; make it first")
    partial = path.with_name(f".{path.name}-{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_head(
    folder: Path,
    head: Head,
    labelled: Labelled,
    parts: NDArray[np.int64],
    *,
    settings: Mapping[str, Any],
    chosen: Mapping[str, Any],
    curve: list[tuple[float, int, Head]],
    samples: int,
) -> dict[str, Any]:
    """Everything of a head that was measured; returns the metrics of its test part, as in head.json.

    Args:
        parts: of each labelled image its index in splits.SPLITS.
        curve: heads of shares of the training images, with how many these are.
        samples: of the bootstrap; there is none where a label has a single image in the test part.
    """
    test, validation = (labelled.take(np.flatnonzero(parts == SPLITS.index(name))) for name in ("test", "validation"))
    points = operating_points(head.scores(validation.vectors), validation.targets, head.labels)
    scores = head.scores(test.vectors)
    found = measured(
        test.ids,
        head.labels,
        scores,
        test.targets,
        multilabel=head.multilabel,
        thresholds={label: ones[THRESHOLD_OF].threshold for label, ones in points.items()},
        samples=samples if test.targets.sum(axis=0).min() > 1 else 0,
    )
    at_points = {
        label: {name: point_at(one.threshold, scores[:, i], test.targets[:, i]) for name, one in points[label].items()}
        for i, label in enumerate(head.labels)
    }
    steps: Curve = [(n, share, mauc(one, test)) for share, n, one in curve]
    sizes: dict[str, int] = {name: int((parts == index).sum()) for index, name in enumerate(SPLITS)}
    head.save(
        folder,
        settings=settings,
        chosen=chosen,
        images=sizes,
        operating_points={label: {name: asdict(one) for name, one in ones.items()} for label, ones in points.items()},
        test=found.to_json(),
        learning_curve=[{"share": share, "images": n, "mauc": value} for n, share, value in steps],
    )
    write_splits(folder / SPLITS_FILE, labelled, parts)
    write_pictures(folder, head, found, scores, test.targets, steps)
    report = render_report(head, chosen, sizes, found, points, at_points, steps)
    (folder / REPORT).write_text(report, encoding="utf-8")
    return found.to_json()


def mauc(head: Head, test: Labelled) -> float:
    from medimage_analysis.heads.fitting import goodness

    return goodness(head.scores(test.vectors), test.targets, "auc", multilabel=head.multilabel)


def write_splits(path: Path, labelled: Labelled, parts: NDArray[np.int64]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "group", "split"])
        writer.writerows(zip(labelled.ids, labelled.groups, (SPLITS[part] for part in parts), strict=True))


def learnt_from(folder: Path) -> set[str]:
    """The ids of the images that a head was trained on or chosen by; none of one made of texts alone."""
    try:
        with (folder / SPLITS_FILE).open(encoding="utf-8", newline="") as file:
            return {row["id"] for row in csv.DictReader(file) if row["split"] != "test"}
    except FileNotFoundError:
        return set()
    except (OSError, KeyError, UnicodeDecodeError):
        raise InvalidInput(f"{folder / SPLITS_FILE}: cannot be read; it tells what the head has seen") from None


def thresholds_of(folder: Path) -> dict[str, float]:
    """Of each label, by THRESHOLD_OF; empty of a head that has none."""
    points = read_description(folder).get("operating_points") or {}
    try:
        return {label: float(ones[THRESHOLD_OF]["threshold"]) for label, ones in points.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InvalidInput(f"{folder / DESCRIPTION}: its operating points are damaged; train the head again") from None
