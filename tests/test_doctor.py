"""`medimage doctor`: what it shows of a machine, and the remedy that each fault gets."""

import json
import shutil
import socket
from importlib import metadata

import numpy
import onnxruntime
import pytest
from click.testing import CliRunner

from medimage_install import doctor, places
from medimage_server import python_environment


@pytest.fixture
def look(monkeypatch):
    """What the command prints of a repository, by subject, with its faults and its exit code."""
    monkeypatch.setattr(doctor, "PORTS", {})
    monkeypatch.setattr(doctor, "MIN_MEMORY_BYTES", 0)

    def look(repository):
        done = CliRunner().invoke(doctor.doctor, ["--repository", str(repository)])
        table, _, faults = done.output.rstrip().partition("\n\n")
        rows = dict(line.split("  ", 1) for line in table.splitlines())
        rows = {subject: found.strip() for subject, found in rows.items()}
        return rows, [line for line in faults.splitlines() if line != "no fault found"], done.exit_code

    return look


def test_sound_machine_is_shown_without_a_fault(look, exported):
    if python_environment.fault_here():
        pytest.skip("Triton's models cannot run in the environment of the tests")
    rows, faults, code = look(exported("fp32"))
    assert (faults, code) == ([], 0)
    assert rows["medimage-triton"].startswith(metadata.version("medimage-triton"))
    asked = rows["Triton's Python"]
    assert f"NumPy {numpy.__version__}, onnxruntime {onnxruntime.__version__} (" in asked and "CPU" in asked
    manifest = json.loads((exported("fp32") / "medimageinsight/1/manifest.json").read_text())["checkpoint"]
    assert rows["medimageinsight"] == f"fp32 as onnx, from {manifest['weights']}, sha256 {manifest['sha256'][:12]}"
    assert rows["repository"] == str(exported("fp32"))


def test_three_faults_get_a_remedy_each(look, monkeypatch, tmp_path):
    real = metadata.version
    monkeypatch.setattr(python_environment.metadata, "version", lambda name: "2.3.1" if name == "numpy" else real(name))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(doctor, "PORTS", {port: "--http-port"})
        _, faults, code = look(tmp_path / "absent")
    assert code == 1
    assert [line.removeprefix("fault: ") for line in faults] == [
        "NumPy 2.3.1 is installed here, and the embedded Triton takes none after 1: "
        "run `medimage triton-env`, which gives Triton an environment of its own",
        f"taken: port {port}: end what listens there, or name another with --http-port",
        f"model repository {tmp_path}/absent does not exist; name one with --repository; `medimage export` makes it",
    ]


def test_repository_of_another_version_is_a_fault(look, exported, tmp_path):
    repository = tmp_path / "models"
    shutil.copytree(exported("fp32"), repository)
    (repository / places.STAMP).write_text('{"version": "0.0.9", "files": {}}')
    _, faults, _ = look(repository)
    assert f"fault: {repository} is of version 0.0.9, and this is {metadata.version('medimage-triton')}: " in faults[-1]
    assert faults[-1].endswith(f"run `medimage init --repository {repository}`")


def test_too_little_memory_is_a_fault(monkeypatch):
    monkeypatch.setattr(doctor, "free_bytes", lambda: 2**30)  # of a container, too: tests/server/reports has its files
    assert doctor.memory().fault == "1.0 GB of memory are free: even the phantom checkpoints need 2 GB"
    monkeypatch.setattr(doctor, "free_bytes", lambda: 2**32)
    assert doctor.memory() == ("memory", "4.0 GB free", None)
