"""`medimage doctor`: what this machine and this installation have for serving, and a remedy for each fault."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import click

from medimage_export.cpu import instructions
from medimage_install.places import repository_option
from medimage_server import model_repository
from medimage_server.errors import LaunchError
from medimage_server.installation import Installation, find_triton
from medimage_server.listening import choose_ports
from medimage_server.python_environment import fault_here
from medimage_server.reports.memory import free_bytes
from medimage_server.run_folder import SHARED_MEMORY, shared_memory_warning

GB = 2**30
MIN_MEMORY_BYTES = 2 * GB  # the phantoms' servers take 1.3 GB; the published weights in fp32 take 3 and 17
PORTS = {8000: "--http-port", 8001: "--grpc-port", 8002: "--metrics-port", 5001: "--score-port"}
# Linux' names of what a precision is faster with
CPU_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_bf16": "AMX-BF16",
    "amx_int8": "AMX-INT8",
}
ASK = (
    "import json, platform, numpy, onnxruntime; print(json.dumps([platform.python_version(), numpy.__version__, "
    "onnxruntime.__version__, onnxruntime.get_available_providers()]))"
)
ASK_TIMEOUT_S = 60.0


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        fault: what is wrong, and a remedy; None if nothing is.
    """

    subject: str
    found: str
    fault: str | None = None


@click.command()
@repository_option("The model repository to look at.")
@click.pass_context
def doctor(ctx: click.Context, repository: Path) -> None:
    """Show what this machine has for serving, and how to mend what is wrong.

    It starts no server and changes nothing. Exit code 1 if there is a fault. Add the output when you report an issue:
    it has paths and versions, and no keys, images or texts.
    """
    rows = list(examined(repository))
    faults = [row.fault for row in rows if row.fault]
    width = max(len(row.subject) for row in rows)
    click.echo("\n".join(f"{row.subject:<{width}}  {row.found}" for row in rows))
    click.echo("\n" + "\n".join([f"fault: {fault}" for fault in faults] or ["no fault found"]))
    if faults:
        ctx.exit(1)


def examined(repository: Path) -> Iterator[Row]:
    yield Row("medimage-triton", f"{metadata.version('medimage-triton')} in {Path(__file__).parents[1]}")
    yield Row("Python", f"{platform.python_version()}, {sys.executable}")
    yield Row("NumPy here", metadata.version("numpy"))
    yield system()
    yield triton_row()
    with suppress(LaunchError):
        yield models_python(find_triton())
    yield cpu()
    yield gpu()
    yield memory()
    yield shared_memory()
    yield temporary_folder()
    yield from ports()
    yield from repository_rows(repository)


def system() -> Row:
    found = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if (sys.platform, platform.machine()) == ("linux", "x86_64") or shutil.which("tritonserver"):
        return Row("system", found)
    return Row("system", found, "the embedded Triton is for Linux on x86-64: serve with NVIDIA's Triton container")


def triton_row() -> Row:
    try:
        triton = find_triton()
    except LaunchError as error:
        return Row("Triton", "none that can be used", str(error))
    if triton.python_stub is None:
        return Row("Triton", f"{triton.executable}, on PATH")
    why = f", since {fault_here()}" if triton.is_own else ""
    return Row("Triton", f"embedded, in {'an environment of its own' if triton.is_own else 'this environment'}{why}")


def models_python(triton: Installation) -> Row:
    """What Triton's Python models have, asked of the very Python that they run in."""
    subject = "Triton's Python"
    try:
        asked = subprocess.run(
            [str(triton.python), "-c", ASK], capture_output=True, text=True, check=False, timeout=ASK_TIMEOUT_S
        )
        python, numpy, onnxruntime, providers = json.loads(asked.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        remedy = "`medimage triton-env`" if triton.is_own else "`pip install 'medimage-triton[triton]'`"
        return Row(subject, str(triton.python), f"{triton.python} cannot import numpy and onnxruntime: run {remedy}")
    names = ", ".join(name.removesuffix("ExecutionProvider") for name in providers)
    return Row(subject, f"{python}, NumPy {numpy}, onnxruntime {onnxruntime} ({names}), {triton.python}")


def cpu() -> Row:
    has = instructions()
    names = [name for flag, name in CPU_FEATURES.items() if flag in has] or ["none that a precision is faster with"]
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return Row("CPU", f"{cores} cores, {', '.join(names)}")


def gpu() -> Row:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=ASK_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return Row("GPU", "none of NVIDIA's, or no driver")
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return Row("GPU", "none that can be used", "nvidia-smi fails: look at the driver, or serve on the CPU")
    return Row("GPU", "; ".join(lines))


def memory() -> Row:
    """Of the machine, or of the container where that has less."""
    if sys.platform != "linux":
        return Row("memory", "not told by this system")
    free = free_bytes()
    fault = f"{free / GB:.1f} GB of memory are free: even the phantom checkpoints need 2 GB"
    return Row("memory", f"{free / GB:.1f} GB free", fault if free < MIN_MEMORY_BYTES else None)


def shared_memory() -> Row:
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        fault = f"there is no {SHARED_MEMORY}, which Triton's Python models need: mount a tmpfs there"
        return Row(str(SHARED_MEMORY), "none", fault)
    size, free = status.f_frsize * status.f_blocks, status.f_frsize * status.f_bavail
    return Row(str(SHARED_MEMORY), f"{size / GB:.1f} GB, {free / GB:.1f} free", shared_memory_warning())


def temporary_folder() -> Row:
    """Triton's backends are copied into it, and run from there."""
    folder = tempfile.gettempdir()
    if not os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return Row("temporary folder", folder)
    return Row("temporary folder", f"{folder}, noexec", f"{folder} runs no programs: set TMPDIR to a folder that does")


def ports() -> Iterator[Row]:
    """Those that `medimage serve` opens where nothing else is said."""
    taken = [port for port in PORTS if is_taken(port)]
    found = ", ".join(f"{port} {'taken' if port in taken else 'free'}" for port in PORTS)
    options = ", ".join(PORTS[port] for port in taken)
    fault = f"taken: port {', '.join(map(str, taken))}: end what listens there, or name another with {options}"
    yield Row("ports", found, fault if taken else None)


def is_taken(port: int) -> bool:
    try:
        choose_ports("127.0.0.1", {"": port})
    except LaunchError:
        return True
    return False


def repository_rows(repository: Path) -> Iterator[Row]:
    other = model_repository.other_version(repository)
    try:
        served = model_repository.ServedModels(repository)
    except LaunchError as error:
        remedy = "" if repository.is_dir() else "; `medimage export` makes it"
        yield Row("repository", str(repository.absolute()), f"{error}{remedy}")
        return
    yield Row("repository", str(repository.absolute()), other)
    yield Row("models", ", ".join(served.names), "; ".join(served.faults.values()) or None)
    for model, export in served.exports().items():
        digest = f", sha256 {export.checkpoint_sha256[:12]}" if export.checkpoint_sha256 else ""
        yield Row(model, f"{export.precision} as {export.format}, from {export.checkpoint}{digest}")
