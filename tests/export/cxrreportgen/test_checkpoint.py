"""Strict, streamed reading of checkpoint folders, in every published naming."""

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from medimage_export.cxrreportgen.checkpoint import (
    CheckpointTensors,
    expected_shapes,
    find_checkpoint,
    load_image_encoder,
    load_reference_decoder,
    open_checkpoint,
    reference_decoder,
    rename_key,
)
from medimage_export.cxrreportgen.config import PHI3_MINI, CXRReportGenConfig
from medimage_export.cxrreportgen.export import export_cxrreportgen
from medimage_export.errors import CheckpointError
from tests.export.cxrreportgen.small import LLAMA, PHI3, shorter, write_checkpoint


def total(shapes: dict[str, torch.Size], prefix: str = "") -> int:
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(prefix))


def test_maira2_has_the_published_tensors():
    shapes = expected_shapes(CXRReportGenConfig())
    mask_token = 768  # published and unused
    assert len(shapes) + 1 == 522
    assert total(shapes) + mask_token == 6_880_185_600
    counts = {prefix: sum(name.startswith(prefix) for name in shapes) for prefix in ("language_model.", "multi_modal_")}
    assert counts == {"language_model.": 291, "multi_modal_": 8}
    assert shapes["language_model.model.embed_tokens.weight"] == (32207, 4096)
    assert shapes["language_model.model.layers.31.mlp.down_proj.weight"] == (4096, 11008)
    assert shapes["vision_tower.encoder.layer.11.attention.attention.query.bias"] == (768,)
    assert shapes["multi_modal_projector.layers.6.weight"] == (4096, 4096)


def test_cxrreportgen_has_the_published_size():
    shapes = expected_shapes(CXRReportGenConfig(decoder=PHI3_MINI))
    assert 4 * (total(shapes) + 768) == 15_757_157_376
    assert shapes["language_model.model.layers.0.self_attn.qkv_proj.weight"] == (9216, 3072)
    assert shapes["language_model.model.layers.0.mlp.gate_up_proj.weight"] == (16384, 3072)


