"""The exported decoder against transformers: lengths across the sliding window and longrope's limit, one to three
images, unequal prompts in a batch, and the faults that the check is there to find."""

import json
import re
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer

from medimage_export.cxrreportgen import decoder_graph
from medimage_export.cxrreportgen.checkpoint import DECODER, load_reference_decoder, open_checkpoint, reference_decoder
from medimage_export.cxrreportgen.decoder_graph import rope_tables, write_decoder
from medimage_export.cxrreportgen.decoder_parity import (
    BOUNDS,
    CachedDecoder,
    References,
    answer_batches,
    check_decoder_parity,
    compare_decoder,
)
from medimage_export.cxrreportgen.export import CHECKED_TOKENS, export_cxrreportgen, parity_prompts
from medimage_export.cxrreportgen.int4 import QuantizedTensors, dequantize_blockwise, quantize_blockwise
from medimage_export.cxrreportgen.next_token_loss import next_token_loss
from medimage_export.errors import CheckpointError, ParityError, RepositoryError
from tests.export.cxrreportgen.small import LLAMA, LONGROPE, PHI3, shorter, write_checkpoint

KINDS = ["llama", "phi3", "longrope"]
WINDOW, LIMIT = 450, 700  # of `shorter`
TEXT_TOKENS = (WINDOW - 7, LIMIT - 11)  # with the new ones past the window, and past the limit


@pytest.fixture(scope="module")
def exported(checkpoints, tmp_path_factory):
    """Config, tensors and the fp32 graph of each kind."""
    found = {}
    for kind in KINDS:
        config, tensors = open_checkpoint(checkpoints[kind])
        path = tmp_path_factory.mktemp(kind) / "decoder.onnx"
        write_decoder(config.decoder, tensors, path, "fp32")
        found[kind] = config, tensors, path
    return found


def embeddings(tensors):
    return tensors.read(f"{DECODER}model.embed_tokens.weight").numpy()


def references_of(config, tensors):
    return References(
        *(load_reference_decoder(config.decoder, tensors, dtype) for dtype in (torch.float64, torch.float32))
    )


def rows_of(config, tensors, path, batches, new_tokens=16):
    return compared(CachedDecoder(path, config.decoder), references_of(config, tensors), batches, tensors, new_tokens)


def compared(decoder, references, batches, tensors, new_tokens):
    table = embeddings(tensors)
    return compare_decoder(decoder, references, answer_batches(decoder, batches, table, new_tokens), table)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_tokens_are_transformers(exported, kind):
    config, tensors, path = exported[kind]
    table = embeddings(tensors)
    generator = np.random.default_rng(1)
    images = generator.standard_normal((3, config.vision.tokens_per_image, 64)).astype(np.float32)
    batches = dict(parity_prompts(config, table, images))
    for length in TEXT_TOKENS:
        if length + 16 <= config.decoder.max_length:
            batches[f"{length} tokens"] = [table[generator.integers(0, 500, length)]]
    batches["ragged past window"] = [table[generator.integers(0, 500, length)] for length in (WINDOW - 2, 3, 220)]
    rows = rows_of(config, tensors, path, batches)
    check_decoder_parity(rows, "fp32")
    assert {row.inputs for row in rows} >= {"1 image", "2 images", "unequal lengths", "ragged past window"}
    assert kind == "phi3" or max(row.prompt + row.new_tokens for row in rows) > LIMIT


@pytest.mark.parametrize(
    ("kind", "fault", "length"),
    [
        ("llama", {"rope_type": "default"}, 100),
        ("phi3", {"sliding_window": None}, WINDOW + 13),
        ("phi3", {"sliding_window": WINDOW - 1}, WINDOW + 13),
        ("longrope", {"long_factor": LONGROPE.decoder.short_factor}, LIMIT + 4),
        ("longrope", {"short_factor": LONGROPE.decoder.long_factor}, 100),
        ("longrope", {"max_position_embeddings": 2 * LIMIT}, 100),  # scales cosines and sines
    ],
)
def test_a_decoder_with_a_known_fault_is_refused(exported, tmp_path, kind, fault, length):
    config, tensors, _ = exported[kind]
    path = tmp_path / "decoder.onnx"
    write_decoder(replace(config.decoder, **fault), tensors, path, "fp32")
    table = embeddings(tensors)
    prompt = table[np.random.default_rng(2).integers(0, 500, length)]
    faulty = replace(config, decoder=replace(config.decoder, **fault))
    references = references_of(config, tensors)
    rows = compared(CachedDecoder(path, faulty.decoder), references, {"prompt": [prompt]}, tensors, 2)
    assert rows[0].export.max_abs > 30 * BOUNDS["fp32"].beside(rows[0].pytorch).max_abs
    with pytest.raises(ParityError, match=r"^fp32 is too far from PyTorch in float64: \S+ logits \(prompt\) has"):
        check_decoder_parity(rows, "fp32")


