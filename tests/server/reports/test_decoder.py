"""The decoder's slots on a real graph, against PyTorch without a cache."""

import logging
import os

import numpy as np
import onnxruntime as ort
import pytest

from medimage_server import cuda_memory
from medimage_server.reports import memory
from medimage_server.reports.decoder import Decoder
from medimage_server.reports.generator import GeneratorSettings, ReportGenerator
from medimage_server.reports.memory import fit_slots, fit_slots_on_gpu
from tests.server.reports.small_model import write_small_model

TOLERANCE = 1e-4  # on logits of about 1; another order of sums gives some 1e-6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_small_model(tmp_path_factory.mktemp("model"), "linear")


@pytest.fixture
def decoder(model):
    return Decoder(model.folder / "decoder.onnx", slots=3, max_length=64, threads=1)


def prompt(model, seed, n):
    return model.table[np.random.default_rng(seed).integers(3, len(model.table), n)]


def prefill(decoder, slot, embeds, chunk=64):
    for past in range(0, len(embeds), chunk):
        part = embeds[past : past + chunk]
        logits = decoder.prefill(slot, part, past=past, position_ids=np.arange(past, past + len(part)))
    return logits


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("chunk", [64, 16, 7, 1])
def test_prefill_in_chunks_gives_pytorchs_logits(model, decoder, chunk):
    embeds = prompt(model, 0, 40)
    close(prefill(decoder, 1, embeds, chunk), model.logits(embeds))


def test_step_over_slots_of_different_lengths_gives_each_its_own_logits(model, decoder):
    sequences = [prompt(model, seed, n) for seed, n in ((0, 40), (1, 3), (2, 17))]
    for slot, embeds in enumerate(sequences):
        prefill(decoder, slot, embeds)
    for seed in range(3):
        new = prompt(model, 10 + seed, 3)
        lengths = np.array([len(embeds) + 1 for embeds in sequences])
        logits = decoder.step(new, lengths=lengths, position_ids=lengths - 1)
        sequences = [np.vstack([embeds, row]) for embeds, row in zip(sequences, new, strict=True)]
        for slot, embeds in enumerate(sequences):
            close(logits[slot], model.logits(embeds))


def test_step_takes_the_first_slots_alone_and_an_empty_one_as_a_dummy(model, decoder):
    embeds, new = prompt(model, 0, 20), prompt(model, 1, 2)
    prefill(decoder, 1, embeds)
    logits = decoder.step(new, lengths=np.array([1, 21]), position_ids=np.array([0, 20]))
    assert logits.shape == (2, model.config.decoder.vocab_size)
    close(logits[1], model.logits(np.vstack([embeds, new[1:]])))


def test_step_between_two_chunks_of_a_prefill_leaves_it_whole(model, decoder):
    live, embeds, new = prompt(model, 0, 20), prompt(model, 1, 30), prompt(model, 2, 2)
    prefill(decoder, 1, live)
    prefill(decoder, 0, embeds[:12])
    decoder.step(new, lengths=np.array([13, 21]), position_ids=np.array([12, 20]))
    logits = decoder.prefill(0, embeds[12:], past=12, position_ids=np.arange(12, 30))
    close(logits, model.logits(embeds))


@pytest.mark.parametrize("kind", ["GPU", "CPU"])
@pytest.mark.parametrize("rope", ["linear", "longrope"])
def test_fast_decoding_without_position_ids_is_off_on_cuda_where_the_model_has_long_rope(
    tmp_path, asked_providers, monkeypatch, rope, kind
):
    """What it does is in tests/test_cuda_placement.py; onnxruntime reads the variable when the session is made."""
    monkeypatch.setenv("ORT_DISABLE_FLASH_DECODE", "0")
    seen, session = [], ort.InferenceSession

    def noting(*arguments, **options):
        seen.append(os.environ["ORT_DISABLE_FLASH_DECODE"])
        return session(*arguments, **options)

    monkeypatch.setattr(ort, "InferenceSession", noting)
    model = write_small_model(tmp_path, rope, "fp16")
    settings = GeneratorSettings(
        slots=1,
        gpu_slots=1,
        max_length=0,
        max_queue=1,
        time_limit_s=1,
        prefill_chunk=8,
        gpu_prefill_chunk=8,
        intra_op_thread_count=1,
    )
    ReportGenerator(model.folder, settings, lambda images: None, kind=kind).close()
    assert seen == ["1" if (kind, rope) == ("GPU", "longrope") else "0"]


@pytest.fixture
def asked_providers(monkeypatch):
    """An onnxruntime with CUDA that does not load: the providers that its sessions were asked for."""
    asked, real = [], ort.InferenceSession

    def session(path, options, providers):
        asked.append(providers)
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", session)
    return asked


@pytest.fixture(scope="module")
def fp16_model(tmp_path_factory):
    return write_small_model(tmp_path_factory.mktemp("fp16"), "linear", "fp16")