def to_transformers_5(name: str) -> str:
    for old, new in (
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise AssertionError(name)


def to_timm(state_dict: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The vision tower as open_clip and timm name it, qkv in one; written down from timm's vision_transformer.py."""
    named = {}
    for name, tensor in state_dict.items():
        if not name.startswith("vision_tower."):
            named[name] = tensor
            continue
        name = name.removeprefix("vision_tower.").removeprefix("embeddings.").removeprefix("encoder.")
        name = name.replace("position_embeddings", "pos_embed").replace(
            "patch_embeddings.projection", "patch_embed.proj"
        )
        name = re.sub(r"^layer\.", "blocks.", name).replace("layernorm", "norm")
        name = name.replace("attention.output.dense", "attn.proj")
        name = re.sub(r"layer_scale(\d)\.lambda1", r"ls\1.gamma", name)
        named[prefix + name] = tensor
    for block in range(LLAMA.vision.num_layers):
        for part in ("weight", "bias"):
            qkv = [
                named.pop(f"{prefix}blocks.{block}.attention.attention.{x}.{part}") for x in ("query", "key", "value")
            ]
            named[f"{prefix}blocks.{block}.attn.qkv.{part}"] = torch.cat(qkv)
    return named


@pytest.mark.parametrize("naming", ["4.51", "5.x", "module.visual.trunk.", "vision_tower.trunk."])
def test_every_naming_gives_the_same_tensors(checkpoints, tmp_path, naming):
    state_dict = load_file(checkpoints["llama"] / "model.safetensors")
    if naming == "5.x":
        written = {to_transformers_5(name): tensor for name, tensor in state_dict.items()}
    else:
        written = to_timm(state_dict, naming) if "trunk" in naming else dict(state_dict)
    save_file({name: tensor.contiguous() for name, tensor in written.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((checkpoints["llama"] / "config.json").read_text())
    config, tensors = open_checkpoint(tmp_path)
    assert config == shorter(LLAMA)
    assert tensors.shapes.keys() == state_dict.keys()
    for name, tensor in state_dict.items():
        assert torch.equal(tensors.read(name), tensor), name


def test_rename_leaves_published_names_alone():
    for name in expected_shapes(LLAMA):
        assert rename_key(name) == name


def test_unused_mask_token_is_let_pass_and_shards_are_read_through_their_index(checkpoints, tmp_path):
    state_dict = load_file(checkpoints["phi3"] / "model.safetensors")
    state_dict["vision_tower.embeddings.mask_token"] = torch.zeros(1, 32)
    shards = {f"model-0000{i + 1}-of-00003.safetensors": list(state_dict)[i::3] for i in range(3)}
    for file, names in shards.items():
        save_file({name: state_dict[name] for name in names}, tmp_path / file)
    index = {"weight_map": {name: file for file, names in shards.items() for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text((checkpoints["phi3"] / "config.json").read_text())
    _, tensors = open_checkpoint(tmp_path)
    assert all(torch.equal(tensors.read(name), tensor) for name, tensor in state_dict.items())

    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"files that are not there: model-00002-of-00003\.safetensors"):
        open_checkpoint(tmp_path)


def test_what_differs_is_named(tmp_path):
    state_dict = write_checkpoint(tmp_path / "model", LLAMA)
    del state_dict["language_model.model.norm.weight"]
    state_dict["surplus"] = torch.zeros(1)
    state_dict["multi_modal_projector.layers.0.bias"] = torch.zeros(7)
    save_file(state_dict, tmp_path / "model" / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(tmp_path / "model")
    assert str(error.value) == (
        "model does not match its config; 1 missing: language_model.model.norm.weight; 1 unexpected: surplus; "
        "1 mis-shaped: multi_modal_projector.layers.0.bias [7] instead of [64]"
    )


def test_tensor_that_is_not_finite_is_refused_before_anything_is_written(tmp_path, repository):
    tensors = write_checkpoint(tmp_path / "model", PHI3)
    name = "language_model.model.layers.1.mlp.down_proj.weight"
    tensors[name][2, 3] = math.inf
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    before = sorted(repository.rglob("*"))
    with pytest.raises(
        CheckpointError, match=rf"holds NaN or infinity: {name} \(1 of \d+ numbers\); is the file damaged"
    ):
        export_cxrreportgen(tmp_path / "model", repository)
    assert sorted(repository.rglob("*")) == before


@pytest.mark.parametrize("kind", ["llama", "phi3", "longrope"])
def test_float64_reference_is_transformers_but_for_the_rounding_of_norms_and_angles(checkpoints, kind):
    config, tensors = open_checkpoint(checkpoints[kind])
    embeds = torch.randn(1, 700, config.decoder.hidden_size, generator=torch.Generator().manual_seed(0))
    found, published = (
        load_reference_decoder(config.decoder, tensors, dtype)(inputs_embeds=embeds.to(dtype), use_cache=False).logits
        for dtype in (torch.float64, torch.float32)
    )
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), published, rtol=0, atol=2e-4 * found.abs().max().item())
    norms = [
        m for m in load_reference_decoder(config.decoder, tensors, torch.float64).modules() if "RMSNorm" in str(type(m))
    ]
    assert norms and all(type(norm) is torch.nn.RMSNorm for norm in norms)


def test_folders_that_are_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        find_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"expected one folder with config\.json and tokenizer\.json, found 0"):
        find_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors\.index\.json nor"):
        CheckpointTensors(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="not readable as safetensors"):
        CheckpointTensors(tmp_path)


def test_a_packaged_folder_is_found(checkpoints, tmp_path):
    inner = tmp_path / "package" / "artifacts" / "checkpoints"
    shutil.copytree(checkpoints["llama"], inner)
    assert find_checkpoint(tmp_path / "package") == find_checkpoint(inner) == inner


@pytest.mark.parametrize("config", [LLAMA, PHI3], ids=["llama", "phi3"])
def test_streamed_reference_is_transformers_with_all_weights_loaded(checkpoints, config):
    folder = checkpoints[config.decoder.model_type]
    _, tensors = open_checkpoint(folder)
    whole = reference_decoder(config.decoder).eval()
    prefix = "language_model."
    weights = load_file(folder / "model.safetensors")
    whole.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    embeds = torch.randn(2, 30, 64)
    streamed = load_reference_decoder(config.decoder, tensors)
    with torch.inference_mode():
        for _ in range(2):  # a second pass finds the layers again
            found, expected = (m(inputs_embeds=embeds, use_cache=False).logits for m in (streamed, whole))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert all(p.is_meta for p in streamed.model.layers.parameters())


def test_image_encoder_gets_every_weight(checkpoints):
    config, tensors = open_checkpoint(checkpoints["llama"])
    encoder = load_image_encoder(config, tensors)
    weights = load_file(checkpoints["llama"] / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in encoder.state_dict().items())
    assert not encoder.mean.is_meta


MEASURE = """
import sys, threading, time
from pathlib import Path
from medimage_export.cxrreportgen.export import export_cxrreportgen

def own_kib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def watch():
    while True:
        peaks[0] = max(peaks[0], own_kib())
        time.sleep(0.01)

before = own_kib()
peaks = [before]
threading.Thread(target=watch, daemon=True).start()
export_cxrreportgen(Path(sys.argv[1]), Path(sys.argv[2]))
print(peaks[0] - before)
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A checkpoint that is large beside what an export needs for itself."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_layers": 12}
    vision = replace(LLAMA.vision, patch_size=74)
    write_checkpoint(folder, replace(LLAMA, vision=vision, decoder=replace(LLAMA.decoder, **sizes)))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.soak
def test_memory_is_that_of_single_weights_not_of_the_checkpoint(wide, repository):
    """Memory of its own, without the pages of memory-mapped files, which the system takes back when it needs them."""
    size_kib = (wide / "model.safetensors").stat().st_size / 1024
    assert size_kib > 300_000
    command = [sys.executable, "-c", MEASURE, wide, repository]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(printed.splitlines()[-1]) < 0.75 * size_kib
