"""How fast does the report decoder generate at full size, against transformers and against the memory's bandwidth?

Phi-3-mini's published size with random weights: right in size and speed. The int4 decoder runs as the server runs it
(medimage_server.reports), transformers in fp32 as `generate()` runs it, one after the other because both together need
more memory than 24 GB; the decoder again afterwards, to show that the machine is still the same. The floor is the time
in which the memory delivers the weights once: no decoder can make a step faster.
"""

import gc
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import click
import numpy as np
import onnxruntime
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from medimage_export.cxrreportgen.checkpoint import RandomTensors, expected_shapes, reference_decoder
from medimage_export.cxrreportgen.config import PHI3_MINI, CXRReportGenConfig, DecoderConfig, read_config
from medimage_export.cxrreportgen.decoder_graph import write_decoder
from medimage_export.cxrreportgen.image_encoder import ImageEncoder
from medimage_export.cxrreportgen.image_graph import write_vision_encoder
from medimage_server.reports.decoder import Decoder
from medimage_server.reports.scheduler import Ending, Job, Scheduler
from perf import tables
from perf.measure import ROOT, Report, quick_option, timed

CHUNK = 512  # prefill_chunk of the committed config
STEPS = 8  # measured, after one that is not
REFERENCE_TOKENS = 6
COMPARED_TOKENS = 24


@dataclass(frozen=True)
class Size:
    """What is measured."""

    config: CXRReportGenConfig
    study_tokens: int
    short_tokens: int
    concurrency: tuple[int, ...]
    bandwidth_bytes: int


# one image of 1369 tokens and MAIRA-2's prompt around it
FULL = Size(CXRReportGenConfig(decoder=PHI3_MINI), 1520, 256, (1, 4, 8, 16), 2**31)


def quick_size() -> Size:
    """The phantom checkpoint's architecture."""
    return Size(read_config(ROOT / "checkpoints" / "cxrreportgen-phantom"), 300, 100, (1, 4), 2**28)


@click.command()
@quick_option
@click.option("--decoder", "path", type=click.Path(path_type=Path, exists=True), help="An earlier decoder.onnx.")
def main(quick: bool, path: Path | None) -> None:
    """Measure the int4 decoder at full size; takes 20 GB, and about 20 minutes on two cores."""
    size = quick_size() if quick else FULL
    config, report = size.config, Report("reports", quick=quick)
    with tempfile.TemporaryDirectory() as scratch:
        if path is None:
            path = Path(scratch) / "decoder.onnx"
            write_decoder(config.decoder, RandomTensors(expected_shapes(config)), path, "int4")
        weights = path.with_name(f"{path.name}.data").stat().st_size
        report.put(precision="int4", weight_bytes=weights, bandwidth_gb_s=bandwidth(size.bandwidth_bytes))
        contexts = (size.study_tokens, size.short_tokens)
        report.put(steps=[row for n in contexts for row in steps(path, config.decoder, n, size.concurrency)])
        report.put(same_tokens=same_tokens(path, config.decoder))
        report.put(image_encoder_s=image_encoder(config, Path(scratch)))
        report.put(first_token_s=first_token(path, config.decoder, size.study_tokens))
        report.put(transformers=transformers_generate(config.decoder, size.study_tokens))
        report.put(steps_again=steps(path, config.decoder, size.study_tokens, (1,)))
    print(tables.of("reports", report.content))


