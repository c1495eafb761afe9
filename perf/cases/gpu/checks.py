"""What can be wrong on a GPU, before anything is timed; and what the GPU can do."""

from pathlib import Path

import numpy as np
import torch

from medimage_export.cxrreportgen.checkpoint import load_reference_decoder
from medimage_export.cxrreportgen.decoder_graph import write_decoder
from medimage_export.medimageinsight.image_graph import write_image_encoder
from medimage_export.medimageinsight.text_graph import write_text_encoder
from medimage_export.repository import copy_unexported, write_json
from medimage_server import cuda, cuda_memory
from medimage_server.reports.decoder import Decoder
from perf.cases import reports
from perf.cases.gpu.setting import Setting, phantom_model, phantom_reports
from perf.cases.suite.baselines import ImageEncoder, TextEncoder, eager
from perf.cases.suite.encoders import images
from perf.cases.suite.floor import SHAPES, matrix_rates
from perf.cases.suite.rounds import difference
from perf.cases.suite.sessions import session
from perf.measure import timed
from perf.servers import MODEL_REPOSITORY

MIN_COSINE = 0.999  # with PyTorch in fp32; the bound of an export of reports in fp16
TEXTS, TOKENS = 4, 12
PROMPTS = (5, 20, 33)  # tokens


class Wrong(Exception):
    """Nothing is worth timing; str() says what to mend."""


def check(setting: Setting) -> dict[str, object]:
    """CUDA and cuDNN compute, and the phantoms give PyTorch's vectors and tokens.

    Raises:
        Wrong: they do not.
    """
    found: dict[str, object] = {}
    if setting.device.torch == "cuda":
        if failure := cuda.failure(0):
            raise Wrong(f"CUDA computes nothing: {failure}")
        free, total = cuda_memory.free_and_total(0)
        found |= {"free_bytes": free, "total_bytes": total}
    cosines = {**vectors(setting), "logits of reports": logits(setting)}
    found["min_cosines"] = cosines
    if low := [f"{what} {cosine:.5f}" for what, cosine in cosines.items() if not cosine >= MIN_COSINE]:
        raise Wrong(f"cosine with PyTorch in fp32 below {MIN_COSINE}: {', '.join(low)}")
    config, _ = phantom_reports()
    found["same_tokens"] = reports.same_tokens(decoder(setting), config.decoder, kind=setting.kind)
    return found


def vectors(setting: Setting) -> dict[str, float]:
    """Least cosine of the phantom's vectors with PyTorch's in fp32 on the CPU, of images and texts."""
    model, repository = phantom_model(), setting.folder / "checked"
    if not repository.exists():
        copy_unexported(MODEL_REPOSITORY, repository)
    ids = np.zeros((TEXTS, model.config.text.context_length), np.int64)
    ids[:, 1:TOKENS] = np.random.default_rng(0).integers(1, 500, (TEXTS, TOKENS - 1))
    mask = (np.arange(ids.shape[1]) < TOKENS).astype(np.int64) * np.ones_like(ids)
    cosines = {}
    for name, write, module, inputs in (
        ("image_encoder", write_image_encoder, ImageEncoder, (images(2),)),
        ("text_encoder", write_text_encoder, TextEncoder, (ids, mask)),
    ):
        write(model, repository / name / "1" / "model.onnx", precision=setting.precision)
        truth = eager(module(model).eval(), "cpu")(*inputs)
        cosines[name] = difference(truth, session(repository, name, setting.device)(*inputs))[1]
    return cosines


def decoder(setting: Setting) -> Path:
    """The phantom's decoder, written anew."""
    config, tensors = phantom_reports()
    path = setting.folder / "decoder-checked" / "decoder.onnx"
    path.parent.mkdir(exist_ok=True)
    write_decoder(config.decoder, tensors, path, setting.precision)
    write_json(path.with_name("manifest.json"), {"precision": setting.precision})
    return path


def logits(setting: Setting) -> float:
    """Least cosine of the logits behind a prompt, and behind one token more, with transformers' in fp32."""
    config, tensors = phantom_reports()
    ours = Decoder(decoder(setting), slots=1, max_length=64, kind=setting.kind)
    if setting.kind == "GPU" and not ours.is_on_gpu:
        raise Wrong("the report decoder is on the CPU: the log above says why")
    reference, cosines = load_reference_decoder(config.decoder, tensors), []
    for tokens in PROMPTS:
        embeds = reports.random_embeds(config.decoder, tokens + 1, seed=tokens)
        prompt = ours.prefill(0, embeds[:-1], past=0, position_ids=np.arange(tokens)).copy()
        step = ours.step(embeds[-1:], lengths=np.array([tokens + 1]), position_ids=np.array([tokens]))[0]
        with torch.inference_mode():
            truth = reference(inputs_embeds=torch.from_numpy(embeds)[None], use_cache=False).logits[0, -2:].numpy()
        cosines.append(difference(truth, np.stack([prompt, step]))[1])
    return min(cosines)


def floor(setting: Setting) -> dict[str, object]:
    """Matrix rates in GFLOP/s, and bytes a second from and to the device's memory."""
    elements = 2**22 if setting.quick else 2**30  # of two bytes
    source = torch.zeros(elements, dtype=torch.float16, device=setting.device.torch)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        if setting.device.torch == "cuda":
            torch.cuda.synchronize()

    copy()
    seconds = min(timed(copy)[1] for _ in range(5))
    rates = matrix_rates(setting.device, SHAPES[-1:] if setting.quick else ())
    return {"gflop_per_s": rates, "bytes_per_s": 2 * source.nbytes / seconds}
