"""Which Python Triton's models run in: this environment where that will do, else one of Triton's own."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from medimage_server import python_environment, triton_environment
from medimage_server.errors import LaunchError
from medimage_server.installation import compose_packages, environment, find_triton
from medimage_server.triton_environment import RECORD, find_python, folder


@pytest.fixture
def numpy_2(monkeypatch):
    """As after `pip install 'pylibjpeg[all]'`."""
    real = metadata.version
    monkeypatch.setattr(python_environment.metadata, "version", lambda name: "2.3.1" if name == "numpy" else real(name))


@pytest.fixture
def data(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", "/usr/bin")  # without a container's tritonserver
    return tmp_path


def python_of(path: Path, version: str, libraries: Path) -> Path:
    """A stand-in for a Python, which says what it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {
        "python": str(path),
        "version": version,
        "packages": "/lib/python3/site-packages",
        "libraries": [str(libraries)],
    }
    path.write_text(f"#!/bin/sh\necho '{json.dumps(told)}'\n")
    path.chmod(0o755)
    return path


def record(**changed: object) -> Path:
    """An environment as `medimage triton-env` leaves it, without its packages; returns where those would lie."""
    python = python_of(folder() / "bin" / "python3", "3.11", folder() / "lib")
    packages = folder() / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    (folder() / "lib" / "libpython3.11.so.1.0").touch()
    values = {
        "python": str(python),
        "version": "3.11",
        "packages": str(packages),
        "libraries": [str(folder() / "lib")],
        "lock": triton_environment._digest(),
        "folder": str(folder()),
    }
    (folder() / RECORD).write_text(json.dumps(values | changed))
    return packages


def test_numpy_2_is_told_with_the_remedy_before_anything_starts(numpy_2, data):
    with pytest.raises(LaunchError) as error:
        find_triton()
    assert str(error.value) == (
        "NumPy 2.3.1 is installed here, and the embedded Triton takes none after 1: "
        "run `medimage triton-env`, which gives Triton an environment of its own"
    )


def test_own_environment_serves_where_this_one_cannot(numpy_2, data, tmp_path):
    packages = record()
    found = find_triton()
    assert found.is_own
    assert found.executable == packages / "pytriton/tritonserver/bin/tritonserver"
    given = environment(found)
    assert given["PATH"].split(":")[0] == str(folder() / "bin")
    assert given["LD_LIBRARY_PATH"].split(":")[:2] == [str(packages / "nvidia_pytriton.libs"), str(folder() / "lib")]


def test_own_environment_imports_our_packages_of_the_version_that_runs(numpy_2, data, tmp_path):
    record()
    variables = compose_packages(find_triton(), tmp_path)
    packages = tmp_path / "site"
    packages.mkdir()
    (packages / "medimage.pth").write_text(triton_environment.PTH)
    program = (
        "import site, sys; site.addsitedir(sys.argv[1]); import medimage_client, medimage_server.heartbeat; "
        "from importlib.metadata import version; print(version('medimage-triton'), medimage_server.__path__[0])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", program, packages], env=variables, capture_output=True, text=True, check=True
    )
    version, path = done.stdout.split()
    assert version == metadata.version("medimage-triton")
    assert Path(path).resolve() == Path(triton_environment.__file__).parent


def test_this_environment_is_used_where_it_will_do(data):
    record()
    if python_environment.fault_here():
        pytest.skip("Triton's models cannot run in the environment of the tests")
    found = find_triton()
    assert (found.is_own, found.python) == (False, Path(sys.executable))
    assert compose_packages(found, data) == {}


@pytest.mark.parametrize(
    "changed", [{"lock": "of an earlier version"}, {"folder": "/moved"}, {"python": "/no/python"}, {"version": "3.99"}]
)
def test_environment_that_is_not_of_this_version_or_gone_is_not_used(numpy_2, data, changed):
    record(**changed)
    assert triton_environment.find() is None


def test_first_python_with_its_library_is_taken(data, monkeypatch):
    libraries = data / "lib"
    libraries.mkdir()
    (libraries / "libpython3.11.so.1.0").touch()
    (libraries / "libpython3.13.so.1.0").touch()
    pythons = [
        python_of(data / "a" / "python3", "3.13", libraries),
        python_of(data / "b" / "python3", "3.12", data / "nowhere"),
        python_of(data / "c" / "python3", "3.11", libraries),
    ]
    monkeypatch.setattr(python_environment.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(triton_environment, "_candidates", lambda: iter(pythons))
    assert find_python(print).python == pythons[2]
    pythons.pop()
    with pytest.raises(LaunchError) as error:
        find_python(print)
    line = str(error.value)
    assert f"({pythons[0]} is Python 3.13; {pythons[1]} has no libpython3.12.so.1.0): install one" in line
    assert "\n" not in line


def test_candidates_are_those_of_the_path_each_once(data, monkeypatch):
    libraries = data / "lib"
    mine = python_of(data / "bin" / "python3.12", "3.12", libraries)
    (data / "bin" / "python3").symlink_to(mine)
    monkeypatch.setenv("PATH", str(data / "bin"))
    found = list(triton_environment._candidates())
    assert found.count(mine) == 1
    assert found[0] == Path(sys._base_executable).resolve()


def test_data_folder_that_cannot_be_written_is_named(numpy_2, data, monkeypatch):
    (data / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(data / "file"))
    with pytest.raises(LaunchError, match=rf"^cannot write Triton's environment into {data}/file/medimage: Not a dir"):
        triton_environment.prepare(print)


def test_failure_of_the_installer_is_one_line(data, monkeypatch):
    libraries = data / "lib"
    libraries.mkdir()
    (libraries / "libpython3.11.so.1.0").touch()
    python = data / "bin" / "python3"
    python_of(python, "3.11", libraries)
    fails = 'test "$3" != venv || { echo "ERROR: no space left" >&2; echo more >&2; exit 1; }\n'
    python.write_text(python.read_text() + fails)
    with pytest.raises(LaunchError, match=r"^cannot make a venv: ERROR: no space left$"):
        triton_environment.make(lambda line: None, python)
    assert not folder().exists()
    assert list(folder().parent.glob("triton-env-*")) == []
