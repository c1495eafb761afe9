"""The text encoder against `torch.nn.MultiheadAttention` and CLIP's formulas."""

import pytest
import torch
from torch import nn

from medimage_export.medimageinsight.text_transformer import LayerNorm, TextTransformer
from tests.export.medimageinsight.small import END, SMALL, random_texts


@pytest.fixture
def encoder(small_model) -> TextTransformer:
    return small_model.lang_encoder


def reference(encoder: TextTransformer, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """CLIP's text tower with PyTorch's own attention; key padding mask instead of the causal one; fp64."""
    state = {name: tensor.double() for name, tensor in encoder.state_dict().items()}
    width = SMALL.text.width

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return centred / (variance + 1e-12).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    x = state["token_embedding.weight"][input_ids] + state["positional_embedding"]
    for i in range(SMALL.text.layers):
        attention = nn.MultiheadAttention(width, SMALL.text.heads, batch_first=True).double()
        prefix = f"resblocks.{i}.attn."
        attention.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        normed = norm(x, f"resblocks.{i}.ln_1")
        x = x + attention(normed, normed, normed, key_padding_mask=attention_mask == 0, need_weights=False)[0]
        hidden = linear(norm(x, f"resblocks.{i}.ln_2"), f"resblocks.{i}.mlp.c_fc")
        x = x + linear(hidden / (1 + torch.exp(-1.702 * hidden)), f"resblocks.{i}.mlp.c_proj")
    x = norm(x, "ln_final")
    first_end = (input_ids == END).int().argmax(dim=-1)
    return x[torch.arange(len(x)), first_end]


def test_text_transformer_equals_clip_formulas_with_key_padding(encoder):
    ids, mask = random_texts([2, 11, 40, 77])
    with torch.inference_mode():
        torch.testing.assert_close(encoder(ids, mask), reference(encoder, ids, mask).float(), rtol=0, atol=2e-5)


def test_text_transformer_pools_at_the_first_of_two_end_tokens(encoder):
    ids, mask = random_texts([12])
    ids[0, 4] = END  # written in the text by its author
    with torch.inference_mode():
        torch.testing.assert_close(encoder(ids, mask), reference(encoder, ids, mask).float(), rtol=0, atol=2e-5)


def test_text_transformer_ignores_which_id_pads(encoder):
    with torch.inference_mode():
        torch.testing.assert_close(
            encoder(*random_texts([9], pad=END)), encoder(*random_texts([9], pad=0)), rtol=0, atol=0
        )


def test_text_transformer_is_not_causal(encoder):
    """An early end token sees the tokens after it: changing one of them changes the answer."""
    ids, mask = random_texts([12])
    ids[0, 4] = END
    changed = ids.clone()
    changed[0, 8] += 1
    with torch.inference_mode():
        assert (encoder(ids, mask) - encoder(changed, mask)).abs().max() > 1e-4


def test_text_transformer_gives_the_same_for_a_shorter_sequence(encoder):
    ids, mask = random_texts([9])
    with torch.inference_mode():
        torch.testing.assert_close(encoder(ids, mask), encoder(ids[:, :9], mask[:, :9]), rtol=0, atol=1e-5)


def test_layer_norm_keeps_fp32_statistics_in_half_precision():
    """In fp16 eps 1e-12 would be 0, and the variance of this row underflows to 0: only fp32 gives a number."""
    row = torch.tensor([[1e-4, -1e-4, 1e-4, -1e-4]], dtype=torch.float16)
    expected = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float16)
    torch.testing.assert_close(LayerNorm(4).half()(row), expected)
