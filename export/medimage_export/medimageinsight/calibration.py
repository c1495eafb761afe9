"""The ranges of activations that int8 needs: what goes into each linear layer on a few inputs."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from medimage_export.errors import ExportError
from medimage_export.medimageinsight.davit import PatchEmbed, WindowAttention
from medimage_export.medimageinsight.encoder_writer import Range
from medimage_export.medimageinsight.text_transformer import SelfAttention
from medimage_export.parity import Feed


def activation_ranges(encoder: nn.Module, model: nn.Module, feeds: Iterable[Feed]) -> dict[str, Range]:
    """The range of the input of each linear layer of `encoder`, by the layer's name, while `model` takes the feeds.

    Zero is in every range, since it is what pads.

    Raises:
        ExportError: a layer's input is not finite.
    """
    extremes: dict[str, Tensor] = {}

    def watched(layer: str, offset: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def watch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            low, high = (inputs[0] - offset).aminmax()
            least, greatest = extremes.get(layer, torch.zeros(2))
            extremes[layer] = torch.stack([torch.minimum(least, low), torch.maximum(greatest, high)])

        return watch

    handles = [
        module.register_forward_pre_hook(watched(name, offset)) for name, module, offset in _linear_layers(encoder)
    ]
    try:
        with torch.inference_mode():
            for feed in feeds:
                model(*(torch.from_numpy(array) for array in feed.values()))
    finally:
        for handle in handles:
            handle.remove()
    if broken := [layer for layer, pair in extremes.items() if not pair.isfinite().all()]:
        raise ExportError(f"no int8 range: the input of {', '.join(broken)} is not finite; are the weights?")
    return {layer: Range(*pair.tolist()) for layer, pair in extremes.items()}


def _linear_layers(encoder: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Name and module of each linear layer, and by how much its input is larger in PyTorch than in the graph."""
    moved = {  # image_graph moves the bias of v behind proj
        f"{name}.proj": module.qkv.bias.chunk(3)[2]
        for name, module in encoder.named_modules()
        if isinstance(module, WindowAttention)
    }
    zero = torch.zeros(())
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear | SelfAttention):
            yield name, module, moved.get(name, zero)
        elif isinstance(module, PatchEmbed) and module.prenorm:  # not the one that takes the image itself
            yield f"{name}.proj", module.proj, zero
