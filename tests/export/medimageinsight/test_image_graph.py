"""The written image encoder against the PyTorch modules, in each precision."""

from functools import cache

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from medimage_export.medimageinsight.checkpoint import random_model
from medimage_export.medimageinsight.davit import ChannelBlock, WindowAttention
from medimage_export.medimageinsight.export import BOUNDS
from medimage_export.medimageinsight.image_graph import write_image_encoder
from medimage_export.medimageinsight.reference import ImageEncoderReference
from medimage_export.node_by_node import NodeByNode
from medimage_export.parity import check_parity, compare, cpu_session, truths
from tests.export.medimageinsight.small import SMALL, WIDE, small_config
from tests.export.medimageinsight.written import (
    all_in_8_bits,
    beyond_float16,
    pytorch,
    run,
    run_rows_alone,
    weights_of_products,
)

OPERATORS = ["onnxruntime", "standard"]
SIZES = {  # tokens of the stages, of which windows take 12 by 12
    "whole windows first": (192, 96),  # 48 x 24, 24 x 12, 12 x 6, 6 x 3
    "odd grids": (100, 70),  # 25 x 18, 13 x 9, 7 x 5, 4 x 3
    "less than a window": (40, 36),  # 10 x 9, 5 x 5, 3 x 3, 2 x 2
}
each_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
shared_model = cache(random_model)  # not to be changed
TWO_STAGES = small_config((96, 48), stages=2)  # one of whole windows, one padded


def pictures(height, width):
    """Noise, black and a bright ramp, as unlike each other as pictures are."""
    noise = np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ramp = np.broadcast_to(np.linspace(128, 255, width, dtype=np.uint8)[:, None], noise.shape)
    return {"pixels": np.stack([noise, np.zeros_like(noise), ramp])}


def write_int8(model, path, feed):
    integer = all_in_8_bits(model.image_encoder, ImageEncoderReference(model), [feed])
    write_image_encoder(model, path, precision="int8", integer_layers=integer)


@pytest.mark.parametrize("operators", OPERATORS)
@each_size
def test_fp32_equals_pytorch_for_a_batch_and_for_each_image_alone(tmp_path, size, operators):
    model, feed, path = shared_model(small_config(size)), pictures(*size), tmp_path / "model.onnx"
    write_image_encoder(model, path, precision="fp32", operators=operators)
    features, scale = pytorch(ImageEncoderReference(model), feed)
    found_features, found_scale = run(path, feed)
    np.testing.assert_allclose(found_features, features, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found_scale, scale)
    np.testing.assert_allclose(run_rows_alone(path, feed), features, rtol=0, atol=1e-6)


@pytest.mark.parametrize("operators", OPERATORS)
def test_fp32_of_full_width_equals_pytorch(tmp_path, operators):
    model, feed, path = shared_model(WIDE), pictures(*WIDE.image.image_size), tmp_path / "model.onnx"
    write_image_encoder(model, path, precision="fp32", operators=operators)
    np.testing.assert_allclose(run(path, feed)[0], pytorch(ImageEncoderReference(model), feed)[0], rtol=0, atol=1e-6)


def test_every_norm_and_bias_of_the_small_model_shows_in_its_vectors(small_model):
    """So a graph in which one of them is missing, or went to the wrong place, cannot equal PyTorch."""
    feed = {"pixels": pictures(96, 64)["pixels"][:1]}
    reference = ImageEncoderReference(small_model)
    features = pytorch(reference, feed)[0]
    for name, parameter in small_model.image_encoder.named_parameters():
        if parameter.ndim == 1:
            kept = parameter.clone()
            parameter.zero_()
            assert abs(pytorch(reference, feed)[0] - features).max() > 1e-5, name
            parameter.copy_(kept)


def test_bias_of_k_changes_nothing_and_bias_of_v_is_one_of_proj_where_windows_are_padded(small_model):
    """What the graph builds on when it drops the one and moves the other."""
    feed = pictures(100, 70)
    reference = ImageEncoderReference(small_model)
    features = pytorch(reference, feed)[0]
    for module in small_model.modules():
        if isinstance(module, WindowAttention):
            _, k_bias, v_bias = module.qkv.bias.chunk(3)
            k_bias.zero_()
            module.proj.bias += module.proj.weight @ v_bias
            v_bias.zero_()
    np.testing.assert_allclose(pytorch(reference, feed)[0], features, rtol=0, atol=1e-6)


