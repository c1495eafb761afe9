"""Published layouts load exactly; anything else ends with the names of what differs."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from medimage_export.errors import CheckpointError, ConfigError
from medimage_export.medimageinsight.checkpoint import find_checkpoint, load_model, random_model, rename_key
from medimage_export.medimageinsight.config import MedImageInsightConfig, read_config
from medimage_export.medimageinsight.davit import Residual
from medimage_export.medimageinsight.reference import ImageEncoderReference, UniCL
from medimage_export.medimageinsight.tokenizer import write_byte_vocabulary
from tests.export.medimageinsight.small import SMALL, small_config
from tests.paths import PHANTOM_CHECKPOINT

# published name -> name in the first DaViT release, one of each kind
OLD_NAMES = (
    ("image_encoder.convs.", "visual.conv_embeds."),
    ("image_encoder.norms.", "visual.norms."),
    ("image_encoder.blocks.", "visual.main_blocks."),
    ("lang_encoder.", "text."),
    ("image_projection", "vision_projection"),
    ("lang_projection", "text_projection"),
)
OLD_BLOCK_NAMES = (
    ("spatial_block.", "0."),
    ("channel_block.", "1."),
    ("conv1.fn.dw.", "cpe.0.proj."),
    ("conv2.fn.dw.", "cpe.1.proj."),
    ("window_attn.norm.", "norm1."),
    ("channel_attn.norm.", "norm1."),
    ("window_attn.fn.", "attn."),
    ("channel_attn.fn.", "attn."),
    ("ffn.norm.", "norm2."),
    ("ffn.fn.net.", "mlp."),
)


def old_name(name: str) -> str:
    for new, old in OLD_NAMES:
        if name.startswith(new):
            name = old + name.removeprefix(new)
            break
    if "main_blocks" in name:
        for new, old in OLD_BLOCK_NAMES:
            name = name.replace(new, old)
    return name


def write_checkpoint(folder: Path, state_dict: dict[str, torch.Tensor]) -> Path:
    """A folder in the published layout for the SMALL config."""
    image, text = SMALL.image, SMALL.text
    config = {
        "IMAGE_ENCODER": {
            "NAME": "davit_v1",
            "NUM_CLASSES": 0,
            "IMAGE_SIZE": list(image.image_size),
            "IMAGE_MEAN": list(image.image_mean),
            "IMAGE_STD": list(image.image_std),
            "SPEC": {
                "PATCH_SIZE": list(image.patch_size),
                "PATCH_STRIDE": list(image.patch_stride),
                "PATCH_PADDING": list(image.patch_padding),
                "PATCH_PRENORM": list(image.patch_prenorm),
                "DIM_EMBED": list(image.embed_dims),
                "NUM_HEADS": list(image.num_heads),
                "NUM_GROUPS": list(image.num_groups),
                "DEPTHS": list(image.depths),
                "WINDOW_SIZE": image.window_size,
            },
        },
        "LANG_ENCODER": {
            "NAME": "transformer",
            "TOKENIZER": "clip",
            "CONTEXT_LENGTH": text.context_length,
            "WIDTH": text.width,
            "HEADS": text.heads,
            "LAYERS": text.layers,
            "AUTOGRESSIVE": False,
        },
        "UNICL_MODEL": {"DIM_PROJECTION": SMALL.projection_dim},
        "AUG": {"INTERPOLATION": "bicubic"},
        "TEST": {"CENTER_CROP": False},
    }
    (folder / "vision_model").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    save_file(state_dict, folder / "vision_model" / "medimageinsigt-v1.0.0.pt")
    tokenizer = folder / "language_model" / "clip_tokenizer_4.16.2"
    tokenizer.mkdir(parents=True)
    write_byte_vocabulary(tokenizer, 512 + 2)
    return folder


@pytest.fixture
def state_dict(small_model) -> dict[str, torch.Tensor]:
    state = dict(small_model.state_dict())
    state["lang_encoder.token_embedding.weight"] = state["lang_encoder.token_embedding.weight"][:514].clone()
    return state


def test_published_config_is_the_default_config(shared_data):
    assert read_config(shared_data / "medimageinsight_config.yaml", vocab_size=49408) == MedImageInsightConfig()


def test_full_size_model_has_the_published_names_and_shapes(shared_data):
    with torch.device("meta"):
        model = UniCL(MedImageInsightConfig())
    rows = (shared_data / "medimageinsight_state_dict.tsv").read_text().splitlines()
    published = {name: shape for name, _, shape in (row.split("\t") for row in rows)}
    assert {name: str(list(tensor.shape)) for name, tensor in model.state_dict().items()} == published
    assert len(published) == 601


def test_full_size_model_has_the_published_parameter_counts():
    with torch.device("meta"):
        model = UniCL(MedImageInsightConfig())
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.image_encoder, model.lang_encoder, model)]
    assert counts == [360_636_416, 252_214_272, 360_636_416 + 252_214_272 + 3_145_729]


@pytest.mark.parametrize("package", ["", "artifacts/checkpoints"], ids=["folder", "mlflow-package"])
def test_checkpoint_loads_every_tensor_exactly(tmp_path, state_dict, package):
    write_checkpoint(tmp_path / package, state_dict)
    loaded = load_model(find_checkpoint(tmp_path)).state_dict()
    assert loaded.keys() == state_dict.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state_dict.items())


def test_checkpoint_with_older_names_loads_the_same_tensors(tmp_path, state_dict):
    old = {old_name(name): tensor for name, tensor in state_dict.items()}
    assert not any(re.match(r"image_encoder|lang_encoder", name) for name in old)
    loaded = load_model(find_checkpoint(write_checkpoint(tmp_path, old))).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state_dict.items())


def test_published_names_are_not_renamed(shared_data):
    rows = (shared_data / "medimageinsight_state_dict.tsv").read_text().splitlines()
    names = [row.split("\t")[0] for row in rows]
    assert [rename_key(name) for name in names] == names


def test_checkpoint_that_differs_is_refused_with_all_names(tmp_path, state_dict):
    missing = state_dict.pop("image_encoder.norms.bias")
    state_dict["image_encoder.head.weight"] = missing
    state_dict["lang_projection"] = torch.zeros(3, 5)
    with pytest.raises(CheckpointError) as caught:
        load_model(find_checkpoint(write_checkpoint(tmp_path, state_dict)))
    assert str(caught.value) == (
        "medimageinsigt-v1.0.0.pt does not match its config; 1 missing: image_encoder.norms.bias; "
        "1 unexpected: image_encoder.head.weight; 1 mis-shaped: lang_projection [3, 5] instead of [64, 1024]"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_tensor_that_is_not_finite_is_refused_by_its_name(tmp_path, state_dict, value):
    state_dict["lang_encoder.resblocks.1.mlp.c_fc.bias"][3:5] = value
    with pytest.raises(CheckpointError) as caught:
        load_model(find_checkpoint(write_checkpoint(tmp_path, state_dict)))
    assert str(caught.value).endswith(
        "holds NaN or infinity: lang_encoder.resblocks.1.mlp.c_fc.bias (2 of 256 numbers); is the file damaged?"
    )


def test_every_branch_of_random_weights_shows_in_the_vector():
    """Left out, one alone."""
    model = random_model(small_config((160, 160)))
    reference = ImageEncoderReference(model)
    pixels = torch.randint(0, 256, (1, 160, 160, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = reference(pixels)[0]
        branches = [module for module in model.modules() if isinstance(module, Residual)]
        assert len(branches) == 40
        for branch in branches:
            branch.forward = lambda x: x
            assert (reference(pixels)[0] * whole).sum() < 0.995
            del branch.forward


def test_truncated_weights_are_refused(tmp_path, state_dict):
    path = write_checkpoint(tmp_path, state_dict) / "vision_model" / "medimageinsigt-v1.0.0.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not readable as safetensors"):
        load_model(find_checkpoint(tmp_path))


def test_pickled_weights_are_refused_unread(tmp_path, state_dict):
    path = write_checkpoint(tmp_path, state_dict) / "vision_model" / "medimageinsigt-v1.0.0.pt"
    torch.save(state_dict, path)
    with pytest.raises(CheckpointError, match="not readable as safetensors"):
        load_model(find_checkpoint(tmp_path))


@pytest.mark.parametrize(
    "part",
    ["config.yaml", "vision_model/medimageinsigt-v1.0.0.pt", "language_model/clip_tokenizer_4.16.2/vocab.json"],
)
def test_missing_part_is_named(tmp_path, state_dict, part):
    (write_checkpoint(tmp_path, state_dict) / part).unlink()
    with pytest.raises(CheckpointError, match=re.escape(part.split("/")[-1].replace("medimageinsigt-v1.0.0", "*"))):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("IMAGE_ENCODER", "SPEC", "WINDOW_SIZE", "12"), "IMAGE_ENCODER.SPEC.WINDOW_SIZE is '12'; expected int"),
        (("IMAGE_ENCODER", "SPEC", "DIM_EMBED", [16, 32]), "IMAGE_ENCODER.SPEC.DIM_EMBED is [16, 32]; expected 4"),
        (("IMAGE_ENCODER", "SPEC", "DEPTHS", 1), "IMAGE_ENCODER.SPEC.PATCH_SIZE is [7, 3, 3, 3]; expected 1 values"),
        (("TEST", "CENTER_CROP", True), "TEST.CENTER_CROP is True; only False is supported"),
        (("LANG_ENCODER", "AUTOGRESSIVE", True), "LANG_ENCODER.AUTOGRESSIVE is True; only False is supported"),
        (("UNICL_MODEL", None), "UNICL_MODEL.DIM_PROJECTION is missing"),
    ],
    ids=["type", "stages", "no-list", "crop", "causal", "missing"],
)
def test_config_that_cannot_be_honoured_is_refused(tmp_path, state_dict, change, message):
    path = write_checkpoint(tmp_path, state_dict) / "config.yaml"
    config = yaml.safe_load(path.read_text())
    *keys, last, value = change
    block = config
    for key in keys:
        block = block[key]
    block[last] = value
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_model(find_checkpoint(tmp_path))


def test_shipped_checkpoint_loads_strictly():
    model = load_model(find_checkpoint(PHANTOM_CHECKPOINT))
    assert model.config.image.image_size == (480, 480)
    assert model.config.projection_dim == 1024
