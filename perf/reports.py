"""How fast does the report decoder generate at full size, against transformers and against the memory's bandwidth?

Phi-3-mini's published size with random weights: right in size and speed. The int4 decoder runs as the server runs it
(medimage_server.reports), transformers in fp32 as `generate()` runs it, one after the other because both together need
more memory than 24 GB; the decoder again afterwards, to show that the machine is still the same. The floor is the time
in which the memory delivers the weights once: no decoder can make a step faster.

Run: make perf-reports        Result: perf/results/reports.json, and the tables on stdout
"""

import gc
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import click
import numpy as np
import onnxruntime
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from medimage_export.cxrreportgen.checkpoint import RandomTensors, expected_shapes, reference_decoder
from medimage_export.cxrreportgen.config import PHI3_MINI, CXRReportGenConfig
from medimage_export.cxrreportgen.decoder_graph import write_decoder
from medimage_export.cxrreportgen.image_encoder import ImageEncoder
from medimage_export.cxrreportgen.image_graph import trace_image_encoder
from medimage_server.reports.decoder import Decoder
from medimage_server.reports.scheduler import Ending, Job, Scheduler
from perf.machine import machine
from perf.timing import timed

OUTPUT = Path(__file__).parents[1] / "perf" / "results" / "reports.json"
CONFIG = CXRReportGenConfig(decoder=PHI3_MINI)
STUDY_TOKENS = 1520  # one image of 1369 tokens and MAIRA-2's prompt around it
SHORT_TOKENS = 256
CONCURRENCY = (1, 4, 8, 16)
STEPS = 8  # measured, after one that is not
CHUNK = 512  # prefill_chunk of the committed config
REFERENCE_TOKENS = 6
COMPARED_TOKENS = 24
BANDWIDTH_BYTES = 2**31


@click.command()
@click.option("--decoder", "path", type=click.Path(path_type=Path, exists=True), help="An earlier decoder.onnx.")
def main(path: Path | None) -> None:
    """Measure the int4 decoder at full size."""
    with tempfile.TemporaryDirectory() as scratch:
        if path is None:
            path = Path(scratch) / "decoder.onnx"
            write_decoder(CONFIG.decoder, RandomTensors(expected_shapes(CONFIG)), path, "int4")
        weights = path.with_name(f"{path.name}.data").stat().st_size
        report = {
            "machine": machine(),
            "precision": "int4",
            "weight_bytes": weights,
            "bandwidth_gb_s": bandwidth(),
            "steps": [*steps(path, STUDY_TOKENS), *steps(path, SHORT_TOKENS)],
            "same_tokens": same_tokens(path),
            "image_encoder_s": image_encoder(Path(scratch)),
            "first_token_s": first_token(path),
            "transformers": transformers_generate(),
            "steps_again": steps(path, STUDY_TOKENS, (1,)),
        }
    OUTPUT.write_text(json.dumps(report, indent=2) + "\n")
    print_tables(report)


