"""Start Triton over a model repository: the container's, or the one inside the nvidia-pytriton wheel.

That wheel carries the server and the python backend alone, so the backend directory is composed in a temporary
folder: the wheel's python backend with the stub of the running Python, and our python-based onnxruntime backend.
"""

import ctypes.util
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from time import monotonic

from medimage_server.endpoint.keys import KEYS_VARIABLE
from medimage_server.model_repository import (
    RepositoryError,
    check_complete,
    check_served,
    exported_models,
    read_configs,
    with_parts,
)

SHARED_MEMORY = Path("/dev/shm")

START_TIMEOUT_S = 600.0  # generous: full-size weights may come from a slow disk, and a crash is noticed at once
STOP_TIMEOUT_S = 40.0  # Triton itself gives requests in flight 30 s (--exit-timeout-secs)
POLL_S = 0.1


class LaunchError(Exception):
    """Triton cannot be started; str() says in one line what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class TritonServer:
    """A Triton that has answered ready."""

    process: subprocess.Popen[bytes]
    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    models: tuple[str, ...]  # that it serves, parts before what they are part of
    stubs: tuple[int, ...] = ()  # process ids of its Python models, once it is ready

    def failure(self) -> str | None:
        """Why it does not serve any more, None while it does.

        Triton 2.51 neither starts a stub process again nor calls its model not ready: requests to that model fail from
        then on, and reports under way never end.
        """
        if any(parent_of(stub) != self.process.pid for stub in self.stubs):
            return exit_of(self.process) or "has lost a process of its Python models"
        return exit_of(self.process)


@dataclass(frozen=True, slots=True)
class Installation:
    """A tritonserver executable, its backends, and where its shared libraries are looked up."""

    executable: Path
    library_path: tuple[Path, ...] = ()
    python_stub: Path | None = None  # None where the python backend has its own

    @property
    def backends(self) -> Path:
        return self.executable.parents[1] / "backends"

    @property
    def caches(self) -> Path:
        return self.executable.parents[1] / "caches"


@contextmanager
def run_triton(
    repository: Path,
    *,
    models: Sequence[str] = (),
    host: str = "127.0.0.1",
    http_port: int = 0,
    grpc_port: int = 0,
    metrics_port: int = 0,
    text_cache_mb: int = 0,
    locked_apis: Sequence[str] = (),
    log: Path | None = None,
) -> Iterator[TritonServer]:
    """Serve a model repository for as long as the `with` block lasts.

    Args:
        repository: folder with one subfolder per model.
        models: serve only these and the models they are made of; empty means all that were exported.
        host: the address to listen on; 0.0.0.0 opens the server to the network.
        http_port, grpc_port, metrics_port: 0 picks a free one.
        text_cache_mb: memory for the answers of models whose config says `response_cache`; 0 is no cache.
        locked_apis: those of Triton that nobody may call, as `model-repository`; see its --http-restricted-api.
        log: file for Triton's log; None leaves it on this process's stdout and stderr.

    Raises:
        LaunchError: Triton is not installed, or has no cache or no backend for a model; a port is taken, the repository
            is incomplete, or Triton did not become ready.
    """
    repository = repository.absolute()
    try:
        configs = read_configs(repository)
        chosen = with_parts(models, configs) if models else exported_models(repository, configs)
        check_complete(repository, chosen, configs)
        installation = find_triton()
        check_served(chosen, configs, installation.backends)
    except RepositoryError as error:
        raise LaunchError(str(error)) from error
    ports = choose_ports(host, {"http": http_port, "grpc": grpc_port, "metrics": metrics_port})

    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medimage-triton-")))
        backends = compose_backends(installation, scratch)
        command = [
            *(sys.executable, "-m", "medimage_server.end_with_parent", str(os.getpid())),
            str(installation.executable),
            f"--model-repository={select_models(repository, chosen, scratch)}",
            f"--backend-directory={backends}",
            *(f"--backend-config={name},shm-region-prefix-name={scratch.name}" for name in python_backends(backends)),
            "--disable-auto-complete-config",
            "--strict-readiness=true",
            "--exit-on-error=true",
            *(f"--{name}-address={host}" for name in ports),
            *(f"--{name}-port={port}" for name, port in ports.items()),
            "--model-control-mode=none",  # no caller may load or unload
            *cache_options(installation, text_cache_mb),
            *lock_options(locked_apis),
        ]
        output = stack.enter_context(log.open("wb")) if log else None
        process = subprocess.Popen(
            command,
            env=environment(installation),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,  # Ctrl-C reaches us alone, and stub processes are ended with their server
        )
        stack.callback(_stop, process, scratch.name)
        server = TritonServer(process, host, ports["http"], ports["grpc"], ports["metrics"], tuple(chosen))
        _wait_until_ready(server, log)
        yield replace(server, stubs=tuple(children(process.pid)))


def cache_options(installation: Installation, size_mb: int) -> list[str]:
    """For a response cache in Triton's own memory, which ends with it; none for 0 MB.

    Raises:
        LaunchError: this Triton was built without the local cache.
    """
    if size_mb == 0:
        return []
    if not (installation.caches / "local").is_dir():
        raise LaunchError(f"this Triton has no cache in {installation.caches / 'local'}; use --text-cache-mb 0")
    return [f"--cache-directory={installation.caches}", f"--cache-config=local,size={size_mb * 2**20}"]


def lock_options(apis: Sequence[str]) -> list[str]:
    """Restrict APIs to callers with a key, which nobody is given."""
    if not apis:
        return []
    rule = f"{','.join(apis)}:medimage-key={secrets.token_hex(16)}"
    return [f"--http-restricted-api={rule}", f"--grpc-restricted-protocol={rule}"]


def select_models(repository: Path, models: Sequence[str], scratch: Path) -> Path:
    """A repository of links to these models alone: Triton serves all that it finds."""
    selected = scratch / "models"
    selected.mkdir()
    for model in models:
        (selected / model).symlink_to(repository / model)
    return selected


def find_triton() -> Installation:
    """The tritonserver on PATH (NVIDIA's container), else the one in the nvidia-pytriton wheel.

    Raises:
        LaunchError: neither is there, or the wheel has no stub for this Python, or no libpython for that stub.
    """
    if on_path := shutil.which("tritonserver"):
        return Installation(Path(on_path).resolve())
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise LaunchError("no tritonserver on PATH or in this environment: run `pip install 'medimage-triton[triton]'`")
    package = Path(spec.origin).parent
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = package / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise LaunchError(f"nvidia-pytriton has no Python {version} backend; use one of 3.8 to 3.13")
    # Debian has libpython in a package of its own; the environment's lib/ is where `make` puts it without root.
    python_libraries = (Path(sysconfig.get_config_var("LIBDIR")), Path(sys.prefix) / "lib")
    libpython = f"libpython{version}.so.1.0"
    found = any((folder / libpython).exists() for folder in python_libraries)
    if not found and not ctypes.util.find_library(f"python{version}"):
        raise LaunchError(f"Triton's python backend needs {libpython}: run `apt-get install libpython{version}`")
    return Installation(
        executable=package / "tritonserver" / "bin" / "tritonserver",
        library_path=(package.parent / "nvidia_pytriton.libs", *python_libraries),
        python_stub=stub,
    )


def compose_backends(installation: Installation, scratch: Path) -> Path:
    """A backend directory that can serve `python` and `onnxruntime` models, and TensorRT plans if Triton can."""
    if (installation.backends / "onnxruntime").is_dir():
        return installation.backends
    # Copied, because Triton refuses a backend library that is a link out of its directory.
    composed = scratch / "backends"
    for backend in ("python", "tensorrt"):
        if (installation.backends / backend).is_dir():
            shutil.copytree(installation.backends / backend, composed / backend)
    shutil.copytree(find_onnxruntime_backend(), composed / "onnxruntime")
    if installation.python_stub:
        stub = shutil.copy(installation.python_stub, composed / "python")
        os.chmod(stub, 0o755)
    return composed


def python_backends(backends: Path) -> list[str]:
    """The python backend and those based on it, which all pass tensors through shared memory."""
    return ["python", *(path.parent.name for path in backends.glob("*/model.py"))]


def find_onnxruntime_backend(package: Path = Path(__file__).parent) -> Path:
    """Our python-based onnxruntime backend: inside the installed package, or beside it in a checkout."""
    inside, beside = package / "backends" / "onnxruntime", package.parent / "backends" / "onnxruntime"
    return inside if inside.is_dir() else beside


def environment(installation: Installation) -> Mapping[str, str]:
    """Our environment without the keys of callers; stub processes find this Python and libraries, and tell nobody."""
    libraries = [*map(str, installation.library_path), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {
        **{name: value for name, value in os.environ.items() if name != KEYS_VARIABLE},
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime's official builds send events to Microsoft unless told not to
    }


def loopback(host: str) -> str:
    """Where this machine reaches a server that listens on a host."""
    return "127.0.0.1" if host == "0.0.0.0" else host


def choose_ports(host: str, wanted: Mapping[str, int]) -> dict[str, int]:
    """Replace each 0 by a free port.

    Raises:
        LaunchError: two wanted ports are the same, one is taken or not ours to open, or the host is not an address of
            this machine.
    """
    fixed = [port for port in wanted.values() if port]
    if len(set(fixed)) < len(fixed):
        raise LaunchError(f"ports {', '.join(f'{name} {port}' for name, port in wanted.items())} are not all different")
    ports = {}
    with ExitStack() as held:  # held together, so that no port is given out twice
        for name, port in wanted.items():
            probe = held.enter_context(closing(socket.socket()))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise LaunchError(f"cannot open {name} port {host}:{port}: {error.strerror}") from error
            ports[name] = probe.getsockname()[1]
    return ports


def exit_of(process: subprocess.Popen[bytes]) -> str | None:
    """How a process has ended, None while it runs."""
    code = process.poll()
    return None if code is None else f"ended by itself with exit code {code}"


def children(pid: int) -> list[int]:
    """Process ids of the running children of a process."""
    return [child for child in map(int, filter(str.isdecimal, os.listdir("/proc"))) if parent_of(child) == pid]


def parent_of(pid: int) -> int | None:
    """None if this process has ended, even if its parent has not taken notice."""
    try:
        # proc_pid_stat(5): pid (name) state parent …; a name may hold anything
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in ("Z", "X") else int(parent)


def _wait_until_ready(server: TritonServer, log: Path | None) -> None:
    where = f"see {log}" if log else "see its log above"
    deadline = monotonic() + START_TIMEOUT_S
    while not _is_ready(server):
        with suppress(subprocess.TimeoutExpired):
            code = server.process.wait(POLL_S)
            raise LaunchError(f"Triton ended with exit code {code} before it was ready; {where}")
        if monotonic() > deadline:
            raise LaunchError(f"Triton was not ready after {START_TIMEOUT_S:.0f} s; {where}")


def _is_ready(server: TritonServer) -> bool:
    # http.client and not urllib, which would ask a proxy named in the environment
    with closing(HTTPConnection(server.host, server.http_port, timeout=1.0)) as connection:
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, HTTPException):
            return False


def _stop(process: subprocess.Popen[bytes], shared_memory_prefix: str) -> None:
    """End Triton by SIGTERM; whatever of its process group outlives it, by SIGKILL, and the memory that it shared.

    A killed Triton leaves the tensors of its python backend, which hold patient data, in shared memory.
    """
    try:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    finally:  # also on a second Ctrl-C
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for region in SHARED_MEMORY.glob(f"{shared_memory_prefix}*"):
            region.unlink(missing_ok=True)