def test_fp16_goes_to_the_gpu_and_warns_and_decodes_on_the_cpu_where_cuda_does_not_load(
    fp16_model, asked_providers, caplog
):
    decoder = Decoder(fp16_model.folder / "decoder.onnx", slots=1, max_length=64, kind="GPU", threads=1)
    embeds = prompt(fp16_model, 0, 5)
    np.testing.assert_allclose(prefill(decoder, 0, embeds), fp16_model.logits(embeds), rtol=0, atol=0.05)
    assert asked_providers == [[("CUDAExecutionProvider", {"device_id": 0}), "CPUExecutionProvider"]]
    (message,) = caplog.messages
    assert message.startswith("decoder.onnx: this onnxruntime has no CUDA provider that loads")


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_precision_without_attention_on_cuda_runs_on_the_cpu_and_says_what_to_export(
    tmp_path, precision, asked_providers, caplog
):
    model = write_small_model(tmp_path, "linear", precision)
    decoder = Decoder(model.folder / "decoder.onnx", slots=1, max_length=64, kind="GPU", threads=1)
    assert asked_providers == [["CPUExecutionProvider"]]
    assert caplog.messages == [
        f"decoder.onnx: {precision} has no attention on CUDA, so the CPU is used "
        "(for the GPU, export it with --precision fp16)"
    ]
    on_cpu = Decoder(model.folder / "decoder.onnx", slots=1, max_length=64, kind="CPU", threads=1)
    embeds = prompt(model, 0, 5)
    np.testing.assert_array_equal(prefill(decoder, 0, embeds), prefill(on_cpu, 0, embeds))


@pytest.mark.parametrize(("devices", "asked"), [(2, ["CUDAExecutionProvider"]), (0, [])])
def test_instance_that_may_choose_takes_the_first_gpu_if_there_is_one(
    fp16_model, asked_providers, monkeypatch, caplog, devices, asked
):
    monkeypatch.setattr(cuda_memory, "device_count", lambda: devices)
    Decoder(fp16_model.folder / "decoder.onnx", slots=1, max_length=64, kind="MODEL", threads=1)
    ((*before, last),) = asked_providers
    assert [provider for provider, options in before] == asked
    assert [options for provider, options in before] == [{"device_id": 0}] * len(asked)
    assert last == "CPUExecutionProvider"
    assert len(caplog.messages) == len(asked)  # that CUDA does not load; nothing is said where there is no GPU


@pytest.mark.parametrize("version", ["1.23.2", "1.9.0"])
def test_gpu_with_an_onnxruntime_whose_attention_takes_no_positions_is_refused(
    fp16_model, asked_providers, monkeypatch, version
):
    monkeypatch.setattr(ort, "__version__", version)
    with pytest.raises(
        ValueError, match=rf"decoder\.onnx: needs onnxruntime 1\.24 or later on a GPU; this is {version}"
    ):
        Decoder(fp16_model.folder / "decoder.onnx", slots=1, max_length=64, kind="GPU", threads=1)
    assert not asked_providers
    Decoder(fp16_model.folder / "decoder.onnx", slots=1, max_length=64, kind="CPU", threads=1)


def test_gpu_instance_without_a_manifest_names_it(fp16_model, tmp_path, asked_providers):
    (tmp_path / "decoder.onnx").write_bytes((fp16_model.folder / "decoder.onnx").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"manifest\.json: not found; run `medimage export cxrreportgen`"):
        Decoder(tmp_path / "decoder.onnx", slots=1, max_length=64, kind="GPU", threads=1)


def test_slot_forgets_the_answer_before(model, decoder):
    embeds = prompt(model, 1, 5)
    prefill(decoder, 2, prompt(model, 0, 50))
    close(prefill(decoder, 2, embeds), model.logits(embeds))


def test_slot_can_be_filled_to_its_last_token(model, decoder):
    embeds = prompt(model, 0, 64)
    prefill(decoder, 0, embeds[:63])
    logits = decoder.step(embeds[63:], lengths=np.array([64]), position_ids=np.array([63]))
    close(logits[0], model.logits(embeds))


def test_decoder_that_was_not_exported_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"decoder\.onnx: not found; run `medimage export cxrreportgen`"):
        Decoder(tmp_path / "decoder.onnx", slots=1, max_length=8)


def test_file_that_is_no_graph_is_named(tmp_path):
    (tmp_path / "decoder.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"decoder\.onnx: onnxruntime cannot load it"):
        Decoder(tmp_path / "decoder.onnx", slots=1, max_length=8)


def test_gpu_without_the_memory_is_an_error_that_says_what_to_lower(model, monkeypatch):
    """Nothing here has a CUDA driver, so there is none that gives memory."""
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda session: ["CUDAExecutionProvider"])
    with pytest.raises(
        ValueError,
        match=r"of 64 tokens a slot cannot be allocated on cuda:0 \(libcuda.*\): lower the parameter gpu_slots or",
    ):
        Decoder(model.folder / "decoder.onnx", slots=3, max_length=64, threads=1)


