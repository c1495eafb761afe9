"""The command by which a checkpoint's README says that it was made is one."""

import re
from importlib import import_module

import pytest
from click.testing import CliRunner

from tests.paths import ROOT


@pytest.mark.parametrize("checkpoint", ["cxrreportgen-phantom", "medimageinsight-phantom"])
def test_readme_names_the_command_that_trains_the_checkpoint(checkpoint):
    readme = (ROOT / "checkpoints" / checkpoint / "README.md").read_text(encoding="utf-8")
    ((module, options),) = re.findall(r"^python -m (\S+) (.*)$", readme, re.MULTILINE)
    assert options == f"--output checkpoints/{checkpoint}"
    answer = CliRunner().invoke(import_module(module).main, ["--help"])
    assert answer.exit_code == 0 and "--output PATH" in answer.output
