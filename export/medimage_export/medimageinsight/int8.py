"""An encoder in 8 bits: quantized layer by layer, and with as few branches in float32 as its bound needs."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from medimage_export.medimageinsight.calibration import observe, quantize
from medimage_export.medimageinsight.davit import ChannelBlock, PatchEmbed, SpatialBlock
from medimage_export.medimageinsight.encoders import EncoderExport
from medimage_export.medimageinsight.integer_layers import IntegerLayer, integer_layers
from medimage_export.medimageinsight.quantization import Quantization
from medimage_export.medimageinsight.text_transformer import ResidualAttentionBlock
from medimage_export.parity import Bound, Feed, ParityRow, Session, Truth, compare, cpu_session, yardsticks

TIMED_RUNS = 3
STEPS = (PatchEmbed, SpatialBlock, ChannelBlock, ResidualAttentionBlock)  # one after the other make an encoder


def write_int8(
    encoder: EncoderExport, path: Path, truth: Mapping[str, Truth], bound: Bound
) -> tuple[list[ParityRow], list[str]]:
    """Write the graph; how far it is from `truth`, and the names of the layers that stay in float32.

    Outliers are migrated into the weights of the encoder's own modules, which changes no bit of what they compute.
    All layers are in 8 bits if the bound then holds on the feeds of `truth` and on those of the calibration. Else
    branches are left in float32, those first that harm a vector most by themselves: the fewest that make it hold.

    Raises:
        ExportError: a layer's input is not finite.
    """
    layers, feeds = list(integer_layers(encoder.layers)), encoder.calibration_feeds()
    seen, features = observe(layers, encoder.reference, feeds)
    how = {layer.name: quantize(layer, seen.pop(layer.name)) for layer in layers}
    vectors = encoder.reference.OUTPUTS[0]
    checks = dict(truth)
    for number, (feed, output) in enumerate(zip(feeds, features, strict=True)):
        known = {vectors: output.numpy()}  # by float32, which is as good for this
        checks[f"calibration {number}"] = Truth(feed, known, known)

    def written(left: Sequence[str]) -> Session:
        integer = {layer.name: how[layer.name] for layer in layers if layer.branch not in left}
        encoder.write(path, precision="int8", integer_layers=integer)
        return cpu_session(path)

    def cosines(rows: Iterable[ParityRow]) -> Iterator[float]:
        return (row.export.min_cosine for row in rows if row.output == vectors)

    session = written([])
    rows = compare(encoder.name, checks, session)
    allowed = bound.beside(yardsticks(rows)[encoder.name, vectors]).min_cosine
    if all(cosine >= allowed for cosine in cosines(rows)):
        return [row for row in rows if row.inputs in truth], []
    one_row = {name: array[:1] for name, array in encoder.probe.items()}
    before, least_before = seconds(session, one_row), min(cosines(rows))
    del session  # its memory is needed
    harm = harm_of_branches(encoder, layers, how)
    ranked = sorted(harm, key=harm.__getitem__, reverse=True)

    def holds(count: int) -> bool:
        session = written(ranked[:count])
        found = (row for kind, check in checks.items() for row in compare(encoder.name, {kind: check}, session))
        return all(cosine >= allowed for cosine in cosines(found))  # up to the first that is not

    count = bisect_left(range(len(ranked)), True, key=holds)
    session = written(ranked[:count])
    rows = compare(encoder.name, checks, session)
    left = [layer.name for layer in layers if layer.branch in ranked[:count]]
    print(
        f"{encoder.name}: {len(left)} of {len(layers)} layers stay in fp32: {', '.join(ranked[:count])}; least cosine "
        f"{min(cosines(rows)):.6f}, without them {least_before:.6f}; one row takes {seconds(session, one_row):.3f} s, "
        f"without them {before:.3f} s",
        flush=True,
    )
    return [row for row in rows if row.inputs in truth], left


def seconds(session: Session, feed: Feed) -> float:
    """The least of a few runs."""

    def timed() -> float:
        started = perf_counter()
        session.run(None, dict(feed))
        return perf_counter() - started

    return min(timed() for _ in range(TIMED_RUNS))


def harm_of_branches(
    encoder: EncoderExport, layers: Sequence[IntegerLayer], how: Mapping[str, Quantization]
) -> dict[str, float]:
    """By how much the worst vector's cosine falls if one branch alone is in 8 bits, by the branch's name.

    What comes before the branch is not computed again.
    """
    tensors = [torch.from_numpy(array) for array in encoder.probe.values()]
    steps = {name: module for name, module in encoder.layers.named_modules() if isinstance(module, STEPS)}
    outputs: dict[str, Tensor] = {}
    harm = {}
    with torch.inference_mode(), ExitStack() as replaced:
        with ExitStack() as hooks:
            for name, step in steps.items():
                hook = step.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
                hooks.callback(hook.remove)
            wanted = encoder.reference(*tensors)[0]
        for name, step in steps.items():
            for branch in dict.fromkeys(layer.branch for layer in layers if _is_in(layer.branch, name)):
                with ExitStack() as rounded:
                    for layer in layers:
                        if layer.branch == branch:
                            rounded.enter_context(in_8_bits(layer, how[layer.name]))
                    found = encoder.reference(*tensors)[0]
                harm[branch] = 1 - float((wanted * found).sum(-1).min())
            step.forward = lambda *_, name=name: outputs[name]
            replaced.callback(delattr, step, "forward")
    return harm


def _is_in(branch: str, step: str) -> bool:
    return f"{branch}.".startswith(f"{step}.")


@contextmanager
def in_8_bits(layer: IntegerLayer, how: Quantization) -> Iterator[None]:
    """A block in which the PyTorch module rounds as the graph does."""
    handle = layer.module.register_forward_pre_hook(
        lambda _, inputs: (layer.rounded_inputs(inputs[0], how), *inputs[1:])
    )
    exact = layer.weight
    layer.set_weight(layer.rounded_weight(how))
    try:
        yield
    finally:
        layer.set_weight(exact)
        handle.remove()