def bandwidth() -> float:
    """GB/s at which all cores together read memory; the best of five."""
    threads = torch.get_num_threads()
    values = np.ones((threads, BANDWIDTH_BYTES // threads // 8))

    def read() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(np.max, values))

    return BANDWIDTH_BYTES / min(timed(read)[1] for _ in range(5)) / 1e9


def steps(path: Path, context: int, concurrency: tuple[int, ...] = CONCURRENCY) -> list[dict[str, float]]:
    """Seconds of a decode step for so many studies, each with `context` tokens in its slot."""
    results = []
    for n in concurrency:
        try:
            decoder = Decoder(path, slots=n, max_length=context + STEPS + 1)
        except ValueError:
            continue
        if decoder.slots == n:  # else the memory of this machine is too small for so many
            times = step_times(decoder, n, context)
            results.append(
                {
                    "context": context,
                    "studies": n,
                    "median_s": statistics.median(times),
                    "min_s": min(times),
                    "max_s": max(times),
                    "kv_bytes": n * (context + 1) * kv_bytes_per_token(),
                }
            )
        del decoder
        gc.collect()
    return results


def step_times(decoder: Decoder, studies: int, context: int) -> list[float]:
    embeds, lengths = random_embeds(studies), np.full(studies, context + 1)
    positions = np.full(studies, context, np.int64)

    def step() -> None:
        decoder.step(embeds, lengths=lengths, position_ids=positions)

    fill(decoder, studies, context)
    step()
    return [timed(step)[1] for _ in range(STEPS)]


def fill(decoder: Decoder, studies: int, context: int) -> None:
    """Write the KV cache of the slots, as prompts would: memory that was never written costs nothing to read."""
    for values in decoder._buffers.values():
        values[:studies, :, :context] = 0.01


def image_encoder(folder: Path) -> float:
    """Seconds of the image encoder for one image; the median of three."""
    trace_image_encoder(ImageEncoder(CONFIG).eval(), folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    pixels = np.zeros((1, CONFIG.vision.image_size, CONFIG.vision.image_size), np.uint8)
    session.run(None, {"pixels": pixels})
    return statistics.median(timed(lambda: session.run(None, {"pixels": pixels}))[1] for _ in range(3))


def first_token(path: Path) -> float:
    """Seconds to read the prompt of a study of one image, encoded already, in the server's chunks."""
    decoder = Decoder(path, slots=1, max_length=STUDY_TOKENS + 1)
    prompt = random_embeds(STUDY_TOKENS)

    def prefill() -> None:
        for past in range(0, STUDY_TOKENS, CHUNK):
            chunk = prompt[past : past + CHUNK]
            decoder.prefill(0, chunk, past=past, position_ids=np.arange(past, past + len(chunk)))

    return timed(prefill)[1]


def same_tokens(path: Path, studies: int = 8) -> dict[str, int]:
    """Of prompts of unequal lengths, the tokens that come out the same answered alone and all at once."""
    prompts = [random_embeds(20 + 7 * i, seed=i) for i in range(studies)]
    table = random_embeds(CONFIG.decoder.vocab_size, seed=99)

    def answers(slots: int) -> list[list[int]]:
        scheduler = Scheduler(
            Decoder(path, slots=slots, max_length=128),
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


def transformers_generate() -> dict[str, float]:
    """Seconds of transformers' generate() in fp32: the first token of a study, and each of the next."""
    with torch.device("meta"):
        model = reference_decoder(CONFIG.decoder).eval().requires_grad_(False)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.uniform_(-0.02, 0.02)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    embeds = torch.from_numpy(random_embeds(STUDY_TOKENS))[None]
    mask = torch.ones(1, STUDY_TOKENS, dtype=torch.int64)

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
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def random_embeds(tokens: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((tokens, CONFIG.decoder.hidden_size)) * 0.02).astype(np.float32)


def kv_bytes_per_token() -> int:
    decoder = CONFIG.decoder
    return 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim * 4


def print_tables(report: dict) -> None:
    about, floor = report["machine"], report["weight_bytes"] / report["bandwidth_gb_s"] / 1e9
    print(f"\n{about['cpu']}, {about['cores']} cores; torch {about['torch']}, onnxruntime {about['onnxruntime']}")
    print(
        f"weights {report['weight_bytes'] / 1e9:.2f} GB, memory {report['bandwidth_gb_s']:.1f} GB/s: "
        f"a step takes at least {floor * 1e3:.0f} ms\n"
    )
    print("| tokens in the slot | studies | step ms | min-max ms | tokens/s | x one study | floor ÷ step |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for rows in (report["steps"], report["steps_again"]):
        for r in rows:
            single = next(s["median_s"] for s in report["steps"] if s["context"] == r["context"] and s["studies"] == 1)
            rate = r["studies"] / r["median_s"]
            moved = (report["weight_bytes"] + r["kv_bytes"]) / report["bandwidth_gb_s"] / 1e9
            print(
                f"| {r['context']} | {r['studies']} | {r['median_s'] * 1e3:.0f} "
                f"| {r['min_s'] * 1e3:.0f}-{r['max_s'] * 1e3:.0f} | {rate:.2f} | {rate * single:.2f} "
                f"| {floor / r['median_s']:.2f} (with KV read: {moved / r['median_s']:.2f}) |"
            )
    theirs, ours = report["transformers"], report["steps"][0]["median_s"]
    print(f"\ntransformers fp32: first token {theirs['first_token_s']:.1f} s, step {theirs['step_s'] * 1e3:.0f} ms")
    encoding = report["image_encoder_s"]
    prompt = report["first_token_s"]
    print(f"int4: first token {prompt:.1f} s and {encoding:.1f} s for the image, step {ours * 1e3:.0f} ms")
    first, step = theirs["first_token_s"] / report["first_token_s"], theirs["step_s"] / ours
    print(f"transformers ÷ int4: first token {first:.1f}, step {step:.1f}")
    same = report["same_tokens"]
    print(f"alone and {same['studies']} at once: {same['same']} of {same['tokens']} tokens are the same")


if __name__ == "__main__":
    main()
