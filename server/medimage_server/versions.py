"""The oldest versions of Triton and of ONNX Runtime that serve what was exported; docs/versions.md has the table."""

import re
from importlib import metadata

from medimage_server.errors import LaunchError

OLDEST_TRITON = (2, 51)  # the oldest that was tried
OLDEST_ONNXRUNTIME = (1, 23)  # of this Python: the first that reads the decoder of reports, opset 23 in IR version 11


def check_triton(version: str) -> None:
    """Raises LaunchError for a Triton that is too old. What is not a release's version may be any, and passes."""
    if is_before(version, OLDEST_TRITON):
        raise LaunchError(f"this is Triton {version}; expected {name(OLDEST_TRITON)} (NVIDIA's release 24.10) or later")


def check_onnxruntime() -> None:
    """Raises LaunchError for a package that is too old. None may be installed, where no report is written."""
    for package in ("onnxruntime-gpu", "onnxruntime"):
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        if is_before(version, OLDEST_ONNXRUNTIME):
            oldest = name(OLDEST_ONNXRUNTIME)
            raise LaunchError(
                f"this is {package} {version}; expected {oldest}: run `pip install '{package}>={oldest}'`"
            )


def is_before(version: str, oldest: tuple[int, int]) -> bool:
    """Whether a version is before a release (major, minor); one that does not begin with numbers is not."""
    release = re.match(r"(\d+)\.(\d+)", version)
    return release is not None and (int(release[1]), int(release[2])) < oldest


def name(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))
