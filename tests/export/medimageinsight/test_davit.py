"""The image encoder against the DaViT of `transformers` (Florence-2's vision backbone), weights mapped by name."""

import pytest
import torch
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig
from transformers.models.florence2.modeling_florence2 import Florence2VisionBackbone, Florence2VisionChannelAttention

from medimage_export.medimageinsight.davit import ChannelAttention, DaViT, WindowAttention
from tests.export.medimageinsight.small import SMALL

FLORENCE_NAMES = (
    (".proj.", ".conv.", "convs."),
    (".conv1.fn.dw.", ".conv1.", "blocks."),
    (".conv2.fn.dw.", ".conv2.", "blocks."),
    (".window_attn.norm.", ".norm1.", "blocks."),
    (".channel_attn.norm.", ".norm1.", "blocks."),
    (".window_attn.fn.", ".window_attn.", "blocks."),
    (".channel_attn.fn.", ".channel_attn.", "blocks."),
    (".ffn.norm.", ".norm2.", "blocks."),
    (".ffn.fn.net.", ".ffn.", "blocks."),
)


def florence_name(name: str) -> str:
    for ours, theirs, prefix in FLORENCE_NAMES:
        if name.startswith(prefix):
            name = name.replace(ours, theirs)
    return name


def florence_backbone(davit: DaViT) -> Florence2VisionBackbone:
    image = SMALL.image
    config = Florence2VisionConfig(
        depths=image.depths,
        embed_dim=image.embed_dims,
        num_heads=image.num_heads,
        num_groups=image.num_groups,
        window_size=image.window_size,
        attn_implementation="eager",
    )
    backbone = Florence2VisionBackbone(config).double().eval()
    weights = {florence_name(k): v for k, v in davit.state_dict().items() if not k.startswith("norms.")}
    backbone.load_state_dict(weights, strict=True)
    return backbone


# 480: grids 120, 60, 30, 15, the last two padded. 224: 56, 28, 14, 7, all padded. 480x320 is not square.
@pytest.mark.parametrize("size", [(480, 480), (224, 224), (480, 320)], ids=["480", "224", "480x320"])
def test_davit_equals_florence_backbone_with_pooling_and_norm_after_it(small_model, size):
    davit = small_model.image_encoder.double()
    pixels = torch.randn((2, 3, *size), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        tokens = florence_backbone(davit)(pixels).last_hidden_state.flatten(2)  # (B, C, N)
        pooled = tokens.mean(dim=2)
        expected = torch.nn.functional.layer_norm(
            pooled, pooled.shape[1:], davit.norms.weight, davit.norms.bias, eps=1e-5
        )
        found = davit(pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_channel_attention_is_scaled_by_token_count_and_not_by_head_dim():
    """The scale is the one difference between published DaViTs: written out here, and the other one must fail."""
    torch.manual_seed(0)
    attention = ChannelAttention(dim=32, groups=4).double()
    x = torch.randn(2, 6, 5, 32, dtype=torch.float64)
    q, k, v = attention.qkv(x.flatten(1, 2)).reshape(2, 30, 3, 4, 8).permute(2, 0, 3, 1, 4)  # each (B, g, N, C / g)

    def published(scale: float) -> torch.Tensor:
        mixing = torch.einsum("bgnc,bgnd->bgcd", q * scale, k).softmax(-1)
        mixed = torch.einsum("bgcd,bgnd->bngc", mixing, v)
        return attention.proj(mixed.reshape(2, 6, 5, 32))

    torch.testing.assert_close(attention(x), published(30**-0.5), rtol=0, atol=1e-12)
    assert (attention(x) - published(8**-0.5)).abs().max() > 1e-3


def test_channel_attention_equals_florence_block_alone():
    torch.manual_seed(0)
    ours = ChannelAttention(dim=16, groups=2).double()
    config = Florence2VisionConfig(embed_dim=(16,), num_groups=(2,), num_heads=(2,), attn_implementation="eager")
    theirs = Florence2VisionChannelAttention(config, stage_idx=0).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 7, 9, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x.flatten(1, 2)).reshape(x.shape), rtol=0, atol=1e-12)


def test_window_attention_lets_padded_tokens_take_part():
    """With values of 1 everywhere and keys that all score equally, a masked pad would leave the mean at 1."""
    attention = WindowAttention(dim=8, heads=1, window=4)
    with torch.no_grad():
        attention.qkv.weight.zero_()
        attention.qkv.bias.zero_()
        attention.qkv.weight[16:] = torch.eye(8)  # value = input; a padded token's value is the bias, here 0
        attention.proj.weight.copy_(torch.eye(8))
        attention.proj.bias.zero_()
    found = attention(torch.ones(1, 3, 3, 8))  # one window: 9 tokens and 7 pads
    torch.testing.assert_close(found, torch.full((1, 3, 3, 8), 9 / 16))
