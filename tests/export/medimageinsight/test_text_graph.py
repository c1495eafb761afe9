"""The written text encoder against the PyTorch modules at the full context of 77 tokens, in each precision."""

from functools import cache

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from torch import nn

from medimage_export.medimageinsight.checkpoint import random_model
from medimage_export.medimageinsight.export import BOUNDS
from medimage_export.medimageinsight.reference import TextEncoderReference
from medimage_export.medimageinsight.text_graph import write_text_encoder
from medimage_export.node_by_node import NodeByNode
from medimage_export.parity import check_parity, compare, cpu_session, truths
from tests.export.medimageinsight.small import END, SMALL, WIDE, random_texts
from tests.export.medimageinsight.written import (
    all_in_8_bits,
    beyond_float16,
    constants,
    pytorch,
    run,
    run_rows_alone,
    weights_of_products,
)

OPERATORS = ["onnxruntime", "standard"]
shared_model = cache(lambda config=SMALL: random_model(config))  # not to be changed


def texts(*lengths, pad=END):
    ids, mask = random_texts(list(lengths), pad=pad)
    return {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}


def changed(feed, name, where, value):
    feed[name][where] = value
    return feed


CASES = {
    "empty": texts(2),
    "short": texts(9),
    "long": texts(77),
    "unequal lengths": texts(2, 30, 77, 9),
    "mask with holes": changed(texts(20, 12), "attention_mask", (0, slice(5, 9)), 0),
    "first token hidden": changed(texts(20, 12), "attention_mask", (1, 0), 0),
    "end hidden, and all before it": changed(texts(20), "attention_mask", (0, slice(3, 20)), 0),
    "two ends": changed(texts(20), "input_ids", (0, 4), END),
    "no end": changed(texts(20, 9, pad=0), "input_ids", (slice(None), slice(8, None)), 5),
    "shown without a text": changed(texts(9), "attention_mask", (0, slice(9, 40)), 1),
    "another id pads": texts(9, 20, pad=0),
}
each_case = pytest.mark.parametrize("feed", CASES.values(), ids=CASES)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Paths of the fp32 graph with either operators."""
    folder = tmp_path_factory.mktemp("text")
    for operators in OPERATORS:
        write_text_encoder(shared_model(), folder / operators, precision="fp32", operators=operators)
    return folder


@pytest.fixture(scope="module")
def written_int8(tmp_path_factory):
    """Path of the int8 graph, with the ranges of all cases."""
    model, path = shared_model(), tmp_path_factory.mktemp("text") / "int8"
    write_text_encoder(
        model,
        path,
        precision="int8",
        integer_layers=all_in_8_bits(model.lang_encoder, TextEncoderReference(model), list(CASES.values())),
    )
    return path


@pytest.mark.parametrize("operators", OPERATORS)
@each_case
def test_fp32_equals_pytorch_for_a_batch_and_for_each_text_alone(written, feed, operators):
    features, scale = pytorch(TextEncoderReference(shared_model()), feed)
    found_features, found_scale = run(written / operators, feed)
    np.testing.assert_allclose(found_features, features, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found_scale, scale)
    np.testing.assert_allclose(run_rows_alone(written / operators, feed), features, rtol=0, atol=1e-6)


@pytest.mark.parametrize("operators", OPERATORS)
def test_fp32_of_full_width_equals_pytorch(tmp_path, operators):
    model, feed, path = shared_model(WIDE), CASES["unequal lengths"], tmp_path / "model.onnx"
    write_text_encoder(model, path, precision="fp32", operators=operators)
    np.testing.assert_allclose(run(path, feed)[0], pytorch(TextEncoderReference(model), feed)[0], rtol=0, atol=1e-6)


def test_every_norm_and_bias_of_the_small_model_shows_in_its_vectors(small_model):
    """So a graph in which one of them is missing cannot equal PyTorch."""
    reference = TextEncoderReference(small_model)
    features = pytorch(reference, CASES["short"])[0]
    for name, parameter in small_model.lang_encoder.named_parameters():
        if parameter.ndim == 1:
            kept = parameter.clone()
            parameter.zero_()
            assert abs(pytorch(reference, CASES["short"])[0] - features).max() > 1e-5, name
            parameter.copy_(kept)


@pytest.mark.parametrize(("operators", "tokens"), [("onnxruntime", 30), ("standard", 77)])
def test_graph_computes_no_more_tokens_than_the_longest_text_has_where_shapes_may_vary(written, operators, tokens):
    model = onnx.load(written / operators)
    (embedding,) = [node for node in model.graph.node if node.op_type == "Gather"]
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(embedding.output[0]))
    session = cpu_session(model.SerializeToString())
    assert session.run(None, texts(9, 30, 2))[0].shape == (3, tokens, SMALL.text.width)


@pytest.mark.parametrize("operators", OPERATORS)
def test_fp16_keeps_its_bound_with_every_result_rounded(tmp_path, operators):
    model, path = shared_model(), tmp_path / "model.onnx"
    write_text_encoder(model, path, precision="fp16", operators=operators)
    reference = TextEncoderReference(model)
    feeds = {"texts": CASES["unequal lengths"]}
    rows = compare("text_encoder", truths(reference, reference.OUTPUTS, feeds), NodeByNode(path))
    check_parity(rows, "fp16", BOUNDS["fp16"])
    assert rows[0].export.max_abs > 1e-5  # rounded indeed: float32 is 1e-7 off


@pytest.mark.parametrize("operators", OPERATORS)
def test_fp16_multiplies_float16_but_for_the_projection_and_holds_no_number_beyond_it(tmp_path, operators):
    """A mask of -inf or -3.4e38 becomes -inf in float16, and NaN where a whole row is hidden."""
    model, path = shared_model(), tmp_path / "model.onnx"
    write_text_encoder(model, path, precision="fp16", operators=operators)
    kinds = [weight.dtype for weight in weights_of_products(path)]
    assert kinds.count(np.float32) == 1
    assert kinds.count(np.float16) == len(kinds) - 1 == 6 * SMALL.text.layers
    assert beyond_float16(path) == []


@pytest.mark.parametrize("operators", OPERATORS)
def test_fp16_normalises_in_float32_where_eps_is_a_number(tmp_path, operators):
    path = tmp_path / "model.onnx"
    write_text_encoder(shared_model(), path, precision="fp16", operators=operators)
    model, parameters = onnx.load(path), constants(path)
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    assert len(norms) == 2 * SMALL.text.layers + 1
    assert {parameters[name].dtype for node in norms for name in node.input[1:]} == {np.dtype(np.float32)}
    if operators == "standard":  # ONNX knows the types of these alone
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph.value_info
        types = {value.name: value.type.tensor_type.elem_type for value in inferred}
        assert {types[node.input[0]] for node in norms} == {TensorProto.FLOAT}


@each_case
def test_int8_keeps_its_bound_and_a_vector_does_not_depend_on_its_neighbours(written_int8, feed):
    reference = TextEncoderReference(shared_model())
    session = cpu_session(written_int8)
    rows = compare("text_encoder", truths(reference, reference.OUTPUTS, {"texts": feed}), session)
    check_parity(rows, "int8", BOUNDS["int8"])
    assert rows[0].export.max_abs > 1e-5  # 8 bits indeed
    np.testing.assert_allclose(run_rows_alone(written_int8, feed), run(written_int8, feed)[0], rtol=0, atol=1e-6)


def test_int8_holds_each_linear_layer_in_8_bits(written_int8):
    weights = list(weights_of_products(written_int8))
    encoder = shared_model().lang_encoder
    linear = [m.weight for m in encoder.modules() if isinstance(m, nn.Linear)]
    linear += [block.attn.in_proj_weight for block in encoder.resblocks]
    assert sum(w.size for w in weights if w.dtype == np.int8) == sum(w.numel() for w in linear)
    assert [w.shape for w in weights if w.dtype != np.int8] == [tuple(shared_model().lang_projection.shape)]


def test_graph_has_the_contract_of_the_served_model(written, written_int8):
    for path in (written / "onnxruntime", written / "standard", written_int8):
        session = cpu_session(path)
        assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
            ("input_ids", "tensor(int64)", ["batch", 77]),
            ("attention_mask", "tensor(int64)", ["batch", 77]),
        ]
        assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
            ("text_features", "tensor(float)", ["batch", SMALL.projection_dim]),
            ("scaling_factor", "tensor(float)", ["batch", 1]),
        ]
