"""The report decoder in OpenVINO, whose numbers stand beside ours: it has to compute what ours does."""

import numpy as np
import pytest

from medimage_server.reports.decoder import Decoder
from tests.server.reports.small_model import CONFIGS, write_small_model

pytest.importorskip("openvino", reason="the extra openvino is not installed")

from perf.openvino_decoder import openvino_decoder

ATOL = 0.1  # of logits up to 4; left to itself, OpenVINO takes bf16 on a CPU that has it


def test_openvino_reads_prompt_and_tokens_as_pytorch_does(tmp_path):
    model = write_small_model(tmp_path, "linear")
    step = openvino_decoder(model.folder / "decoder.onnx", CONFIGS["linear"].decoder)
    rng = np.random.default_rng(0)
    for _ in range(2):  # the second prompt finds nothing of the first
        sequence = model.table[rng.integers(0, 200, 12)]
        found = [step(sequence[:9], 0), *(step(sequence[n : n + 1], n) for n in range(9, 12))]
        for n, logits in enumerate(found, start=9):
            np.testing.assert_allclose(logits, model.logits(sequence[:n]), atol=ATOL)
    ours = Decoder(model.folder / "decoder.onnx", slots=1, max_length=64, threads=1)
    last = ours.prefill(0, sequence, past=0, position_ids=np.arange(12))
    np.testing.assert_allclose(found[-1], last, atol=ATOL)
