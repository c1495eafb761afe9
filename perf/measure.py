"""One way to measure: calls in alternating rounds, and a report that says on which machine and at which commit."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Generic, TypeVar

import click
import onnxruntime
import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "perf" / "results"
QUICK_RESULTS = ROOT / "build" / "perf"
PACKAGES = ("medimage-triton", "numpy", "pillow", "tritonclient", "nvidia-pytriton")

Result = TypeVar("Result")
Clock = Callable[[], float]

quick_option = click.option(
    "--quick", is_flag=True, help="Little of everything, to see that it runs; the result goes to build/perf."
)


@dataclass(frozen=True)
class Timed(Generic[Result]):
    """One call over all rounds, in milliseconds."""

    result: Result  # of the first call
    first_ms: float  # not one of the rounds: it also allocates and, for torch.compile, compiles
    times_ms: list[float]

    def spread(self) -> dict[str, float]:
        """As the results have it: the median, and the range."""
        return {
            "median_ms": statistics.median(self.times_ms),
            "min_ms": min(self.times_ms),
            "max_ms": max(self.times_ms),
        }


def wall_clock() -> float:
    return time.perf_counter()


def alternate(
    calls: Mapping[str, Callable[[], Result]], rounds: int, *, pause_s: float = 0.0
) -> dict[str, list[Result]]:
    """What each call gives in each round. A noisy machine so disturbs all of them alike."""
    results: dict[str, list[Result]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(rounds):
        for name in order:
            time.sleep(pause_s)
            results[name].append(calls[name]())
        order.append(order.pop(0))  # so that nobody always starts
    return results


def side_by_side(
    calls: Mapping[str, Callable[[], Result]],
    rounds: int,
    *,
    clock: Clock = wall_clock,
    pause_s: float = 0.0,
) -> dict[str, Timed[Result]]:
    """Make every call once unmeasured, then time all of them in alternating rounds."""
    stopwatches = {name: partial(timed, call, clock) for name, call in calls.items()}
    first = {name: stopwatch() for name, stopwatch in stopwatches.items()}
    return {
        name: Timed(first[name][0], 1e3 * first[name][1], [1e3 * seconds for _, seconds in rows])
        for name, rows in alternate(stopwatches, rounds, pause_s=pause_s).items()
    }


def timed(call: Callable[[], Result], clock: Clock = wall_clock) -> tuple[Result, float]:
    """What a call gives, and its seconds."""
    started = clock()
    result = call()
    return result, clock() - started


class Report:
    """What a run has measured, as JSON. Written after each part, so that a run that is stopped leaves what it has."""

    def __init__(self, name: str, *, quick: bool) -> None:
        self.path = (QUICK_RESULTS if quick else RESULTS) / f"{name}.json"
        self.content: dict = {"machine": machine()}

    def resume(self) -> None:
        """Go on with what a run on this machine, at this commit, has left; with nothing if another one has."""
        if self.path.is_file():
            earlier = json.loads(self.path.read_text())
            if self.content["machine"].items() <= earlier["machine"].items():
                self.content = earlier

    def put(self, **sections: object) -> None:
        """Add sections, or to those that are mappings already, and write the file whole."""
        for name, value in sections.items():
            if isinstance(value, Mapping):
                value = self.content.get(name, {}) | value
            self.content[name] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=2) + "\n")
        partial.replace(self.path)


def machine() -> dict[str, object]:
    """What the numbers were measured on."""
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return {
        "cpu": cpu.split(":")[1].strip(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "packages": {package: installed_version(package) for package in PACKAGES},
        "commit": commit.stdout.strip(),
    }


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # nvidia-pytriton in NVIDIA's container, which has its own Triton
        return None
