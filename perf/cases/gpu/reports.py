"""The decoder of reports beside transformers with a static, compiled cache."""

import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import StoppingCriteriaList

from medimage_export.cxrreportgen.checkpoint import reference_decoder
from medimage_export.cxrreportgen.decoder_graph import write_decoder
from medimage_export.repository import write_json
from perf.cases import reports
from perf.cases.gpu.setting import Setting
from perf.measure import timed

CONTEXTS = (256, 1700)  # tokens in a slot: a text alone, and a study of one image
STUDIES = (1, 4, 8, 16)
QUICK_CONTEXTS, QUICK_STUDIES = {256: 64, 1700: 128}, (1, 4)
CHUNK = 1024  # gpu_prefill_chunk of the committed config
GENERATED, QUICK_GENERATED = 32, 4  # tokens by transformers; the first quarter is not counted


def write(setting: Setting) -> Mapping[str, object]:
    """The decoder at full size, for the pieces behind this one."""
    folder = setting.folder / "decoder"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = setting.reports.decoder
    _, seconds = timed(
        lambda: write_decoder(config, setting.report_tensors(), folder / "decoder.onnx", setting.precision)
    )
    write_json(folder / "manifest.json", {"precision": setting.precision})
    return {"write_s": seconds, "weight_bytes": weights(setting)}


def path_of(setting: Setting) -> Path:
    """Raises FileNotFoundError: it was not written yet."""
    path = setting.folder / "decoder" / "decoder.onnx"
    if not path.is_file():
        raise FileNotFoundError("there is no decoder: measure the piece `decoder` first")
    return path


def weights(setting: Setting) -> int:
    path = path_of(setting)
    return path.with_name(f"{path.name}.data").stat().st_size


def sizes(setting: Setting, context: int) -> tuple[int, tuple[int, ...], int]:
    """Tokens in a slot, studies at a time, and bytes of the cache for each token of one."""
    config = setting.reports.decoder
    token_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * (2 if setting.kind == "GPU" else 4)
    return (QUICK_CONTEXTS[context], QUICK_STUDIES, token_bytes) if setting.quick else (context, STUDIES, token_bytes)


def ours(setting: Setting, context: int) -> Mapping[str, object]:
    """Seconds of a step, and to read a prompt of that length."""
    path, config = path_of(setting), setting.reports.decoder
    tokens, studies, token_bytes = sizes(setting, context)
    return {
        "weight_bytes": weights(setting),
        "steps": [
            row | {"kv_bytes": row["studies"] * (tokens + 1) * token_bytes}
            for row in reports.steps(path, config, tokens, studies, kind=setting.kind)
        ],
        "first_token_s": reports.first_token(path, config, tokens, kind=setting.kind, chunk=CHUNK),
    }


def theirs(setting: Setting, context: int) -> Mapping[str, object]:
    """Seconds of a step by transformers' generate() for as many studies."""
    tokens, studies, _ = sizes(setting, context)
    device, config = setting.device.torch, setting.reports.decoder
    with torch.device("meta"):
        model = reference_decoder(config).eval().requires_grad_(False).to(getattr(torch, setting.dtype))
    model.to_empty(device=device)
    for parameter in model.parameters():
        parameter.uniform_(-0.02, 0.02)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)  # computed, not loaded
    rows, generated = [], QUICK_GENERATED if setting.quick else GENERATED
    for n in studies:
        embeds = torch.from_numpy(reports.random_embeds(config, n * tokens)).reshape(n, tokens, -1)
        embeds = embeds.to(device, model.dtype)
        for _ in range(2):  # the first compiles
            clock = reports.Clock()
            with torch.inference_mode():
                model.generate(
                    inputs_embeds=embeds,
                    attention_mask=torch.ones(n, tokens, dtype=torch.int64, device=device),
                    max_new_tokens=generated,
                    min_new_tokens=generated,
                    do_sample=False,
                    cache_implementation="static",
                    stopping_criteria=StoppingCriteriaList([clock]),
                )
        steps = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)][generated // 4 :]
        rows.append({"context": tokens, "studies": n, "median_s": statistics.median(steps), "min_s": min(steps)})
    return {"steps": rows}
