"""Whether a CUDA device computes in this process, asked by a convolution of four numbers.

Recent onnxruntimes load cuDNN at the first convolution, so that a session opens without it. After an error such as an
illegal address a process can do nothing more on its device, while other errors, such as one of memory, pass: what the
error says does not tell the two apart, a second session does.
"""

import logging
import re

import numpy as np
import onnxruntime as ort

from medimage_server import heartbeat
from medimage_server.openvino_session import OpenVINOSession

log = logging.getLogger(__name__)

PROVIDER = "CUDAExecutionProvider"
# y = Conv(x, w), all float32; x and w (1, 1, 2, 2), both fed, so that nothing is computed beforehand. Of opset 17, as
# tests/server/test_cuda.py writes it with onnx, which the server does not have.
CONVOLUTION = (
    b'\x08\x08:u\n\x0f\n\x01x\n\x01w\x12\x01y"\x04Conv\x12\x0bconvolution'
    b"Z\x1b\n\x01x\x12\x16\n\x14\x08\x01\x12\x10\n\x02\x08\x01\n\x02\x08\x01\n\x02\x08\x02\n\x02\x08\x02"
    b"Z\x1b\n\x01w\x12\x16\n\x14\x08\x01\x12\x10\n\x02\x08\x01\n\x02\x08\x01\n\x02\x08\x02\n\x02\x08\x02"
    b"b\x1b\n\x01y\x12\x16\n\x14\x08\x01\x12\x10\n\x02\x08\x01\n\x02\x08\x01\n\x02\x08\x01\n\x02\x08\x01B\x04\n\x00\x10\x11"
)

PREFIXES = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |Status Message: ")  # of the errors of onnxruntime


def is_used_by(session: ort.InferenceSession | OpenVINOSession) -> bool:
    """Whether a session computes on CUDA."""
    return not isinstance(session, OpenVINOSession) and PROVIDER in session.get_providers()


def failure(device_id: int) -> str | None:
    """What keeps a CUDA device from computing in this process, in one line; None if it computes."""
    ones = np.ones((1, 1, 2, 2), np.float32)
    try:
        session = ort.InferenceSession(CONVOLUTION, providers=[(PROVIDER, {"device_id": device_id})], enable_fallback=0)
        session.run(None, {"x": ones, "w": ones})
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        return PREFIXES.split(str(error).partition("\n")[0])[-1]
    return None if is_used_by(session) else "the CUDA provider does not load"


def give_up_if_lost(model: str, device_id: int) -> None:
    """After a run that failed on CUDA: if the device computes no more, let the supervisor end this process.

    Callers get their errors at once, as the process goes on to answer; it only gives no more signs of life.
    """
    if reason := failure(device_id):
        log.error(
            "%s: CUDA device %d computes nothing any more, so the server has to start again: %s",
            model,
            device_id,
            reason,
        )
        heartbeat.stop()