def test_the_fault_of_the_window_shows_only_beyond_it(exported, tmp_path):
    config, tensors, _ = exported["phi3"]
    path = tmp_path / "decoder.onnx"
    write_decoder(replace(config.decoder, sliding_window=None), tensors, path, "fp32")
    prompt = embeddings(tensors)[np.random.default_rng(2).integers(0, 500, WINDOW - 7)]
    check_decoder_parity(rows_of(config, tensors, path, {"prompt": [prompt]}, new_tokens=7), "fp32")


@pytest.mark.parametrize("config", [LLAMA, PHI3, LONGROPE], ids=KINDS)
def test_rope_tables_are_transformers(config):
    decoder = config.decoder
    module = reference_decoder(decoder).model.rotary_emb
    cos, sin = rope_tables(decoder)
    assert len(cos) >= 3 * 1369 + 400 or decoder.model_type == "phi3"
    for first in range(0, len(cos), decoder.max_length):  # short factors, then long ones
        rows = decoder.original_max_position_embeddings if first == 0 and len(cos) > decoder.max_length else None
        positions = torch.arange(decoder.max_length)[:rows]
        expected_cos, expected_sin = module(torch.zeros(1), positions[None])
        half = decoder.head_dim // 2
        np.testing.assert_allclose(cos[first:][: len(positions)], expected_cos[0, :, :half], atol=2e-4)
        np.testing.assert_allclose(sin[first:][: len(positions)], expected_sin[0, :, :half], atol=2e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [64, 80])