def test_cache_is_bound_once_for_each_place_and_number_of_rows(model, decoder, monkeypatch):
    made, make = [], decoder._session.io_binding
    monkeypatch.setattr(decoder._session, "io_binding", lambda: made.append(1) or make())
    for seed in range(3):
        embeds = prompt(model, seed, 9)
        close(prefill(decoder, 2, embeds, chunk=4), model.logits(embeds))
        new = prompt(model, 10 + seed, 3)
        logits = decoder.step(new, lengths=np.array([1, 1, 10]), position_ids=np.array([0, 0, 9]))
        close(logits[2], model.logits(np.vstack([embeds, new[2:]])))
    assert len(made) == 2


def test_slots_that_do_not_fit_in_memory_are_fewer_and_logged(model, caplog, monkeypatch):
    slot_bytes = 2 * 2 * 4 * 64 * 16 * 4  # layers, key and value, heads, tokens, head_dim, float32
    monkeypatch.setattr(memory, "free_bytes", lambda: int(2.5 * slot_bytes / memory.FREE_FRACTION))
    with caplog.at_level(logging.WARNING):
        decoder = Decoder(model.folder / "decoder.onnx", slots=8, max_length=64, threads=1)
    assert decoder.slots == 2
    assert caplog.messages == ["8 slots of 64 tokens need 0.0 GB of KV cache, 0.0 GB are free: 2 slots"]
    close(prefill(decoder, 1, prompt(model, 0, 30)), model.logits(prompt(model, 0, 30)))


def test_fewer_slots_are_told_in_gigabytes(caplog, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 12_100_000_000)
    assert fit_slots(8, 3_221_225_472, 6144) == 3
    assert caplog.messages == ["8 slots of 6144 tokens need 25.8 GB of KV cache, 12.1 GB are free: 3 slots"]


def test_slots_that_fit_are_not_talked_about(caplog, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 100_000_000_000)
    assert fit_slots(8, 3_221_225_472, 6144) == 8
    assert caplog.messages == []


def test_memory_for_not_even_one_slot_is_an_error_that_says_what_to_lower(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 3_000_000_000)
    with pytest.raises(ValueError, match=r"not even one \(3\.2 GB\) fits in the 3\.0 GB .* lower the parameter max_l"):
        fit_slots(8, 3_221_225_472, 6144)


GB = 1_000_000_000
MAIRA2, PHI3_MINI = (
    (13.5 * GB, 3_221_225_472, 6144),
    (7.6 * GB, 1_610_612_736, 4096),
)  # weights and slot in fp16, tokens


@pytest.mark.parametrize(
    ("total_gb", "model", "slots"),
    [(24.1, MAIRA2, 1), (42.3, MAIRA2, 5), (85, MAIRA2, 16), (24.1, PHI3_MINI, 4), (42.3, PHI3_MINI, 15)],
)
@pytest.mark.parametrize("others_gb", [1, 5], ids=["before", "after"])  # contexts of CUDA alone, or encoders in fp16
def test_cards_of_24_40_and_80_gb_get_the_same_slots_whichever_model_loads_first(
    monkeypatch, total_gb, model, slots, others_gb
):
    weights, slot_bytes, tokens = model
    free = int(total_gb * GB - weights - others_gb * GB)
    monkeypatch.setattr(cuda_memory, "free_and_total", lambda device: (free, int(total_gb * GB)))
    fitting = fit_slots_on_gpu(16, slot_bytes, tokens, device_id=0, weight_bytes=int(weights))
    assert fitting == slots
    rest = free - fitting * slot_bytes
    assert rest >= (10 - others_gb) * GB if fitting > 1 else rest >= 0.2 * free


def test_gpu_with_memory_for_not_even_one_slot_is_named(monkeypatch):
    monkeypatch.setattr(cuda_memory, "free_and_total", lambda device: (3 * GB, 24 * GB))
    with pytest.raises(ValueError, match=r"not even one \(3\.2 GB\) fits in the 3\.0 GB that are free on GPU 1: lower"):
        fit_slots_on_gpu(16, 3_221_225_472, 6144, device_id=1, weight_bytes=0)


@pytest.mark.parametrize("files", [("memory.max", "memory.current"), ("limit", "usage")], ids=["v2", "v1"])
def test_limit_of_a_container_counts_without_its_page_cache(tmp_path, monkeypatch, files):
    limit, usage = (tmp_path / file for file in files)
    limit.write_text("5000000\n")
    usage.write_text("4000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\ninactive_file 3000000\n")
    monkeypatch.setattr(memory, "CGROUPS", ((limit, usage),))
    assert memory.free_bytes() == 4_000_000


def test_container_without_a_limit_has_what_the_machine_has(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    monkeypatch.setattr(memory, "CGROUPS", ((tmp_path / "memory.max", tmp_path / "memory.current"),))
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    assert memory.free_bytes() == 4000 * 1024
