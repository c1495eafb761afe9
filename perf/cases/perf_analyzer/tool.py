"""NVIDIA's perf_analyzer: the one on PATH, or version 2.51.0 for x86-64 Linux, unpacked into build/perf_analyzer.

PyPI's perf-analyzer is an empty placeholder; the last wheel of tritonclient with the binary for glibc 2.36 is 2.51.0.
It is unpacked and not installed, because it pins an old protobuf.
"""

import shutil
import subprocess
import sys
import tempfile
from ctypes.util import find_library
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

import click

from perf.measure import ROOT

UNPACKED = ROOT / "build" / "perf_analyzer"
WHEELS = """\
tritonclient==2.51.0 --hash=sha256:c485bb0123bdf310f90bc8b03d3489b28df2ffed55b30c7eee0b795b48113d52
nvidia-cuda-runtime-cu12==12.6.77 --hash=sha256:a84d15d5e1da416dd4774cb42edf5e954a3e60cc945698dc1d5be02321c44dc8
"""
LIBB64 = "libb64-0d=1.2-5+b1"  # Debian 12's
LIBB64_SHA256 = "b0e1d6fde8bdccc18c3884144aede064dc82464dd4777275fa80e74c05583e82"


def perf_analyzer() -> list[str]:
    """The command.

    Raises:
        ClickException: there is none, and it could not be unpacked.
    """
    if found := shutil.which("perf_analyzer"):
        return [found]
    binary = UNPACKED / "bin" / "perf_analyzer"
    if not binary.is_file():
        print("getting perf_analyzer 2.51.0", file=sys.stderr)
        try:
            unpack()
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            raise click.ClickException(f"perf_analyzer is not on PATH and could not be unpacked: {error}") from error
    return ["env", f"LD_LIBRARY_PATH={UNPACKED / 'lib'}", str(binary)]  # its libraries are for it alone


def unpack() -> None:
    """Get the wheels, and libb64 as a package of Debian, each by its hash."""
    UNPACKED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=UNPACKED) as folder:
        scratch = Path(folder)
        (scratch / "wheels.txt").write_text(WHEELS)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--platform=manylinux1_x86_64", "--platform=manylinux2014_x86_64"]
        subprocess.run([*command, "--require-hashes", "--requirement=wheels.txt"], cwd=scratch, check=True)
        for wheel in scratch.glob("*.whl"):
            ZipFile(wheel).extractall(scratch)
        if find_library("b64") is None:
            subprocess.run(["apt-get", "download", "--quiet", LIBB64], cwd=scratch, check=True, stdout=sys.stderr)
            (package,) = scratch.glob("libb64-0d_*.deb")
            if sha256(package.read_bytes()).hexdigest() != LIBB64_SHA256:
                raise ValueError(f"{package.name} has another hash than {LIBB64_SHA256}")
            subprocess.run(["dpkg", "--extract", package, scratch], check=True)
        (UNPACKED / "lib").mkdir(exist_ok=True)
        for library in (*scratch.rglob("libcudart.so.12"), *scratch.rglob("libb64.so.*")):
            shutil.copy(library, UNPACKED / "lib")
        (binary,) = scratch.glob("tritonclient-*.data/data/bin/perf_analyzer")
        binary.chmod(0o755)
        (UNPACKED / "bin").mkdir(exist_ok=True)
        binary.rename(UNPACKED / "bin" / "perf_analyzer")  # last: it says that all is there
