"""`medimage triton-env`: an environment of their own for the embedded Triton and its Python models.

That Triton takes no NumPy 2, and there is no NumPy 1 for Python 3.13. So where the environment that we run in has
either, or has no Triton, its models run in another one: a venv of a Python 3.11 or 3.12 of this machine, with exactly
what `triton-environment.lock` names, file for file by its hash. Only our own packages come from where we run, so that
both sides are always of one version.
"""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib import metadata, util
from pathlib import Path

import click

from medimage_install.places import data_folder
from medimage_server.errors import LaunchError
from medimage_server.python_environment import PythonEnvironment, fault_here, has_libpython

PYTHONS = ("3.12", "3.11")  # for which there is NumPy 1.26, the newest first
LOCK = Path(__file__).with_name("triton-environment.lock")
RECORD = "environment.json"  # in the environment: what `find` reads of it
OURS = ("medimage_client", "medimage_server")
PACKAGES_VARIABLE = "MEDIMAGE_PACKAGES"  # of Triton's processes: a folder with links to OURS
PTH = f'import os, sys; sys.path.extend(filter(None, [os.environ.get("{PACKAGES_VARIABLE}")]))\n'
PROBE = (
    "import json, sys, sysconfig, venv; print(json.dumps({"
    '"python": sys.executable, "version": "%d.%d" % sys.version_info[:2], "packages": sysconfig.get_path("purelib"), '
    '"libraries": [sysconfig.get_config_var("LIBDIR"), sys.base_prefix + "/lib"]}))'
)
TRY = "import medimage_server.onnx_backend, medimage_server.text_tokenizer, medimage_server.reports.generator"

Tell = Callable[[str], None]


@click.command()
@click.option(
    "--python",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Python 3.11 or 3.12 to make it of. Default: one that is found on this machine, or installed by uv.",
)
def triton_env(python: Path | None) -> None:
    """Make the environment that the embedded Triton runs its Python models in, anew if there is one.

    `medimage serve` and `medimage demo` make it by themselves where this environment has another NumPy or Python than
    the embedded Triton can use. It lies in ~/.local/share/medimage/triton-env and is installed by pip or uv from a list
    with a hash for each file.
    """
    try:
        with _alone():
            made = make(lambda line: click.echo(line, err=True), python)
    except LaunchError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Triton's Python models run with Python {made.version} in {folder()}")


def folder() -> Path:
    return data_folder() / "triton-env"


def prepare(tell: Tell) -> None:
    """Make Triton's own environment if it is needed and not there.

    Raises:
        LaunchError: it is needed and cannot be made; says what to do.
    """
    if shutil.which("tritonserver") or (fault := fault_here()) is None or find():
        return
    with _alone():
        if not find():  # another start has made it meanwhile
            tell(f"{fault}: making an environment of Triton's own in {folder()}, once")
            make(tell)


def find() -> PythonEnvironment | None:
    """The one that this version has made, if it is there."""
    try:
        record = json.loads((folder() / RECORD).read_text(encoding="utf-8"))
        libraries = tuple(map(Path, record["libraries"]))
        found = PythonEnvironment(Path(record["python"]), record["version"], Path(record["packages"]), libraries)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_current = record.get("lock") == _digest() and record.get("folder") == str(folder())
    return found if is_current and found.python.exists() and has_libpython(found) else None