def bandwidth(read_bytes: int) -> float:
    """GB/s at which all cores together read memory; the best of five."""
    threads = torch.get_num_threads()
    values = np.ones((threads, read_bytes // threads // 8))

    def read() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(np.max, values))

    return read_bytes / min(timed(read)[1] for _ in range(5)) / 1e9


def steps(
    path: Path, config: DecoderConfig, context: int, concurrency: tuple[int, ...], *, kind: str = "CPU"
) -> list[dict[str, float]]:
    """Seconds of a decode step for so many studies, each with `context` tokens in its slot."""
    results = []
    for n in concurrency:
        try:
            decoder = Decoder(path, slots=n, max_length=context + STEPS + 1, kind=kind)
        except ValueError:
            continue
        if decoder.slots == n:  # else the memory of this machine is too small for so many
            times = step_times(decoder, random_embeds(config, n), context)
            results.append(
                {
                    "context": context,
                    "studies": n,
                    "median_s": statistics.median(times),
                    "min_s": min(times),
                    "max_s": max(times),
                    "kv_bytes": n * (context + 1) * kv_bytes_per_token(config),
                }
            )
        del decoder
        gc.collect()
    return results


def step_times(decoder: Decoder, embeds: np.ndarray, context: int) -> list[float]:
    studies = len(embeds)
    lengths, positions = np.full(studies, context + 1), np.full(studies, context, np.int64)

    def step() -> None:
        decoder.step(embeds, lengths=lengths, position_ids=positions)

    fill(decoder, studies, context)
    step()
    return [timed(step)[1] for _ in range(STEPS)]


def fill(decoder: Decoder, studies: int, context: int) -> None:
    """Write the KV cache of the slots, as prompts would: memory that was never written costs nothing to read.

    That of a GPU is written as it is taken.
    """
    if not decoder.is_on_gpu:
        shape = (len(decoder._caches), decoder.slots, decoder._kv_heads, decoder.max_length, decoder._head_dim)
        decoder._memory.view(decoder.dtype).reshape(shape)[:, :studies, :, :context] = 0.01


def image_encoder(config: CXRReportGenConfig, folder: Path) -> float:
    """Seconds of the image encoder for one image; the median of three."""
    write_vision_encoder(ImageEncoder(config).eval().requires_grad_(False), folder / "model.onnx", precision="fp32")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    pixels = np.zeros((1, config.vision.image_size, config.vision.image_size), np.uint8)
    session.run(None, {"pixels": pixels})
    return statistics.median(timed(lambda: session.run(None, {"pixels": pixels}))[1] for _ in range(3))


def first_token(path: Path, config: DecoderConfig, tokens: int, *, kind: str = "CPU", chunk: int = CHUNK) -> float:
    """Seconds to read the prompt of a study of one image, encoded already, in the server's chunks."""
    decoder = Decoder(path, slots=1, max_length=tokens + 1, kind=kind)
    prompt = random_embeds(config, tokens)

    def prefill() -> None:
        for past in range(0, tokens, chunk):
            part = prompt[past : past + chunk]
            decoder.prefill(0, part, past=past, position_ids=np.arange(past, past + len(part)))

    if decoder.is_on_gpu:
        prefill()  # not measured: on a GPU the first one also makes plans
    return timed(prefill)[1]


def same_tokens(path: Path, config: DecoderConfig, studies: int = 8, *, kind: str = "CPU") -> dict[str, int]:
    """Of prompts of unequal lengths, the tokens that come out the same answered alone and all at once."""
    prompts = [random_embeds(config, 20 + 7 * i, seed=i) for i in range(studies)]
    table = random_embeds(config, config.vocab_size, seed=99)

    def answers(slots: int) -> list[list[int]]:
        scheduler = Scheduler(
            Decoder(path, slots=slots, max_length=128, kind=kind),
            lambda ids: table[list(ids)],
            max_queue=studies,
            time_limit_s=3600,
            prefill_chunk=CHUNK,
        )
        found: list[list[int]] = [[] for _ in prompts]
        with ThreadPoolExecutor(studies) as pool:
            list(pool.map(lambda i: run_job(scheduler, prompts[i], found[i]), range(studies)))
        scheduler.close()
        return found

    alone, together = answers(1), answers(studies)
    return {
        "studies": studies,
        "tokens": studies * COMPARED_TOKENS,
        "same": sum(a == b for x, y in zip(alone, together, strict=True) for a, b in zip(x, y, strict=True)),
    }


def run_job(scheduler: Scheduler, prompt: np.ndarray, tokens: list[int]) -> None:
    """Generate COMPARED_TOKENS tokens into `tokens`."""
    ended, endings = Event(), []

    def on_end(ending: Ending) -> None:
        endings.append(ending)
        ended.set()

    scheduler.submit(
        Job(
            prepare=lambda: prompt,
            prompt_length=len(prompt),
            max_new_tokens=COMPARED_TOKENS,
            eos_token_ids=frozenset(),
            on_token=tokens.append,
            on_end=on_end,
            is_cancelled=lambda: False,
        )
    )
    ended.wait()
    if isinstance(endings[0], Exception):
        raise endings[0]


def transformers_generate(config: DecoderConfig, tokens: int) -> dict[str, float]:
    """Seconds of transformers' generate() in fp32: the first token of a study, and each of the next."""
    with torch.device("meta"):
        model = reference_decoder(config).eval().requires_grad_(False)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.uniform_(-0.02, 0.02)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    embeds = torch.from_numpy(random_embeds(config, tokens))[None]
    mask = torch.ones(1, tokens, dtype=torch.int64)

    def generate() -> list[float]:
        clock = Clock()
        started = time.perf_counter()
        model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            max_new_tokens=1 + REFERENCE_TOKENS,
            min_new_tokens=1 + REFERENCE_TOKENS,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        return [clock.times[0] - started, *np.diff(clock.times)]

    with torch.inference_mode():
        model(inputs_embeds=embeds[:, :8])  # not measured
        first, *steps = generate()
    return {"first_token_s": first, "step_s": statistics.median(steps), "min_s": min(steps), "max_s": max(steps)}


class Clock(StoppingCriteria):
    """Notes when generate() has each token; stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def random_embeds(config: DecoderConfig, tokens: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((tokens, config.hidden_size)) * 0.02).astype(np.float32)


def kv_bytes_per_token(config: DecoderConfig) -> int:
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * 4
