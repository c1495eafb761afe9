"""How fast does the report decoder generate at full size, against transformers and against the memory's bandwidth?

Phi-3-mini's published size with random weights: right in size and speed. The int4 decoder runs as the server runs it
(medimage_server.reports). Beside it, one after the other because two of them need more memory than 24 GB: transformers
in fp32 and bf16 as `generate()` runs it, and OpenVINO with our int4 graph; then the decoder again, to show that the
machine is still the same. The floor is the time in which the memory delivers the weights once: no decoder can make a
step faster.
"""

import gc
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
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
from medimage_export.errors import OpenVINOMissing
from medimage_server.reports.decoder import Decoder
from medimage_server.reports.scheduler import Ending, Job, Scheduler
from perf import tables
from perf.measure import QUICK_RESULTS, ROOT, Report, quick_option, timed
from perf.openvino_decoder import openvino_decoder

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


@dataclass(frozen=True)
class Setting:
    """What is measured, and the folder in which the decoder stays between two runs."""

    size: Size
    folder: Path

    @property
    def decoder(self) -> Path:
        return self.folder / "decoder.onnx"

    def write(self) -> int:
        """Write the int4 decoder, in place of one of an earlier commit; the bytes of its weights."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        config = self.size.config
        write_decoder(config.decoder, RandomTensors(expected_shapes(config)), self.decoder, "int4")
        return self.decoder.with_name("decoder.onnx.data").stat().st_size

    def written(self) -> Path:
        """The decoder, which the first piece has written."""
        if not self.decoder.is_file():
            raise click.ClickException("there is no decoder: measure the piece `floor` first")
        return self.decoder


Sections = Mapping[str, object]

# Each ends within minutes at full size, and is kept as soon as it has ended.
PIECES: Mapping[str, Callable[[Setting], Sections]] = {
    "floor": lambda setting: {
        "precision": "int4",
        "weight_bytes": setting.write(),
        "bandwidth_gb_s": bandwidth(setting.size.bandwidth_bytes),
    },
    "steps": lambda setting: {
        "steps": [
            row
            for context in (setting.size.study_tokens, setting.size.short_tokens)
            for row in steps(setting.written(), setting.size.config.decoder, context, setting.size.concurrency)
        ]
    },
    "same-tokens": lambda setting: {"same_tokens": same_tokens(setting.written(), setting.size.config.decoder)},
    "image-encoder": lambda setting: {"image_encoder_s": image_encoder(setting.size.config, setting.folder)},
    "first-token": lambda setting: {
        "first_token_s": first_token(setting.written(), setting.size.config.decoder, setting.size.study_tokens)
    },
    "transformers-fp32": lambda setting: {
        "transformers": transformers_generate(setting.size.config.decoder, setting.size.study_tokens)
    },
    "transformers-bf16": lambda setting: {
        "baselines": {
            "transformers bf16": transformers_generate(
                setting.size.config.decoder, setting.size.study_tokens, torch.bfloat16
            )
        }
    },
    "openvino-int4": lambda setting: {
        "baselines": {
            "OpenVINO, our int4": openvino_generate(
                setting.written(), setting.size.config.decoder, setting.size.study_tokens
            )
        }
    },
    "steps-again": lambda setting: {
        "steps_again": steps(setting.written(), setting.size.config.decoder, setting.size.study_tokens, (1,))
    },
}


@click.command()
@quick_option
@click.option("--layers", type=click.IntRange(min=1), help="So many of the 32 layers, for a run of minutes.")
@click.argument("pieces", nargs=-1, type=click.Choice(list(PIECES)))
def main(quick: bool, layers: int | None, pieces: tuple[str, ...]) -> None:
    """Measure PIECES, or all that the results of this machine and commit do not have yet.

    A run that is stopped leaves what it has, and the next goes on behind it. All 32 layers take 20 GB, and about half
    an hour on two cores. With --layers the result goes to a file of its own.
    """
    size = quick_size() if quick else FULL
    if layers is not None:
        decoder = replace(size.config.decoder, num_layers=layers)
        size = replace(size, config=replace(size.config, decoder=decoder))
    name = "reports" if layers is None else f"reports-{layers}-layers"
    report, setting = Report(name, quick=quick), Setting(size, QUICK_RESULTS / f"{name}{'-quick' * quick}")
    report.resume()
    for piece in pieces or [piece for piece in PIECES if piece not in report.content.get("pieces_s", {})]:
        try:
            found, seconds = timed(partial(PIECES[piece], setting))
        except OpenVINOMissing as missing:
            raise click.ClickException(f"{piece}: {missing}; `pip install 'medimage-triton[openvino]'`") from missing
        report.put(**found, pieces_s={piece: seconds})
        print(f"{piece}: {seconds:.0f} s")
        gc.collect()
    if left := [piece for piece in PIECES if piece not in report.content["pieces_s"]]:
        print(f"left for another run: {', '.join(left)}")
    else:
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


def transformers_generate(config: DecoderConfig, tokens: int, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Seconds of transformers' generate(): the first token of a study, and each of the next."""
    with torch.device("meta"):
        model = reference_decoder(config).eval().requires_grad_(False).to(dtype)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.uniform_(-0.02, 0.02)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    embeds = torch.from_numpy(random_embeds(config, tokens))[None].to(dtype)
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


def openvino_generate(path: Path, config: DecoderConfig, tokens: int) -> dict[str, float]:
    """The same of OpenVINO, with the prompt in one piece."""
    step = openvino_decoder(path, config)
    prompt, new = random_embeds(config, tokens), random_embeds(config, 1 + REFERENCE_TOKENS, seed=1)
    step(prompt[:8], 0)  # not measured
    _, first = timed(lambda: step(prompt, 0))
    times = [timed(partial(step, new[n : n + 1], tokens + n))[1] for n in range(REFERENCE_TOKENS)]
    return {"first_token_s": first, "step_s": statistics.median(times), "min_s": min(times), "max_s": max(times)}


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
