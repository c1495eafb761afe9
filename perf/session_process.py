"""A bare ONNX Runtime session in a process of its own, for a memory peak that is its alone.

It imports nothing that the session does not need, and prints one line of JSON. On a GPU the memory is the host's.

Run: by scaling.py, as `session_process.py MODEL.onnx INPUTS.npz SECONDS REPEATS`
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnxruntime

from medimage_server.onnx_settings import open_session, session_options

CUDA = "CUDAExecutionProvider"


def main(model: str, inputs: str, seconds: float, repeats: int) -> None:
    feed = dict(np.load(inputs))
    before = peak_bytes()
    started = time.perf_counter()
    session = session_as_served(Path(model))
    load_s, loaded = time.perf_counter() - started, peak_bytes()
    session.run(None, first_row(feed))  # not measured: starts the threads, and reads the weights for the first time
    times = repeat(lambda: session.run(None, feed), seconds=seconds, repeats=repeats)
    print(
        json.dumps(
            {
                "provider": session.get_providers()[0],
                "load_s": load_s,
                "times_s": times,
                "process_bytes": before,
                "loaded_bytes": loaded,
                "peak_bytes": peak_bytes(),
            }
        )
    )


def session_as_served(model: Path) -> onnxruntime.InferenceSession:
    """With the server's options, on CUDA where onnxruntime was built with it, else on the CPU; ends if CUDA fails."""
    if not model.is_file():
        sys.exit(f"no {model}: run `medimage export` with --format onnx")
    kind = "GPU" if CUDA in onnxruntime.get_available_providers() else "CPU"
    with redirect_stdout(sys.stderr):  # onnxruntime prints which libraries it misses, and stdout is for the numbers
        session = open_session(model.name, model, session_options({"name": model.name}), kind=kind, device_id=0)
    if kind == "GPU" and CUDA not in session.get_providers():
        sys.exit(f"{model} would run on the CPU, because this onnxruntime cannot load CUDA: install CUDA and cuDNN")
    return session


def repeat(call: Callable[[], object], *, seconds: float, repeats: int) -> list[float]:
    """Seconds of each call: once, and again as long as another fits into `seconds`, `repeats` times at most."""
    times: list[float] = []
    while not times or (len(times) < repeats and sum(times) + max(times) <= seconds):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return times


def first_row(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values[:1] for name, values in feed.items()}


def peak_bytes() -> int:
    """The most that this process had resident until now."""
    # not getrusage(), which counts what the parent had when it forked
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
