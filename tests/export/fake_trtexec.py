"""A stand-in for trtexec: its plan is the ONNX file, and onnxruntime runs it.

Takes the options of trtexec 10 that an export gives, refuses others, and prints and writes as trtexec does. Appends
each call to `calls.jsonl` beside the plan.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime

VERSION = os.environ.get("FAKE_TRTEXEC_VERSION", "101303")
BUILD = {"onnx", "saveEngine", "stronglyTyped", "noTF32", "memPoolSize", "timingCacheFile", "skipInference"}
PROFILE = {"profile", "minShapes", "optShapes", "maxShapes"}
RUN = {"loadEngine", "useProfile", "shapes", "loadInputs", "exportOutput", "warmUp", "duration", "iterations"}
TYPES = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64, "tensor(float)": np.float32}


def main(arguments):
    pairs = [argument.removeprefix("--").partition("=")[::2] for argument in arguments]
    options = dict(pairs)
    sys.stdout.write(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{VERSION}] [b9] # trtexec {' '.join(arguments)}\n")
    if options.keys() == {"help"}:
        return 0
    folder = Path(options.get("saveEngine") or options["loadEngine"]).parent
    with (folder / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(pairs) + "\n")
    if "saveEngine" in options:
        assert options.keys() <= BUILD | PROFILE
        if (folder / "refuse").exists():
            sys.stdout.write("[11/22/2026-10:00:00] [I] === Model Options ===\n")
            sys.stderr.write("[11/22/2026-10:00:01] [E] Error[2]: no kernel for node 7\n")
            sys.stderr.write("[11/22/2026-10:00:01] [E] Engine could not be created\n")
            return 1
        Path(options["saveEngine"]).write_bytes(Path(options["onnx"]).read_bytes())
        Path(options["timingCacheFile"]).write_bytes(b"timings")
    else:
        assert options.keys() == RUN
        run(options)
    return 0


def run(options):
    session = onnxruntime.InferenceSession(Path(options["loadEngine"]).read_bytes())
    files = dict(item.split(":", 1) for item in options["loadInputs"].split(","))
    shapes = {name: [int(n) for n in dims.split("x")] for name, dims in pairs(options["shapes"])}
    feed = {node.name: np.fromfile(files[node.name], TYPES[node.type]) for node in session.get_inputs()}
    names = [node.name for node in session.get_outputs()]
    values = session.run(names, {name: array.reshape(shapes[name]) for name, array in feed.items()})
    lines = ["["]
    for separator, name, array in zip([" ", *"," * len(names)], names, values, strict=False):
        numbers = ", ".join(f"{number:.6g}" for number in array.flat)
        lines += [f'{separator} {{ "name" : "{name}"', f'  , "dimensions" : "{"x".join(map(str, array.shape))}"']
        lines += [f'  , "values" : [ {numbers} ]', "  }"]
    Path(options["exportOutput"]).write_text("\n".join([*lines, "]", ""]))


def pairs(spec):
    return [item.split(":") for item in spec.split(",")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