def make(tell: Tell, python: Path | None = None) -> PythonEnvironment:
    """Make the environment, in place of one that is there.

    Raises:
        LaunchError: there is no Python for it, or the packages cannot be installed.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise LaunchError("the embedded Triton is for Linux on x86-64; elsewhere serve with NVIDIA's Triton container")
    base = _usable(python) if python else find_python(tell)
    folder().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder().parent, prefix="triton-env-") as scratch:
        target = Path(scratch) / "environment"
        tell(f"installing {len(_pins())} packages for {base.python} (Python {base.version})")
        _run([str(base.python), "-I", "-m", "venv", "--without-pip", str(target)], "cannot make a venv")
        packages = target / "lib" / f"python{base.version}" / "site-packages"
        inner = PythonEnvironment(target / "bin" / "python3", base.version, packages, base.libraries)
        _run(_installer(inner.python), "cannot install the packages, for which PIP_FIND_LINKS may name a folder")
        (packages / "medimage.pth").write_text(PTH, encoding="utf-8")
        with tempfile.TemporaryDirectory() as links:
            env = {**os.environ, PACKAGES_VARIABLE: str(link_ours(Path(links)))}
            _run([str(inner.python), "-c", TRY], "what was installed cannot be imported", env)
        final = PythonEnvironment(
            *(folder() / "bin" / "python3", base.version, folder() / packages.relative_to(target), base.libraries)
        )
        record = {
            "python": str(final.python),
            "version": final.version,
            "packages": str(final.packages),
            "libraries": [str(path) for path in final.libraries],
            "lock": _digest(),
            "folder": str(folder()),
        }
        (target / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if folder().exists():
            folder().rename(Path(scratch) / "earlier")
        target.rename(folder())
    return final


def find_python(tell: Tell) -> PythonEnvironment:
    """The first Python of this machine that Triton's models can run in, or one that uv installs.

    Raises:
        LaunchError: there is none; says what was looked at.
    """
    looked_at = []
    for path in _candidates():
        try:
            return _usable(path)
        except LaunchError as error:
            looked_at.append(str(error))
    if uv := shutil.which("uv"):
        tell(f"no Python {' or '.join(PYTHONS)} found; uv installs one")
        _run([uv, "python", "install", PYTHONS[0]], "uv cannot install a Python")
        found = _run([uv, "python", "find", "--no-project", "--managed-python", PYTHONS[0]], "uv finds no Python")
        return _usable(Path(found.strip()))
    raise LaunchError(
        f"the embedded Triton needs Python {' or '.join(PYTHONS)} with its shared library, and there is none here "
        f"({'; '.join(looked_at) or 'no python3 at all'}): install one (Debian 12: `apt-get install libpython3.11`), "
        "or uv (`pip install uv`), and run `medimage triton-env`"
    )


def link_ours(target: Path) -> Path:
    """Links to our packages, and to what tells their version; returns `target`."""
    metadata_file = next(file for file in metadata.files("medimage-triton") or [] if file.name == "METADATA")
    for path in [Path(str(metadata_file.locate())).parent, *map(_package, OURS)]:
        (target / path.name).symlink_to(path.absolute())
    return target


def _package(name: str) -> Path:
    spec = util.find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _candidates() -> Iterator[Path]:
    """Pythons of this machine, each once, by their names; that of the running one first."""
    seen = set()
    names = [f"python{version}" for version in PYTHONS]
    folders = [*map(Path, os.get_exec_path()), Path("/usr/local/bin"), Path("/usr/bin")]
    paths = [Path(getattr(sys, "_base_executable", sys.executable))]
    paths += [directory / name for name in (*names, "python3") for directory in folders]
    for version in PYTHONS:  # of pyenv and of uv
        paths += sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python{version}"))
        paths += sorted((data_folder().parent / "uv" / "python").glob(f"cpython-{version}.*/bin/python{version}"))
    for path in paths:
        if path.is_file() and (resolved := path.resolve()) not in seen:
            seen.add(resolved)
            yield resolved


def _usable(python: Path) -> PythonEnvironment:
    """Itself, also where a shim of pyenv was asked. Raises LaunchError, with the reason, if Triton's models cannot run
    in it.
    """
    answer = _run([str(python), "-I", "-c", PROBE], f"{python} has no venv, or is no Python")
    try:
        told = json.loads(answer)
        libraries = tuple(map(Path, filter(None, told["libraries"])))
        found = PythonEnvironment(Path(told["python"]), told["version"], Path(told["packages"]), libraries)
    except (ValueError, KeyError, TypeError) as error:
        raise LaunchError(f"{python} does not answer as a Python does") from error
    if found.version not in PYTHONS:
        raise LaunchError(f"{python} is Python {found.version}")
    if not has_libpython(found):
        raise LaunchError(f"{python} has no libpython{found.version}.so.1.0")
    return found


def _installer(python: Path) -> list[str]:
    """Raises LaunchError if there is neither pip nor uv."""
    options = ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--requirement", str(LOCK)]
    if util.find_spec("pip"):
        return [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--quiet",
            "--disable-pip-version-check",
            *options,
        ]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--quiet", "--python", str(python), *options]
    raise LaunchError("Triton's environment is installed by pip or uv: `python -m ensurepip`, or install uv")


def _run(command: Sequence[str], failure: str, env: dict[str, str] | None = None) -> str:
    """What a command prints.

    Raises:
        LaunchError: it fails; the last line that it wrote is the reason.
    """
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    except OSError as error:
        raise LaunchError(f"{failure}: {error.strerror}") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise LaunchError(f"{failure}: {next((line for line in lines if line.startswith('ERROR')), lines[-1])}")
    return done.stdout


def _pins() -> list[str]:
    return [line.split()[0] for line in LOCK.read_text(encoding="utf-8").splitlines() if "==" in line]


def _digest() -> str:
    return sha256(LOCK.read_bytes()).hexdigest()


@contextmanager
def _alone() -> Iterator[None]:
    """No other process of this user makes the environment during the block.

    Raises:
        LaunchError: it cannot be written.
    """
    try:
        data_folder().mkdir(parents=True, exist_ok=True)
        with (data_folder() / "triton-env.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise LaunchError(
            f"cannot write Triton's environment into {data_folder()}: {error.strerror}: set XDG_DATA_HOME to a folder "
            "that can be written, or install the extra `triton` here"
        ) from error
