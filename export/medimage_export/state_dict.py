"""Do the tensors of a checkpoint have the names and shapes of the model, and are they numbers?"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from medimage_export.errors import CheckpointError

MAX_NAMES = 50  # listed per kind of mismatch: more only hide the cause


def check_shapes(expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]], path: Path) -> None:
    """Compare shapes by name.

    Raises:
        CheckpointError: names what is missing, unexpected or mis-shaped.
    """
    shapes = (
        f"{key} {list(found[key])} instead of {list(expected[key])}"
        for key in sorted(expected.keys() & found.keys())
        if list(found[key]) != list(expected[key])
    )
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "mis-shaped": list(shapes),
    }
    listed = [f"{len(names)} {kind}: {_listing(names)}" for kind, names in problems.items() if names]
    if listed:
        raise CheckpointError(f"{path.name} does not match its config; {'; '.join(listed)}")


def check_finite(tensors: Iterable[tuple[str, Tensor]], path: Path) -> None:
    """Look at every number.

    Raises:
        CheckpointError: names the tensors that hold a NaN or an infinity, and how many.
    """
    broken = [
        f"{name} ({count} of {tensor.numel()} numbers)"
        for name, tensor in tensors
        if (count := tensor.numel() - int(tensor.isfinite().sum()))
    ]
    if broken:
        raise CheckpointError(f"{path.name} holds NaN or infinity: {_listing(broken)}; is the file damaged?")


def _listing(names: list[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f", and {more} more" if more > 0 else "")
