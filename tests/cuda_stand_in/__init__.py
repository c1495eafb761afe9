"""Libraries that stand in for CUDA's, so that an official onnxruntime-gpu loads its CUDA provider without a GPU.

The provider then places the nodes of real graphs, checks their inputs, and issues its allocations, copies and launches,
which a log has. Nothing is computed, so outputs mean nothing, and nothing is said about speed.
"""

import os
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tests.paths import ROOT

SOURCES = Path(__file__).parent
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
OURS = r"cuda|cu[A-Z]|cublas|cudnn|curand|cufft|__cuda|nvrtc"  # how the functions begin that are to be replaced
WITH_SOURCE = ("cudart", "cublasLt", "cublas", "cudnn", "libcuda")  # the first that a name has
WRITTEN = re.compile(r"^(?:FN|char\*|unsigned long|unsigned|void\*\*) (\w+)\(", re.MULTILINE)


@dataclass(frozen=True)
class StandIn:
    """The wheel of onnxruntime-gpu, unpacked, and the libraries that were built for it."""

    wheel: Path
    libraries: Path

    def run(
        self, module: str, *arguments: object, log: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a module in a process of its own, with that onnxruntime on one H100; `log` gets the calls of CUDA.

        `variables` are those of the stand-in, by name.
        """
        environment = os.environ | {
            "LD_LIBRARY_PATH": str(self.libraries),
            "PYTHONPATH": os.pathsep.join([str(self.wheel), str(ROOT)]),
            "STUB_CC": "90",
        }
        if log:
            environment["STUB_LOG"] = str(log)
        environment |= variables
        command = [sys.executable, "-m", module, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def build(wheel: Path, folder: Path) -> StandIn:
    """Compile what the CUDA provider of an unpacked wheel needs: each function that it calls, by its library.

    Raises:
        FileNotFoundError: gcc or binutils are missing.
        CalledProcessError: one of them failed.
    """
    folder.mkdir()
    provider = str(wheel / PROVIDER)
    needed = re.findall(r"\[(lib(?:cu|nv)[^\]]*)\]", _output("readelf", "-d", provider))
    undefined = [line.split()[-1] for line in _output("nm", "-D", "--undefined-only", provider).splitlines()]
    functions = defaultdict(set)
    for name, _, library in (symbol.partition("@") for symbol in undefined):
        if re.match(OURS, name):
            functions[library or _library_of(name, needed)].add(name)
    libraries = list(needed)
    if not any("cudnn" in library for library in needed):  # then it is loaded at the first convolution, by its names
        libraries.append("libcudnn.so.9")
        functions["libcudnn.so.9"] |= set(re.findall(r"^cudnn[A-Z]\w+$", _output("strings", provider), re.MULTILINE))
    if "libcuda.so.1" not in needed:
        libraries.append("libcuda.so.1")
    for library in libraries:
        has_versions = any(symbol.endswith(f"@{library}") for symbol in undefined)
        _compile(library, functions[library], folder, cuda13="libcudart.so.13" in needed, has_versions=has_versions)
    return StandIn(wheel, folder)


def _library_of(name: str, needed: list[str]) -> str:
    """The library of a symbol that has no version."""
    if re.match(r"cu[A-Z]", name):
        return "libcuda.so.1"
    kind = re.match(r"cudnn|cufft|curand", name)
    return next((library for library in needed if kind and library.startswith(f"lib{kind[0]}")), "")


def _compile(library: str, functions: set[str], folder: Path, *, cuda13: bool, has_versions: bool) -> None:
    part = next((part for part in WITH_SOURCE if part in library), None)
    text = f'#define CUDA13 {int(cuda13)}\n#include "{SOURCES / "common.h"}"\n'
    if part:
        text += (SOURCES / f"{part.lower()}.c").read_text()
    rest = sorted(functions - set(WRITTEN.findall(text)))  # these say that all is well
    text += "".join(f'int {name}(void) {{ stub_log("{name}"); return 0; }}\n' for name in rest)
    source, versions = folder / f"{library}.c", folder / f"{library}.map"
    source.write_text(text)
    versions.write_text(f"{library} {{ global: *; }};\n")
    script = [f"-Wl,--version-script,{versions}"] if has_versions else []
    target = [f"-Wl,-soname,{library}", "-o", str(folder / library)]
    subprocess.run(["gcc", "-w", "-O1", "-shared", "-fPIC", *target, str(source), *script], check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
