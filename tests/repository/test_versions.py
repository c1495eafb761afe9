"""What is too old to serve is refused when a server starts, in one line."""

import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from medimage_export.cxrreportgen import decoder_graph
from medimage_server import versions
from medimage_server.errors import LaunchError
from tests.paths import ROOT


@pytest.mark.parametrize("version", ["2.51.0", "2.57.0dev", "2.71.0", "3.0.0", "", "main"])
def test_triton_that_is_new_enough_or_not_known_passes(version):
    versions.check_triton(version)


@pytest.mark.parametrize("version", ["2.50.0", "2.9.1", "1.99.0"])
def test_older_triton_is_refused(version):
    message = rf"^this is Triton {version}; expected 2\.51 \(NVIDIA's release 24\.10\) or later$"
    with pytest.raises(LaunchError, match=message):
        versions.check_triton(version)


@pytest.mark.parametrize("package", ["onnxruntime", "onnxruntime-gpu"])
def test_older_onnxruntime_is_refused_and_none_passes(monkeypatch, package):
    installed = {package: "1.22.1"}

    def version(name):
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(versions.metadata, "version", version)
    with pytest.raises(
        LaunchError, match=rf"^this is {package} 1\.22\.1; expected 1\.23: run `pip install '{package}>="
    ):
        versions.check_onnxruntime()
    installed[package] = "1.23.0"
    versions.check_onnxruntime()
    installed.clear()
    versions.check_onnxruntime()


def test_what_is_declared_is_as_new():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    declared = [Requirement(line) for lines in extras.values() for line in lines if line.startswith("onnxruntime")]
    oldest = Version(versions.name(versions.OLDEST_ONNXRUNTIME))
    assert declared
    assert all(min(Version(bound.version) for bound in each.specifier) == oldest for each in declared)


def test_oldest_onnxruntime_is_that_of_the_decoders_opset():
    """onnxruntime's docs/Versioning.md: 1.23 is the first with opset 23."""
    assert decoder_graph.OPSET == 23
