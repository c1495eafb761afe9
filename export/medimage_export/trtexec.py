"""Plans through `trtexec`, the command line of TensorRT 10 or later."""

import json
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medimage_export.errors import PlanError
from medimage_export.tensorrt_package import OLDEST, WORKSPACE_BYTES
from medimage_export.tensorrt_profiles import Network, Profile, profile_for

# What each run begins with, as there is no --version; v101303 is 10.13.3, and v8601 was 8.6.1
BANNER = re.compile(r"RUNNING TensorRT\.trtexec \[TensorRT v(\d+)\]")
# C++ prints these as no JSON parser reads them
NOT_JSON = re.compile(r"(?<=[\s,\[-])(nan|inf)(?=[\s,\]])")
JSON_OF = {"nan": "NaN", "inf": "Infinity"}


class Trtexec:
    """Builds and runs plans, each in a process of its own.

    Raises:
        PlanError: it is too old, or does not say which version it is.
    """

    def __init__(self, executable: str) -> None:
        self.executable = executable
        banner = BANNER.search(self.call("--help"))
        if banner is None:
            raise PlanError(f"{executable} does not say that it is trtexec, and of which version")
        major, rest = divmod(int(banner[1]), 10_000)
        if major < OLDEST:
            raise PlanError(f"{executable} of TensorRT v{banner[1]} is too old; {OLDEST} or later is needed")
        self.version = f"{major}.{rest // 100}.{rest % 100}"

    def build(self, network: Network, plan: Path, timing_cache: Path) -> None:
        profiles = []
        for index, sizes in enumerate(network.profiles):
            profiles += [
                f"--profile={index}",
                f"--minShapes={_shapes(network.inputs, sizes.smallest)}",
                f"--optShapes={_shapes(network.inputs, sizes.tuned)}",
                f"--maxShapes={_shapes(network.inputs, sizes.largest)}",
            ]
        self.call(
            f"--onnx={network.path}",
            f"--saveEngine={plan}",
            "--stronglyTyped",  # TensorRT 11 has no other networks, and accepts the flag without effect
            "--noTF32",
            f"--memPoolSize=workspace:{WORKSPACE_BYTES // 2**20}M",
            f"--timingCacheFile={timing_cache}",
            "--skipInference",
            *profiles,
        )

    def open(self, plan: Path, profiles: Sequence[Profile]) -> "TrtexecSession":
        return TrtexecSession(self, plan, profiles)

    def call(self, *arguments: str) -> str:
        """Run trtexec, and give what it prints.

        Raises:
            PlanError: it failed, for the reasons that it marked as errors.
        """
        done = subprocess.run([self.executable, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line.partition("[E] ")[2] for line in (done.stdout + done.stderr).splitlines() if "[E] " in line]
            raise PlanError(f"trtexec failed: {'; '.join(lines) or f'exit status {done.returncode}, without a reason'}")
        return done.stdout


class TrtexecSession:
    """A plan that is loaded anew for each batch: slow, and enough for a parity check."""

    def __init__(self, trtexec: Trtexec, plan: Path, profiles: Sequence[Profile]) -> None:
        self.trtexec = trtexec
        self.plan = plan
        self.profiles = profiles

    def run(self, output_names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch; outputs are float32, of the six digits that trtexec prints.

        Raises:
            PlanError: no profile allows the batch, or the run failed.
        """
        batch = len(next(iter(feed.values())))
        with tempfile.TemporaryDirectory() as folder:
            for name, array in feed.items():
                (Path(folder) / name).write_bytes(array.tobytes())
            answer = Path(folder) / "outputs.json"
            self.trtexec.call(
                f"--loadEngine={self.plan}",
                f"--useProfile={profile_for(batch, self.profiles)}",
                "--shapes=" + _shapes({name: array.shape[1:] for name, array in feed.items()}, batch),
                "--loadInputs=" + ",".join(f"{name}:{Path(folder) / name}" for name in feed),
                f"--exportOutput={answer}",
                *("--warmUp=0", "--duration=0", "--iterations=1"),
            )
            text = NOT_JSON.sub(lambda match: JSON_OF[match[0]], answer.read_text())
        found = {output["name"]: output for output in json.loads(text)}
        return [
            np.array(found[name]["values"], np.float32).reshape([int(n) for n in found[name]["dimensions"].split("x")])
            for name in output_names
        ]


def _shapes(inputs: Mapping[str, tuple[int, ...]], batch: int) -> str:
    """Shapes as trtexec takes them, such as `pixels:8x480x480x3`."""
    return ",".join(f"{name}:{'x'.join(map(str, (batch, *dims)))}" for name, dims in inputs.items())
