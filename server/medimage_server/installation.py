"""Find a tritonserver, the container's or the one inside the nvidia-pytriton wheel, and what it needs to run.

That wheel carries the server and the python backend alone, so the backend directory is composed in a temporary
folder: the wheel's python backend with the stub of the running Python, and our python-based onnxruntime backend.
"""

import ctypes.util
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medimage_server.endpoint.keys import KEYS_VARIABLE
from medimage_server.errors import LaunchError


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
        "PYTHONDONTWRITEBYTECODE": "1",  # into the repository, where another user who serves it could not read it
        "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime's official builds send events to Microsoft unless told not to
    }


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
