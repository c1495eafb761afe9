"""The layers of an encoder that int8 multiplies in 8 bits: what goes in, what multiplies it, and what comes before it.

What goes in is quantized by one scale for all channels, so that a channel 64 times as large as the rest leaves two bits
for those. What comes before can often be made to give each channel smaller by a factor, and the layer to take it larger
by the same: the function stays. That is SmoothQuant's migration, https://arxiv.org/abs/2211.10438; factors here are
powers of two, so that float32 stays the same to the last bit, too.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medimage_export.medimageinsight.davit import ChannelAttention, DaViT, PatchEmbed, Residual, WindowAttention
from medimage_export.medimageinsight.quantization import Quantization, rounded_weight
from medimage_export.medimageinsight.text_transformer import ResidualAttentionBlock, TextTransformer

Shrink = Callable[[Tensor], None]


@dataclass(frozen=True)
class IntegerLayer:
    """A product of 8-bit integers in the graph.

    Attributes:
        name: as in the graphs and the checkpoint.
        branch: the residual branch or patch convolution that it is part of, by name.
        module: whose first input is quantized, channels last but for a convolution.
        parameter: of the module, its weight (out, in) or (out, in, height, width).
        shrink: divides what comes before by factors (in,), exactly; None where that is not linear.
        tied: so many neighbouring channels must have the same factor.
        qkv: of the attention before it, where the graph adds the bias of v behind this layer instead.
    """

    name: str
    branch: str
    module: nn.Module
    parameter: str = "weight"
    shrink: Shrink | None = None
    tied: int = 1
    qkv: nn.Linear | None = None

    @property
    def weight(self) -> Tensor:
        return self.module.get_parameter(self.parameter)

    def set_weight(self, weight: Tensor) -> None:
        setattr(self.module, self.parameter, _frozen(weight))

    def rounded_inputs(self, inputs: Tensor, how: Quantization) -> Tensor:
        """What is left of its input in 8 bits, as the module takes it."""
        divisors = torch.ones(()) if how.divisors is None else how.divisors
        return how.range.rounded((inputs - self.offset) / divisors) * divisors + self.offset

    def rounded_weight(self, how: Quantization) -> Tensor:
        if how.divisors is None:
            return rounded_weight(self.weight)
        return self.grow(rounded_weight(self.grow(self.weight, how.divisors)), 1 / how.divisors)

    def by_rows(self, inputs: Tensor) -> Tensor:
        """Its input as (rows, in), as the graph has it."""
        rows = inputs.permute(0, 2, 3, 1) if isinstance(self.module, nn.Conv2d) else inputs
        return rows.flatten(0, -2) - self.offset

    @property
    def offset(self) -> Tensor:
        """By how much its input is larger in PyTorch than in the graph: (in,), or 0."""
        return torch.zeros(()) if self.qkv is None else self.qkv.bias.chunk(3)[2]

    def grow(self, weight: Tensor, factors: Tensor) -> Tensor:
        """A weight, with the columns of each input channel times its factor."""
        return weight * factors.reshape(-1, *(1,) * (weight.ndim - 2))

    def migrate(self, factors: Tensor) -> None:
        """Divide the input's channels by factors, which are powers of two, and multiply the weight's by them.

        Raises:
            ValueError: what comes before cannot be divided.
        """
        if self.shrink is None:
            raise ValueError(f"{self.name}: nothing linear comes before it")
        self.shrink(factors)
        self.set_weight(self.grow(self.weight, factors))


def integer_layers(encoder: DaViT | TextTransformer) -> Iterator[IntegerLayer]:
    """All of an encoder, in the order in which they compute."""
    for name, module in encoder.named_modules():
        if isinstance(module, PatchEmbed) and module.prenorm:  # not the one that takes the image itself
            yield IntegerLayer(f"{name}.proj", name, module.proj, shrink=_of_norm(module.norm))
        elif isinstance(module, Residual) and module.norm is not None:
            yield from _of_residual(f"{name}.fn", module)
        elif isinstance(module, ResidualAttentionBlock):
            attention, mlp = module.attn, module.mlp
            yield IntegerLayer(f"{name}.attn", f"{name}.attn", attention, "in_proj_weight", _of_norm(module.ln_1))
            values = _of_values(attention, "in_proj_weight", "in_proj_bias")
            yield IntegerLayer(f"{name}.attn.out_proj", f"{name}.attn", attention.out_proj, shrink=values)
            yield IntegerLayer(f"{name}.mlp.c_fc", f"{name}.mlp", mlp.c_fc, shrink=_of_norm(module.ln_2))
            yield IntegerLayer(f"{name}.mlp.c_proj", f"{name}.mlp", mlp.c_proj)


def _of_residual(name: str, module: Residual) -> Iterator[IntegerLayer]:
    fn, norm = module.fn, _of_norm(module.norm)
    if isinstance(fn, WindowAttention | ChannelAttention):
        yield IntegerLayer(f"{name}.qkv", name, fn.qkv, shrink=norm)
        values = _of_values(fn.qkv, "weight", "bias")
        if isinstance(fn, WindowAttention):  # image_graph moves the bias of v behind proj
            yield IntegerLayer(f"{name}.proj", name, fn.proj, shrink=values, qkv=fn.qkv)
        else:  # it mixes the channels of a group
            tied = fn.proj.in_features // fn.groups
            yield IntegerLayer(f"{name}.proj", name, fn.proj, shrink=values, tied=tied)
    else:
        yield IntegerLayer(f"{name}.net.fc1", name, fn.net.fc1, shrink=norm)
        yield IntegerLayer(f"{name}.net.fc2", name, fn.net.fc2)


def _of_norm(norm: nn.LayerNorm) -> Shrink:
    def shrink(factors: Tensor) -> None:
        norm.weight, norm.bias = _frozen(norm.weight / factors), _frozen(norm.bias / factors)

    return shrink


def _of_values(module: nn.Module, weight: str, bias: str) -> Shrink:
    """Of the last third of the rows, which make the values of an attention."""

    def shrink(factors: Tensor) -> None:
        others = torch.ones(2 * len(factors))
        divisors = torch.cat([others, factors])
        setattr(module, weight, _frozen(module.get_parameter(weight) / divisors[:, None]))
        setattr(module, bias, _frozen(module.get_parameter(bias) / divisors))

    return shrink


def _frozen(tensor: Tensor) -> nn.Parameter:
    """A parameter of its own: those of a checkpoint may lie in its file."""
    return nn.Parameter(tensor, requires_grad=False)
