"""What the tests have a process do whose GPU is the stand-in: `python -m tests.cuda_stand_in.on_gpu NAME ARGUMENTS`.

The last line of standard output is one JSON value; standard error gets the logs, onnxruntime's and ours.
"""

import json
import logging
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

from medimage_server import cuda
from medimage_server.onnx_settings import open_session
from medimage_server.reports.decoder import Decoder

MAX_LENGTH = 64
PROMPT = 10


def load(path: str) -> list[str]:
    """Load a graph as the server does, and have onnxruntime say where it places the nodes."""
    options = ort.SessionOptions()
    options.log_severity_level = 0
    providers: list[str] = open_session("model", Path(path), options, kind="GPU", device_id=0).get_providers()
    return providers


def step(path: str, long_rope: str) -> bool:
    """Prefill a slot, and decode one token for two."""
    decoder = Decoder(Path(path), slots=2, max_length=MAX_LENGTH, long_rope=bool(int(long_rope)), kind="GPU")
    embeds = np.zeros((PROMPT, decoder.hidden_size), decoder.dtype)
    decoder.prefill(0, embeds, past=0, position_ids=np.arange(PROMPT))
    Path(os.environ["STUB_LOG"]).write_text("")
    decoder.step(embeds[:2], lengths=np.array([PROMPT + 1, 1]), position_ids=np.array([PROMPT, 0]))
    return decoder.is_on_gpu


def slots(path: str, wanted: str) -> int:
    """The slots of a decoder that may have so many."""
    decoder = Decoder(Path(path), slots=1, gpu_slots=int(wanted), max_length=MAX_LENGTH, kind="GPU")
    return decoder.slots


def fail(path: str) -> tuple[str | None, str, list[str]]:
    """Decode on a device that is lost after the load: what its probe said before, the error, and where it then is."""
    decoder = Decoder(Path(path), slots=1, max_length=MAX_LENGTH, kind="GPU")
    embeds = np.zeros((1, decoder.hidden_size), decoder.dtype)
    before = cuda.failure(0)
    os.environ["STUB_FAILURE"] = "700"
    try:
        decoder.prefill(0, embeds, past=0, position_ids=np.zeros(1, np.int64))
        error = ""
    except Exception as raised:
        error = type(raised).__name__
    return before, error, decoder._session.get_providers()


if __name__ == "__main__":
    logging.basicConfig(format="ours: %(message)s")
    name, *arguments = sys.argv[1:]
    sys.stdout.write(json.dumps({"load": load, "step": step, "slots": slots, "fail": fail}[name](*arguments)))
