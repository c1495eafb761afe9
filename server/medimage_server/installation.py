"""Find a tritonserver, the container's or the one inside the nvidia-pytriton wheel, and what it needs to run.

That wheel carries the server and the python backend alone, so the backend directory is composed in a temporary
folder: the wheel's python backend with the stub of a Python, and our python-based onnxruntime backend. The Python is
the running one or, where Triton cannot use that, the one of Triton's own environment, see triton_environment.py.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medimage_server import triton_environment
from medimage_server.endpoint.keys import KEYS_VARIABLE
from medimage_server.errors import LaunchError
from medimage_server.python_environment import PythonEnvironment, fault_here, stub_of, this_environment


@dataclass(frozen=True, slots=True)
class Installation:
    """A tritonserver executable, its backends, and where its shared libraries are looked up.

    Attributes:
        python: that its Python models run in.
        is_own: whether that is of Triton's own environment, and our packages are elsewhere.
    """

    executable: Path
    library_path: tuple[Path, ...] = ()
    python_stub: Path | None = None  # None where the python backend has its own
    python: Path = Path(sys.executable)
    is_own: bool = False

    @property
    def backends(self) -> Path:
        return self.executable.parents[1] / "backends"

    @property
    def caches(self) -> Path:
        return self.executable.parents[1] / "caches"


def find_triton() -> Installation:
    """The tritonserver on PATH (NVIDIA's container), else the one in the nvidia-pytriton wheel, in this environment if
    Triton can use it, or in Triton's own.

    Raises:
        LaunchError: none is there that can be used.
    """
    if on_path := shutil.which("tritonserver"):
        return Installation(Path(on_path).resolve())
    fault = fault_here()
    if fault is None:
        return embedded(this_environment(), is_own=False)
    if own := triton_environment.find():
        return embedded(own, is_own=True)
    raise LaunchError(f"{fault}: run `medimage triton-env`, which gives Triton an environment of its own")


def embedded(environment: PythonEnvironment, *, is_own: bool) -> Installation:
    """The Triton inside the nvidia-pytriton wheel of an environment."""
    return Installation(
        executable=environment.packages / "pytriton" / "tritonserver" / "bin" / "tritonserver",
        library_path=(environment.packages / "nvidia_pytriton.libs", *environment.libraries),
        python_stub=stub_of(environment),
        python=environment.python,
        is_own=is_own,
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


def compose_packages(installation: Installation, scratch: Path) -> Mapping[str, str]:
    """The variable by which Triton's own environment finds our packages; nothing where models run in this one."""
    if not installation.is_own:
        return {}
    packages = scratch / "packages"
    packages.mkdir()
    return {triton_environment.PACKAGES_VARIABLE: str(triton_environment.link_ours(packages))}


def environment(installation: Installation) -> Mapping[str, str]:
    """Our environment without the keys of callers; stub processes find their Python and libraries, and tell nobody."""
    libraries = [*map(str, installation.library_path), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {
        **{name: value for name, value in os.environ.items() if name != KEYS_VARIABLE},
        "PATH": os.pathsep.join([str(installation.python.parent), os.environ.get("PATH", os.defpath)]),
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
