"""What is released: the wheel has all that pip alone needs, and the version is said once."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from medimage_install import places
from medimage_server.processes import children
from tests.paths import REPOSITORY, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = ("3.11", "3.12", "3.13")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"])
    return Path(path)


def test_wheel_has_the_model_repository_and_the_checkpoints_as_git_has_them(wheel):
    """And nothing that was exported in the checkout."""
    with ZipFile(wheel) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    for folder in ("model_repository", "checkpoints/medimageinsight-phantom", "checkpoints/cxrreportgen-phantom"):
        listed = subprocess.run(["git", "ls-files", "-z", folder], cwd=ROOT, capture_output=True, text=True)
        if listed.returncode:
            pytest.skip("git does not say which files are committed")
        committed = [name for name in listed.stdout.split("\0") if name]
        inside = {name for name in found if name.startswith(f"medimage_install/{folder}/")}
        assert inside == {f"medimage_install/{name}" for name in committed}
        assert all(found[f"medimage_install/{name}"] == (ROOT / name).read_bytes() for name in committed)
    backend = "backends/onnxruntime/model.py"
    assert found[f"medimage_server/{backend}"] == (ROOT / "server" / backend).read_bytes()
    assert "medimage_server/triton-environment.lock" in found
    assert wheel.stat().st_size < 12 * 2**20


def test_wheel_finds_what_it_has(wheel, tmp_path):
    """Unpacked elsewhere, with our packages of nowhere else."""
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "from medimage_install import places; from medimage_server.installation import find_onnxruntime_backend; "
        "print(places.shipped_repository(), places.phantom_checkpoint('cxrreportgen'), find_onnxruntime_backend())"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    repository, checkpoint, backend = map(Path, done.stdout.split())
    assert repository == tmp_path / "medimage_install/model_repository"
    assert (checkpoint / "model.safetensors").is_file() and tmp_path in checkpoint.parents
    assert (backend / "model.py").is_file() and tmp_path in backend.parents


def test_checkout_has_them_where_they_are_edited():
    assert places.shipped_repository() == REPOSITORY
    assert places.phantom_checkpoint("medimageinsight") == ROOT / "checkpoints/medimageinsight-phantom"


def test_everything_is_no_triton_and_nothing_that_holds_numpy_back(wheel):
    """On a Python that has no NumPy 1, `all` must still install."""
    with ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        needs = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist")
    of_all = [need for need in needs if re.search(r"extra == 'all'", need)]
    assert len(of_all) > 20
    assert [need for need in of_all if need.startswith(("nvidia-pytriton", "numpy<"))] == []


def test_citation_has_the_version_of_the_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["title"], str(citation["version"])) == (PROJECT["name"], PROJECT["version"])


def test_version_is_written_in_no_code():
    rooms = ("analysis", "client", "export", "install", "server")
    files = [path for room in rooms for path in ROOT.glob(f"{room}/**/*.py")]
    assert [path for path in files if f'"{PROJECT["version"]}"' in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("python", ["python3.13", "python3.10", "absent"])
def test_make_names_the_python_that_it_needs_before_anything_else(tmp_path, python):
    shutil.copy(ROOT / "Makefile", tmp_path)
    fake = tmp_path / python
    if python != "absent":
        fake.write_text(f"#!/bin/sh\necho {python.removeprefix('python')}\n")
        fake.chmod(0o755)
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # not under `make test`
    for goal in ("demo", "test"):
        done = subprocess.run(
            ["make", goal, f"PYTHON={fake}"],
            cwd=tmp_path,
            env=alone,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode != 0 and done.stdout == ""
        assert re.fullmatch(
            rf"Makefile:\d+: \*\*\* make needs Python 3\.11, and {fake} is (3\.1[03]|not there): "
            r"run `make PYTHON=python3\.11`; for other Pythons see docs/install\.md\.  Stop\.\n",
            done.stderr,
        )
    assert not (tmp_path / ".venv").exists()


# ---- what takes minutes


@pytest.mark.soak
def test_wheel_and_sdist_pass_twine(wheel, tmp_path):
    (sdist,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", str(wheel), sdist], check=True)


@pytest.mark.soak
def test_bill_of_materials_has_every_package_and_what_the_wheel_carries(tmp_path):
    path = tmp_path / "bom.json"
    subprocess.run([sys.executable, ROOT / "requirements/sbom.py", path], check=True)
    bom = json.loads(path.read_text())
    parts = {part["purl"] for part in bom["components"]}
    assert bom["metadata"]["component"]["version"] == PROJECT["version"]
    for lock in ("runtime", "cuda"):
        pins = re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / f"requirements/{lock}.lock").read_text(), re.MULTILINE)
        assert {f"pkg:pypi/{name}@{version.replace('+', '%2B')}" for name, version in pins} <= parts
    assert any(part.startswith("pkg:npm/swagger-ui-dist@") for part in parts)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Where the three environments of the next test share Triton's own."""
    return tmp_path_factory.mktemp("data")


@pytest.mark.soak
@pytest.mark.parametrize("version", PYTHONS)
def test_pip_alone_serves_beside_numpy_2(wheel, version, exported, data, tmp_path):
    """In an empty folder, from the wheel: the command line, Triton's own environment, a server and a client."""
    python = shutil.which(f"python{version}") or next(
        map(str, Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python3")), None
    )
    if python is None:
        pytest.skip(f"no Python {version} here")
    subprocess.run([python, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    inside = tmp_path / "venv" / "bin"
    installed = subprocess.run(
        [*PIP, "--python", inside / "python", "install", "--quiet", f"{wheel}[cli,server]", "numpy>=2", "pip"],
        capture_output=True,
        text=True,
    )
    if installed.returncode:
        pytest.skip(f"no package can be installed here: {installed.stderr.splitlines()[-1:]}")
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "HOME", "LANG"))}
    env = {**kept, "PATH": f"{inside}:/usr/bin:/bin", "XDG_DATA_HOME": str(data)}

    def run(*command: object, codes: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(
            [inside / command[0], *command[1:]], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600
        )
        assert done.returncode in codes, done.stderr
        return done.stdout

    assert "files written" in run("medimage", "init", "--repository", "models")
    shutil.copytree(exported("fp32"), tmp_path / "models", dirs_exist_ok=True)
    run("medimage", "triton-env")
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    served = subprocess.Popen(
        [inside / "medimage", "serve", "--repository", "models", *ports],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert served.stdout is not None
        url = served.stdout.readline().split()[1]
        assert children(served.pid)
        ask = f"from medimage_client import MedImageInsight as M; print(M({url!r}).embed_texts(['chest']).shape)"
        assert run("python", "-c", ask) == "(1, 1024)\n"
        assert "NumPy 1.26" in run("medimage", "doctor", "--repository", "models", codes=(0, 1))  # ports
    finally:
        served.terminate()
        served.communicate(timeout=60)
    assert served.returncode == 0