def test_pixels_are_raw_and_normalised_inside(tmp_path):
    """The same image scaled and normalised by hand, through the encoder, must give the same vector."""
    model, feed, path = shared_model(small_config((96, 64))), pictures(96, 64), tmp_path / "model.onnx"
    write_image_encoder(model, path, precision="fp32")
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = ((feed["pixels"] / 255.0 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.inference_mode():
        raw = (model.image_encoder(torch.from_numpy(normalised)) @ model.image_projection).numpy()
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(run(path, feed)[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("operators", OPERATORS)
def test_fp16_keeps_its_bound_with_every_result_rounded(tmp_path, operators):
    model, path = shared_model(TWO_STAGES), tmp_path / "model.onnx"
    write_image_encoder(model, path, precision="fp16", operators=operators)
    reference = ImageEncoderReference(model)
    feeds = {"pictures": pictures(96, 48)}
    rows = compare("image_encoder", truths(reference, reference.OUTPUTS, feeds), NodeByNode(path))
    check_parity(rows, "fp16", BOUNDS["fp16"])
    assert rows[0].export.max_abs > 1e-5  # rounded indeed: float32 is 1e-7 off


@pytest.mark.parametrize("operators", OPERATORS)
def test_fp16_multiplies_float16_but_for_the_projection_and_holds_no_number_beyond_it(tmp_path, operators):
    model, path = shared_model(TWO_STAGES), tmp_path / "model.onnx"
    write_image_encoder(model, path, precision="fp16", operators=operators)
    kinds = [weight.dtype for weight in weights_of_products(path)]
    assert kinds.count(np.float32) == 1
    assert (
        kinds.count(np.float16) == len(kinds) - 1 > sum(isinstance(m, nn.Linear) for m in model.image_encoder.modules())
    )
    assert beyond_float16(path) == []


def test_fp16_adds_up_channel_attention_in_float32(tmp_path):
    model, path = shared_model(TWO_STAGES), tmp_path / "model.onnx"
    write_image_encoder(model, path, precision="fp16", operators="standard")
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    constants = {tensor.name for tensor in graph.initializer}
    products = [n for n in graph.node if n.op_type == "MatMul" and not constants & set(n.input)]
    in_float32 = [n for n in products if types[n.output[0]] == onnx.TensorProto.FLOAT]
    assert len(in_float32) == sum(isinstance(module, ChannelBlock) for module in model.modules())


@each_size
def test_int8_keeps_its_bound_and_a_vector_does_not_depend_on_its_neighbours(tmp_path, size):
    model, feed, path = shared_model(small_config(size)), pictures(*size), tmp_path / "model.onnx"
    write_int8(model, path, feed)
    reference = ImageEncoderReference(model)
    session = cpu_session(path)
    rows = compare("image_encoder", truths(reference, reference.OUTPUTS, {"pictures": feed}), session)
    check_parity(rows, "int8", BOUNDS["int8"])
    assert rows[0].export.max_abs > 1e-5  # 8 bits indeed
    # pooling and projection are float32, which onnxruntime adds up in another order for one row than for many
    np.testing.assert_allclose(run_rows_alone(path, feed), run(path, feed)[0], rtol=0, atol=1e-7)


def test_int8_gives_the_tokens_of_an_image_bit_for_bit_whatever_is_beside_it(tmp_path):
    """Ranges are fixed; measured anew for each batch, they would depend on all of its images."""
    size = SIZES["odd grids"]
    model, feed, path = shared_model(small_config(size)), pictures(*size), tmp_path / "model.onnx"
    write_int8(model, path, feed)
    graph = onnx.load(path)
    (pooling,) = [node for node in graph.graph.node if node.op_type == "ReduceMean"]
    del graph.graph.output[:]
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(pooling.input[0]))
    onnx.save(graph, tmp_path / "tokens.onnx")
    np.testing.assert_array_equal(
        run_rows_alone(tmp_path / "tokens.onnx", feed), run(tmp_path / "tokens.onnx", feed)[0]
    )


def test_int8_holds_each_linear_layer_in_8_bits(tmp_path):
    config = small_config((96, 64))
    model, path = shared_model(config), tmp_path / "model.onnx"
    write_int8(model, path, pictures(96, 64))
    weights = list(weights_of_products(path))
    image = model.image_encoder
    linear = [m.weight for m in image.modules() if isinstance(m, nn.Linear)] + [c.proj.weight for c in image.convs[1:]]
    assert sum(w.size for w in weights if w.dtype == np.int8) == sum(w.numel() for w in linear)
    depthwise = [m.weight for m in image.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    in_float32 = [*depthwise, image.convs[0].proj.weight, model.image_projection]
    assert sum(w.size for w in weights if w.dtype == np.float32) == sum(w.numel() for w in in_float32)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_graph_has_the_contract_of_the_served_model(tmp_path, precision):
    model, path = shared_model(TWO_STAGES), tmp_path / "model.onnx"
    feeds = [pictures(96, 48)]
    integer = all_in_8_bits(model.image_encoder, ImageEncoderReference(model), feeds) if precision == "int8" else {}
    write_image_encoder(model, path, precision=precision, integer_layers=integer)
    session = cpu_session(path)
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("pixels", "tensor(uint8)", ["batch", 96, 48, 3])
    ]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("image_features", "tensor(float)", ["batch", SMALL.projection_dim]),
        ("scaling_factor", "tensor(float)", ["batch", 1]),
    ]
