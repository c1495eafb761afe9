"""Parts of the images to train on, to choose by and to test with: no group in two of them, labels alike in all.

Shapes: n images, g groups, c labels.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medimage_client.errors import InvalidInput

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
DEFAULT_SHARES = (0.7, 0.15, 0.15)


def split(
    targets: NDArray[np.bool_], groups: Sequence[str], *, seed: int, shares: Sequence[float] = DEFAULT_SHARES
) -> NDArray[np.int64]:
    """Of each image the index of its part in SPLITS; the same for the same arguments.

    Iterative stratification (Sechidis et al., ECML 2011) of groups instead of single images: those of the rarest label
    go first, each to the part that lacks it most. Validation and test get a group of each label, if there are enough.

    Args:
        targets: (n, c).
        groups: of each image, such as its patient.
    """
    names, member_of = np.unique(groups, return_inverse=True)
    has = np.zeros((len(names), targets.shape[1]), bool)  # (g, c)
    np.logical_or.at(has, member_of, targets)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(names))
    lacking = np.outer(shares, has.sum(axis=0))  # (parts, c): groups of each label that a part is to get yet
    lacking[1:] = np.maximum(lacking[1:], 1)
    lacking[0] = has.sum(axis=0) - lacking[1:].sum(axis=0)
    room = np.array(shares) * len(names)  # (parts)
    part = np.full(len(names), -1)
    for label in np.argsort(has.sum(axis=0), kind="stable"):
        for group in order[has[order, label] & (part[order] < 0)]:
            best = np.lexsort((-room, -lacking[:, label]))[0]
            part[group] = best
            lacking[best] -= has[group]
            room[best] -= 1
    for group in order[part[order] < 0]:  # without any label
        part[group] = np.argmax(room)
        room[part[group]] -= 1
    found: NDArray[np.int64] = part[member_of]
    return found


def check_no_leak(parts: NDArray[np.int64], groups: Sequence[str], ids: Sequence[str], place: str) -> None:
    """Raise InvalidInput if a group is in two parts."""
    first: dict[str, int] = {}
    for row, group in enumerate(groups):
        other = first.setdefault(group, row)
        if parts[row] != parts[other]:
            raise InvalidInput(
                f"{place}: the group {group!r} is in {SPLITS[parts[other]]} (id {ids[other]!r}) and in "
                f"{SPLITS[parts[row]]} (id {ids[row]!r}); put all images of a group into one part"
            )


def check_labels_in_parts(
    targets: NDArray[np.bool_], parts: NDArray[np.int64], labels: Sequence[str], place: str, remedy: str
) -> None:
    """Raise InvalidInput unless each label has images with it, and without it, in each part."""
    for index, name in enumerate(SPLITS):
        there = targets[parts == index]
        for column, label in enumerate(labels):
            n = int(there[:, column].sum())
            if n == 0 or n == len(there):
                what = "no image" if n == 0 else "each image"
                raise InvalidInput(f"{place}: {what} of {name} has {label!r}; {remedy}")
