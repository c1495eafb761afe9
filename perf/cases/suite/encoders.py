"""Both encoders alone, from pixels or token ids to vectors: one image, and 16 texts of 10 tokens."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer
from torch import nn

from medimage_export.medimageinsight.reference import UniCL
from medimage_export.phantoms import CAPTIONS, TEST_SEEDS, phantom
from perf.cases.suite.baselines import (
    Encode,
    ImageEncoder,
    NotMeasured,
    TextEncoder,
    bound,
    compiled,
    eager,
    in_dtype,
    openvino,
)
from perf.cases.suite.device import SHORT, Device, Precision, runtime_of
from perf.cases.suite.floor import IMAGE_GFLOP, TEXT_GFLOP
from perf.cases.suite.rounds import Call
from perf.cases.suite.sessions import session
from perf.cases.suite.whole_path import reference_pixels

N_TEXTS = 16
TOKENS = 10  # of each text, start and end of text among them; the arrays have the full context length
BYTE_SYMBOLS = 512  # the ids that every CLIP vocabulary starts with

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Case:
    """One input, and every runtime that can take it here; the first one is the baseline."""

    name: str
    gflop: float  # at the published size; of texts, of what the exports compute: without padding
    calls: dict[str, Call]
    not_measured: dict[str, str]  # runtime -> why not


def cases(model: UniCL, repositories: Mapping[Precision, Path], device: Device) -> Iterator[Case]:
    """Each case is built when it is asked for, so that its weights are gone before the next one's come."""
    for batch in device.image_batches:
        calls, missing = runtimes(ImageEncoder, "image_encoder", (images(batch),), model, repositories, device)
        yield Case(f"image, batch {batch}", batch * IMAGE_GFLOP, calls, missing)
    tokenizer = next(iter(repositories.values())) / "text_tokenizer" / "1" / "tokenizer.json"
    calls, missing = runtimes(TextEncoder, "text_encoder", texts(tokenizer), model, repositories, device)
    yield Case(f"{N_TEXTS} texts of {TOKENS} tokens", N_TEXTS * TEXT_GFLOP, calls, missing)


def runtimes(
    module: type[nn.Module],
    served: str,
    inputs: Arrays,
    model: UniCL,
    repositories: Mapping[Precision, Path],
    device: Device,
) -> tuple[dict[str, Call], dict[str, str]]:
    """A call for each runtime, and the reason for each that this machine does not have."""
    calls = {}
    for dtype in device.eager:
        encoder = module(in_dtype(model, dtype, device.torch)).eval()
        calls[f"PyTorch eager {SHORT[dtype]}"] = bound(eager(encoder, device.torch), inputs)
    baseline = module(in_dtype(model, device.eager[0], device.torch)).eval()
    optional: dict[str, Callable[[], Encode]] = {}
    if module is ImageEncoder and device.with_compilation:  # it takes minutes, so not of texts, too
        optional[f"torch.compile {SHORT[device.eager[0]]}"] = lambda: compiled(baseline, device.torch, inputs)
    if device.with_openvino:
        optional["OpenVINO fp32"] = lambda: openvino(baseline, inputs)
    not_measured = {}
    for name, build in optional.items():
        try:
            calls[name] = bound(build(), inputs)
        except NotMeasured as reason:
            not_measured[name] = str(reason)
    for precision, repository in repositories.items():
        calls[runtime_of(precision)] = bound(session(repository, served, device), inputs)
    return calls, not_measured


def images(batch: int) -> np.ndarray:
    """Drawings as the served preprocessing hands them on, (batch, 480, 480, 3) uint8."""
    drawings = [
        Image.fromarray(phantom(caption, TEST_SEEDS[0]).image) for caption in np.resize(np.array(CAPTIONS), batch)
    ]
    return np.concatenate([reference_pixels(drawing, "azure") for drawing in drawings])


def texts(tokenizer: Path) -> Arrays:
    """input_ids and attention_mask (N_TEXTS, context length) int64; the tokens between start and end are random."""
    empty = Tokenizer.from_file(str(tokenizer)).encode("")
    start, end = empty.ids[:2]
    input_ids = np.full((N_TEXTS, len(empty.ids)), empty.ids[-1], dtype=np.int64)
    input_ids[:, 0] = start
    input_ids[:, 1 : TOKENS - 1] = np.random.default_rng(0).integers(0, BYTE_SYMBOLS, (N_TEXTS, TOKENS - 2))
    input_ids[:, TOKENS - 1] = end
    attention_mask = np.zeros_like(input_ids)
    attention_mask[:, :TOKENS] = 1
    return input_ids, attention_mask