def test_quantized_weights_are_within_half_a_step(bits, size):
    weight = torch.randn(10, size)
    weight[3] = 0
    packed, scales = quantize_blockwise(weight, bits=bits, block_size=32)
    blocks = -(-size // 32)
    assert (packed.shape, packed.dtype, scales.shape) == ((10, blocks, 32 * bits // 8), torch.uint8, (10, blocks))
    restored = dequantize_blockwise(packed, scales, bits=bits, size=size)
    step = scales.abs().repeat_interleave(32, 1)[:, :size]
    # but for the end of the range without the extra step, which may be cut by a whole one
    assert ((restored - weight).abs() <= step * 1.0001).all()
    assert ((restored - weight).abs() <= step * 0.5001).float().mean() > 0.97
    with pytest.raises(ValueError, match="bits is 3"):
        quantize_blockwise(weight, bits=3, block_size=32)


def test_quantized_weights_are_read_by_onnxruntime_as_they_are_meant(exported, tmp_path):
    """The whole int4 graph against a reference with the restored weights; see also the export below."""
    config, tensors, _ = exported["llama"]
    path = tmp_path / "decoder.onnx"
    write_decoder(config.decoder, tensors, path, "int4")
    prompt = embeddings(tensors)[np.random.default_rng(3).integers(0, 500, 50)]
    restored = QuantizedTensors(tensors)
    references = references_of(config, restored)
    decoder = CachedDecoder(path, config.decoder)
    right = compared(decoder, references, {"": [prompt]}, tensors, 4)[0]
    plain = references_of(config, tensors)
    lossy = compared(decoder, plain, {"": [prompt]}, tensors, 4)[0]
    assert right.export.min_cosine > 0.999 > lossy.export.min_cosine


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_loss_of_a_precision_is_what_torch_and_a_plain_session_find(exported, tmp_path, precision):
    """The graph runs from the start for each token, without a cache; the model is transformers', not streamed."""
    config, tensors, _ = exported["llama"]
    path = tmp_path / "decoder.onnx"
    write_decoder(config.decoder, tensors, path, precision)
    table, new_tokens = embeddings(tensors), 5
    prompts = [table[np.random.default_rng(4).integers(0, 500, length)] for length in (9, 21)]
    model = reference_decoder(config.decoder).eval()
    model.load_state_dict({name: tensors.read(f"{DECODER}{name}").float() for name in model.state_dict()})

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = {node.name: node for node in session.get_inputs()}
    dtype = np.float16 if precision == "fp16" else np.float32
    divergences, same = [], 0
    for sequence in prompts:
        for _ in range(new_tokens):
            n = len(sequence)
            feed = {
                "inputs_embeds": sequence[None].astype(dtype),
                "position_ids": np.arange(n)[None],
                "seqlens_k": np.array([n - 1], np.int32),
                "total_sequence_length": np.array(n, np.int32),
            }
            feed |= {
                name: np.zeros((1, node.shape[1], n, node.shape[3]), dtype)
                for name, node in inputs.items()
                if name.startswith("past_key_values")
            }
            found = torch.from_numpy(session.run(["logits"], feed)[0][0].astype(np.float32))
            with torch.inference_mode():
                expected = model(inputs_embeds=torch.from_numpy(sequence)[None]).logits[0, -1]
            divergences.append(
                torch.distributions.kl_divergence(
                    torch.distributions.Categorical(logits=expected.double()),
                    torch.distributions.Categorical(logits=found.double()),
                ).item()
            )
            same += int(expected.argmax() == found.argmax())
            sequence = np.vstack([sequence, table[found.argmax()]])

    decoder = CachedDecoder(path, config.decoder)
    answers = answer_batches(decoder, {"": prompts}, table, new_tokens)
    loss = next_token_loss(load_reference_decoder(config.decoder, tensors), config.decoder, answers, table)
    assert (loss.positions, loss.same_likeliest) == (10, same)
    assert loss.mean_kl == pytest.approx(np.mean(divergences), rel=0.05)
    assert loss.worst_kl == pytest.approx(max(divergences), rel=0.05)
    assert 0 < loss.mean_kl < loss.worst_kl


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_export_puts_everything_in_place(checkpoints, repository, precision, capsys):
    rows = export_cxrreportgen(checkpoints["phi3"], repository, precision=precision)
    told = re.findall(r"KL (\S+) nats in the mean, (\S+) at worst, .* of (\d+) positions", capsys.readouterr().out)
    manifest = json.loads((repository / "cxrreportgen_stream/1/manifest.json").read_text())
    if precision == "fp32":
        assert (told, manifest["next_token_loss"]) == ([], None)
    else:
        mean, worst, positions = told[0]
        loss = manifest["next_token_loss"]
        assert (loss["mean_kl"], loss["worst_kl"]) == pytest.approx((float(mean), float(worst)), rel=0.01)
        assert int(positions) == loss["positions"] == 5 * CHECKED_TOKENS  # three short prompts, one and two images
    assert manifest["kv_bytes_per_token"] == 2 * 2 * 64 * (2 if precision == "fp16" else 4)
    assert [row.inputs for row in rows] == ["unequal lengths", "1 image", "2 images"]  # three do not fit
    folder = repository / "cxrreportgen_stream" / "1"
    assert {path.name for path in folder.iterdir()} - {"model.py"} == {
        "decoder.onnx", "decoder.onnx.data", "embed_tokens.npy", "generation.json", "manifest.json", "tokenizer.json",
    }  # fmt: skip
    assert (repository / "cxr_image_encoder" / "1" / "model.onnx").is_file()
    assert (repository / "cxr_image_preprocessing" / "1" / "preprocessing.json").is_file()
    table = np.load(folder / "embed_tokens.npy", mmap_mode="r")
    assert (table.shape, table.dtype) == ((500, 64), np.float32 if precision == "fp32" else np.float16)
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<box>") is not None
    kinds = {model: config_kind(repository, model) for model in ("cxrreportgen_stream", "cxr_image_encoder")}
    assert kinds == {
        "cxrreportgen_stream": "KIND_CPU" if precision == "int4" else "KIND_MODEL",
        "cxr_image_encoder": "KIND_AUTO",
    }


def config_kind(repository, model):
    (kind,) = re.findall(r"(?m)^instance_group .*kind: (KIND_\w+)", (repository / model / "config.pbtxt").read_text())
    return kind


def test_failed_parity_leaves_the_repository_alone(checkpoints, repository, monkeypatch):
    # onnxruntime-genai's fault, with enough rows
    unscaled = {"rope_factor": 1.0, "max_position_embeddings": LIMIT * 3 // 2}
    monkeypatch.setattr(decoder_graph, "rope_tables", lambda config: rope_tables(replace(config, **unscaled)))
    before = sorted(repository.rglob("*"))
    with pytest.raises(ParityError):
        export_cxrreportgen(checkpoints["llama"], repository)
    assert sorted(repository.rglob("*")) == before


def test_tokenizer_must_have_the_grammar_and_fit_the_decoder(tmp_path, repository):
    write_checkpoint(tmp_path / "model", shorter(LLAMA))
    path = tmp_path / "model" / "tokenizer.json"
    whole = path.read_text()
    path.write_text(whole.replace("<x7>", "<z7>"))
    with pytest.raises(CheckpointError, match=r"lacks 1 tokens of the output grammar, e\.g\. \['<x7>'\]"):
        export_cxrreportgen(tmp_path / "model", repository)
    tokenizer = Tokenizer.from_str(whole)
    tokenizer.add_tokens(["one too many"])
    tokenizer.save(str(path))
    with pytest.raises(CheckpointError, match=r"has ids up to 500, and the end is .* the decoder has 500 rows"):
        export_cxrreportgen(tmp_path / "model", repository)


def test_repository_of_something_else_is_refused(checkpoints, tmp_path):
    with pytest.raises(RepositoryError, match=r"config\.pbtxt is missing"):
        export_cxrreportgen(checkpoints["llama"], tmp_path)
