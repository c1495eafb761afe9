"""A bare ONNX Runtime session as it is served, and in a process of its own, for a memory peak that is its alone.

As a program it imports nothing that the session does not need, and prints one line of JSON. On a GPU the memory is the
host's.

Run: by cases/scaling.py, as `python -m perf.sessions MODEL.onnx INPUTS.npz SECONDS REPEATS`
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
from perf.memory import own_peak

CUDA = "CUDAExecutionProvider"


def main(model: str, inputs: str, seconds: float, repeats: int) -> None:
    feed = dict(np.load(inputs))
    before = own_peak()
    started = time.perf_counter()
    session = session_as_served(Path(model))
    load_s, loaded = time.perf_counter() - started, own_peak()
    session.run(None, first_rows(feed, 1))  # not measured: starts the threads, and reads the weights for the first time
    times = repeat(lambda: session.run(None, feed), seconds=seconds, repeats=repeats)
    found = {"provider": session.get_providers()[0], "load_s": load_s, "times_s": times}
    print(json.dumps({**found, "process_bytes": before, "loaded_bytes": loaded, "peak_bytes": own_peak()}))


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


def first_rows(feed: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    return {name: values[:rows] for name, values in feed.items()}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
