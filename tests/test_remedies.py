"""The `pip install` that a message advises works, and leaves NumPy where it is: Triton's python backend needs 1.26."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version

import imagecodecs
import pytest
from packaging.requirements import Requirement

from medimage_client.errors import MissingExtra
from tests.client.dicom_files import RAMP, compressed, dicom, file_of
from tests.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ADVICE = re.compile(r"pip install '(medimage-triton\[[^]{]+\])'")
EXTRA = re.compile(r'MissingExtra\([^()]*"([a-z]+)"\)')
PIP = ("-m", "pip", "--disable-pip-version-check")


def sources():
    return [
        path.read_text(encoding="utf-8")
        for room in ("client", "server", "export", "training")
        for path in (ROOT / room).rglob("*.py")
    ]


ADVISED = sorted(
    {advice for text in sources() for advice in ADVICE.findall(text)}
    | {str(MissingExtra("", "", extra)).split("'")[1] for text in sources() for extra in EXTRA.findall(text)}
)


def test_messages_advise_the_extras_that_there_are():
    assert "medimage-triton[dicom]" in ADVISED
    for advice in ADVISED:
        requirement = Requirement(advice)
        assert requirement.name == PROJECT["name"]
        assert requirement.extras <= PROJECT["optional-dependencies"].keys()


def test_nothing_advises_a_package_that_brings_another_numpy():
    assert [text for text in sources() if re.search(r"pip install '?(pylibjpeg|pyjpegls|python-gdcm)", text)] == []


def test_dicom_extra_installs_no_numpy_where_triton_is():
    command = [sys.executable, *PIP, "install", "--quiet", "--dry-run", "--no-build-isolation", "--report", "-"]
    done = subprocess.run([*command, f"{ROOT}[dicom,triton]"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {one["metadata"]["name"] for one in json.loads(done.stdout)["install"]} <= {PROJECT["name"]}
    assert version("numpy").startswith("1.26")


@pytest.mark.soak
def test_dicom_extra_in_a_new_environment_reads_what_the_message_was_of(tmp_path):
    """Beside NumPy 1.26, which stays."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    first = subprocess.run([python, *PIP, "install", "--quiet", "numpy==1.26.4"], capture_output=True, text=True)
    if first.returncode:
        pytest.skip("no package can be installed here")
    file = tmp_path / "film.dcm"
    frame = imagecodecs.jpeg8_encode(RAMP, lossless=True, bitspersample=12)
    file.write_bytes(file_of(compressed(dicom(RAMP, BitsStored=12), [frame], "1.2.840.10008.1.2.4.70")))
    read = "import sys; from medimage_client.images.encoding import encode_image; print(len(encode_image(sys.argv[1])))"
    for extra, is_enough in (("", False), ("[dicom]", True)):
        subprocess.run([python, *PIP, "install", "--quiet", f"{ROOT}{extra}"], check=True, timeout=300)
        done = subprocess.run([python, "-c", read, file], capture_output=True, text=True, timeout=60)
        assert (done.returncode == 0) == is_enough, done.stderr
        if not is_enough:
            assert "pip install 'medimage-triton[dicom]'" in done.stderr
    numpy = subprocess.run([python, "-c", "import numpy; print(numpy.__version__)"], capture_output=True, text=True)
    assert numpy.stdout == "1.26.4\n"
