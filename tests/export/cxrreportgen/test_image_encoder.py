"""The vision tower against transformers' Dinov2, and the projector against its formula."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from transformers import Dinov2Backbone, Dinov2Config

from medimage_export.cxrreportgen.config import CXRReportGenConfig, VisionConfig
from medimage_export.cxrreportgen.image_encoder import ImageEncoder, VisionTower
from tests.export.cxrreportgen.small import LLAMA, VISION, random_state_dict

SMALL = replace(VISION, image_size=56)
PREFIX = "vision_tower."


def tower_weights(config: VisionConfig) -> dict[str, torch.Tensor]:
    weights = random_state_dict(replace(LLAMA, vision=config))
    return {name.removeprefix(PREFIX): value.double() for name, value in weights.items() if name.startswith(PREFIX)}


def tower(config: VisionConfig) -> VisionTower:
    module = VisionTower(config).double()
    module.load_state_dict(tower_weights(config))
    return module


@pytest.fixture
def backbone(tmp_path):
    """transformers' own tower, which reads the published names and has every block's output."""

    def load(config: VisionConfig) -> Dinov2Backbone:
        weights = tower_weights(config) | {"embeddings.mask_token": torch.zeros(1, config.hidden_size)}
        save_file(weights, tmp_path / "model.safetensors")
        Dinov2Config(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            patch_size=config.patch_size,
            image_size=config.image_size,
            reshape_hidden_states=False,
            apply_layernorm=config.final_norm,
            out_indices=[config.blocks_used],
        ).save_pretrained(tmp_path)
        return Dinov2Backbone.from_pretrained(tmp_path, dtype=torch.float64).eval()

    return load


@pytest.mark.parametrize("feature_layer", [-1, -2, 2])
@pytest.mark.parametrize("final_norm", [True, False])
def test_tower_is_transformers_dinov2(backbone, feature_layer, final_norm):
    config = replace(SMALL, feature_layer=feature_layer, final_norm=final_norm)
    images = torch.randn(2, 3, 56, 56, dtype=torch.float64)
    with torch.inference_mode():
        expected = backbone(config)(images).feature_maps[0][:, 1:]
        found = tower(config)(images)
    assert found.shape == (2, 16, 32)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_cls_token_is_kept_with_the_full_strategy(backbone):
    config = replace(SMALL, drop_cls=False)
    images = torch.randn(1, 3, 56, 56, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(tower(config)(images), backbone(config)(images).feature_maps[0], rtol=0, atol=1e-10)


def test_no_layer_scale_is_a_layer_scale_of_one():
    with_scale, without = tower(SMALL), VisionTower(replace(SMALL, layer_scale=False)).double()
    weights = tower_weights(SMALL)
    for name, value in weights.items():
        if "layer_scale" in name:
            value.fill_(1)
    with_scale.load_state_dict(weights)
    without.load_state_dict({name: value for name, value in weights.items() if "layer_scale" not in name})
    images = torch.randn(1, 3, 56, 56, dtype=torch.float64)
    torch.testing.assert_close(without(images), with_scale(images))


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_projector_is_linear_layers_with_exact_gelu_between(layers):
    projector = ImageEncoder(replace(LLAMA, projector_layers=layers)).multi_modal_projector.double()
    assert {name.split(".")[1] for name in projector.state_dict()} == {str(2 * i) for i in range(layers)}
    x = expected = torch.randn(3, 5, 32, dtype=torch.float64)
    for i in range(layers):
        if i:
            expected = expected * 0.5 * (1 + torch.erf(expected / 2**0.5))
        linear = projector.layers[2 * i]
        expected = expected @ linear.weight.T + linear.bias
    torch.testing.assert_close(projector(x), expected)


def test_encoder_scales_and_normalises_three_equal_channels():
    config = CXRReportGenConfig(SMALL, 1, LLAMA.decoder)
    encoder = ImageEncoder(config)
    pixels = torch.randint(0, 256, (2, 56, 56), dtype=torch.uint8)
    values = (pixels.double() / 255 - 0.5307) / 0.2583
    expected = encoder.multi_modal_projector(encoder.vision_tower(values[:, None].expand(-1, 3, -1, -1).float()))
    torch.testing.assert_close(encoder(pixels), expected)


def test_published_size():
    config = CXRReportGenConfig()
    with torch.device("meta"):
        encoder = ImageEncoder(config)
    assert config.vision.tokens_per_image == 1369
    assert sum(p.numel() for p in encoder.vision_tower.parameters()) == 86_579_712  # and 768 of the mask token
    assert len(encoder.vision_tower.state_dict()) + len(encoder.multi_modal_projector.state_dict()) == 222 + 8
