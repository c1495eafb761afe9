"""What Triton's Python models run in, and whether the environment that we run in ourselves will do."""

import ctypes.util
import importlib.util
import sys
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from medimage_server import versions


@dataclass(frozen=True, slots=True)
class PythonEnvironment:
    """What Triton's Python models run in.

    Attributes:
        version: as 3.11.
        packages: the folder that it has its packages in.
        libraries: folders that its libpython may lie in.
    """

    python: Path
    version: str
    packages: Path
    libraries: tuple[Path, ...]


def fault_here() -> str | None:
    """Why the embedded Triton cannot run its Python models in this environment; None if it can."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        return "no tritonserver on PATH or in this environment"
    here = this_environment()
    if not stub_of(here).is_file():
        return f"nvidia-pytriton has no Python {here.version} backend"
    numpy = metadata.version("numpy")
    if not versions.is_before(numpy, (2, 0)):
        return f"NumPy {numpy} is installed here, and the embedded Triton takes none after 1"
    if not has_libpython(here):
        return (
            f"Triton's python backend needs libpython{here.version}.so.1.0, which `apt-get install "
            f"libpython{here.version}` brings on Debian"
        )
    return None


def this_environment() -> PythonEnvironment:
    spec = importlib.util.find_spec("pytriton")
    packages = Path(spec.origin).parents[1] if spec and spec.origin else Path(sysconfig.get_path("purelib"))
    # Debian has libpython in a package of its own; the environment's lib/ is where `make` puts it without root.
    libraries = (Path(sysconfig.get_config_var("LIBDIR")), Path(sys.prefix) / "lib")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return PythonEnvironment(Path(sys.executable), version, packages, libraries)


def has_libpython(environment: PythonEnvironment) -> bool:
    """Whether the library that the python backend's stub is linked with is where it is looked up."""
    name = f"libpython{environment.version}.so.1.0"
    found = any((folder / name).exists() for folder in environment.libraries)
    return found or ctypes.util.find_library(f"python{environment.version}") is not None


def stub_of(environment: PythonEnvironment) -> Path:
    stubs = environment.packages / "pytriton" / "tritonserver" / "python_backend_stubs"
    return stubs / environment.version / "triton_python_backend_stub"
