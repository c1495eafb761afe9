"""The text encoder of MedImageInsight: a CLIP-style transformer that is not causal.

Module names are those of the published checkpoint (`lang_encoder.*`). Differences from CLIP: every token sees every
other (pads are hidden as keys by the attention mask), and LayerNorm has eps 1e-12 with statistics in fp32.

Shapes: B texts, T tokens (context length), D width, h heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medimage_export.medimageinsight.config import TextConfig

MLP_RATIO = 4
# Added to the score of a padded key. Its exp() is 0 in fp32 and fp16, and unlike -inf it stays finite in both.
MASKED_SCORE = -1e4


class LayerNorm(nn.LayerNorm):
    """LayerNorm with eps 1e-12, which no half precision can represent: computed in float32 at least."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        wide, weight, bias = (tensor.to(dtype) for tensor in (x, self.weight, self.bias))
        return F.layer_norm(wide, self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with the packed parameters of `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, key_bias: Tensor) -> Tensor:
        B, T, D = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias).reshape(B, T, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, h, T, D / h)
        scores = (q * (D // self.heads) ** -0.5) @ k.transpose(-1, -2) + key_bias  # (B, h, T, T)
        return self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, D))


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), CLIP's approximation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.ln_2 = LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, MLP_RATIO * width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(MLP_RATIO * width, width))

    def forward(self, x: Tensor, key_bias: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x), key_bias)
        return x + self.mlp(self.ln_2(x))


class TextTransformer(nn.Module):
    """input_ids, attention_mask (B, T) -> state of the first end-of-text token (B, D), not projected."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        # Without numbers until a checkpoint is loaded: normal ones, on the meta device, import PyTorch's compiler, 4 s.
        self.token_embedding = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.width), freeze=False)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(config.width, config.heads) for _ in range(config.layers))
        self.ln_final = LayerNorm(config.width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.token_embedding(input_ids) + self.positional_embedding[: input_ids.shape[1]]
        key_bias = (1 - attention_mask.to(x.dtype))[:, None, None, :] * MASKED_SCORE  # (B, 1, 1, T)
        for block in self.resblocks:
            x = block(x, key_bias)
        # The end-of-text token has the highest id, and argmax gives the first of equals. int32: ONNX Runtime has no
        # int64 ArgMax.
        end = input_ids.to(torch.int32).argmax(dim=-1)  # (B,)
        # Normed after the selection, which gives the same row: the other rows are not read.
        return self.ln_final(x[torch.arange(x.shape[0], device=x.device), end])
