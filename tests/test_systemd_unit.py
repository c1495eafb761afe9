"""deploy/systemd/medimage.service: what systemd says of it, and that its strictest line is one we can live with."""

import errno
import subprocess
import sys
from shutil import which

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from tests.paths import ROOT

UNIT = ROOT / "deploy" / "systemd" / "medimage.service"
MAX_EXPOSURE = 14  # tenths; systemd 252 says 1.4, of at most 10
PR_SET_MDWE = 65  # Linux 6.3; what MemoryDenyWriteExecute= asks of the kernel, or of seccomp before
UNDER_MDWE = f"""
import ctypes, mmap, sys
if ctypes.CDLL(None, use_errno=True).prctl({PR_SET_MDWE}, 1, 0, 0, 0):
    sys.exit(ctypes.get_errno())
import numpy, onnxruntime
try:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
except PermissionError:
    pass
else:
    raise AssertionError("not in effect")
session = onnxruntime.InferenceSession(sys.argv[1])
print(session.run(None, {{"x": numpy.ones((2, 3), numpy.float32)}})[0].tolist())
"""


def systemd_analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed; it is in Debian's package systemd")
    return subprocess.run(["systemd-analyze", *arguments, UNIT], capture_output=True, text=True)


def test_exposure_is_as_low_as_documented():
    result = systemd_analyze("security", "--offline=true", f"--threshold={MAX_EXPOSURE}")
    assert result.returncode == 0, result.stdout + result.stderr
    overall = result.stdout.splitlines()[-1].split("medimage.service: ")[1].split()[0]
    assert f"{overall} of 10" in (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def test_every_line_is_one_that_systemd_knows():
    complaints = (systemd_analyze("verify").stderr).splitlines()
    assert [line for line in complaints if "medimage" in line and "is not executable" not in line] == []


def test_onnxruntime_needs_no_memory_that_is_both_written_and_executed(tmp_path):
    weights = numpy_helper.from_array(np.ones((3, 4), np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, n]) for name, n in (("x", 3), ("y", 4)))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(model, tmp_path / "model.onnx")
    result = subprocess.run(
        [sys.executable, "-c", UNDER_MDWE, str(tmp_path / "model.onnx")], capture_output=True, text=True
    )
    if result.returncode == errno.EINVAL:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert (result.returncode, result.stdout) == (0, f"{[[3.0] * 4] * 2}\n"), result.stderr
