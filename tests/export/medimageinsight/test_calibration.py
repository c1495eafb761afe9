"""What goes into each layer, against PyTorch's modules run by hand; and what int8 makes of outliers and of faults."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from medimage_export.errors import ExportError, ParityError
from medimage_export.medimageinsight.calibration import Activations, observe, quantize
from medimage_export.medimageinsight.checkpoint import random_model
from medimage_export.medimageinsight.export import BOUNDS
from medimage_export.medimageinsight.image_graph import write_image_encoder
from medimage_export.medimageinsight.integer_layers import integer_layers
from medimage_export.medimageinsight.quantization import Quantization, Range
from medimage_export.medimageinsight.reference import ImageEncoderReference, TextEncoderReference
from medimage_export.parity import check_parity, compare, cpu_session, truths
from tests.export.medimageinsight.outliers import with_outliers
from tests.export.medimageinsight.small import SMALL, random_texts, small_config
from tests.export.medimageinsight.written import all_in_8_bits, pytorch

SIZE = (192, 96)  # the first stage has 48 x 24 tokens: whole windows of 12, so none of them is padding
ATTENTION = "blocks.0.0.spatial_block.window_attn.fn"


@pytest.fixture
def model():
    return random_model(small_config(SIZE))


@pytest.fixture(scope="module")
def feeds():
    random = np.random.default_rng(0)
    return [{"pixels": (random.integers(0, 256, (1, *SIZE, 3)) // dim).astype(np.uint8)} for dim in (1, 4)]


def activation_ranges(encoder, reference, feeds):
    """Of the input of each layer, by its name."""
    seen, _ = observe(list(integer_layers(encoder)), reference, feeds)
    return {name: Range(found.low.min().item(), found.high.max().item()) for name, found in seen.items()}


def extremes(*tensors):
    """Of all of them, and of zero."""
    values = torch.cat([tensor.flatten() for tensor in tensors])
    return min(0.0, values.min().item()), max(0.0, values.max().item())


def assert_range(found, wanted):
    np.testing.assert_allclose((found.low, found.high), wanted, rtol=1e-5)


def first_tokens(model, feed):
    """What the first patch convolution makes of the pixels."""
    mean, std = (torch.tensor(values) for values in (model.config.image.image_mean, model.config.image.image_std))
    return model.image_encoder.convs[0]((torch.from_numpy(feed["pixels"]).float() / 255 - mean) / std)


def before_attention(model, feed):
    """What goes into the first window attention."""
    block = model.image_encoder.blocks[0][0].spatial_block
    return block.window_attn.norm(block.conv1(first_tokens(model, feed)))


def test_range_of_qkv_is_that_of_the_normed_tokens_of_all_feeds(model, feeds):
    ranges = activation_ranges(model.image_encoder, ImageEncoderReference(model), feeds)
    assert_range(ranges[f"{ATTENTION}.qkv"], extremes(*(before_attention(model, feed) for feed in feeds)))


def test_range_of_window_proj_is_that_of_attention_without_the_bias_of_v(model, feeds):
    """Every output of attention is higher by that bias, which the graph adds behind proj."""
    attention = model.get_submodule(f"image_encoder.{ATTENTION}")
    v_bias = attention.qkv.bias.chunk(3)[2]
    v_bias.fill_(1)
    found = activation_ranges(model.image_encoder, ImageEncoderReference(model), feeds)[f"{ATTENTION}.proj"]
    normed = [before_attention(model, feed) for feed in feeds]
    attention.proj = nn.Identity()
    biased = extremes(*(attention(x) for x in normed))
    v_bias.zero_()
    plain = extremes(*(attention(x) for x in normed))
    assert_range(found, plain)
    assert biased[1] == pytest.approx(plain[1] + 1, rel=1e-5)


def test_range_of_a_patch_convolution_is_that_of_its_normed_input(model, feeds):
    encoder = model.image_encoder
    ranges = activation_ranges(encoder, ImageEncoderReference(model), feeds)
    wanted = extremes(encoder.convs[1].norm(encoder.blocks[0](first_tokens(model, feeds[0]))))
    alone = activation_ranges(encoder, ImageEncoderReference(model), feeds[:1])
    assert_range(alone["convs.1.proj"], wanted)
    assert ranges["convs.1.proj"].low <= alone["convs.1.proj"].low  # more feeds only widen
    assert ranges["convs.1.proj"].high >= alone["convs.1.proj"].high


def test_ranges_of_text_are_those_of_the_formulas(small_model):
    ids, mask = random_texts([9, 40])
    encoder = small_model.lang_encoder
    feeds = [{"input_ids": ids.numpy(), "attention_mask": mask.numpy()}]
    ranges = activation_ranges(encoder, TextEncoderReference(small_model), feeds)
    block = encoder.resblocks[0]
    with torch.inference_mode():
        x = encoder.token_embedding(ids) + encoder.positional_embedding
        normed = block.ln_1(x)
        x = x + block.attn(normed, (1 - mask.float())[:, None, None] * -1e4)
        normed_again = block.ln_2(x)
        hidden = normed_again @ block.mlp.c_fc.weight.T + block.mlp.c_fc.bias
    assert_range(ranges["resblocks.0.attn"], extremes(normed))
    assert_range(ranges["resblocks.0.mlp.c_fc"], extremes(normed_again))
    assert_range(ranges["resblocks.0.mlp.c_proj"], extremes(hidden * torch.sigmoid(1.702 * hidden)))


def test_zero_is_in_every_range(model, feeds):
    model.image_encoder.blocks[0][0].spatial_block.window_attn.norm.bias.fill_(100)
    ranges = activation_ranges(model.image_encoder, ImageEncoderReference(model), feeds)
    assert ranges[f"{ATTENTION}.qkv"].low == 0 < 90 < ranges[f"{ATTENTION}.qkv"].high
    assert all(found.low <= 0 <= found.high for found in ranges.values())


def test_input_that_is_not_finite_is_an_error_that_names_the_layer(model, feeds):
    model.image_encoder.blocks[1][0].spatial_block.ffn.norm.bias[3] = float("nan")
    with pytest.raises(
        ExportError, match=r"^no int8 range: the input of blocks\.1\.0\.\S*ffn\.fn\.net\.fc1 is not finite$"
    ):
        activation_ranges(model.image_encoder, ImageEncoderReference(model), feeds)


def test_model_is_watched_only_meanwhile_also_when_a_feed_cannot_be_taken(model, feeds):
    """Which would be an error: for one that is watched no input may be infinite."""
    activation_ranges(model.image_encoder, ImageEncoderReference(model), feeds[:1])
    broken = {"pixels": np.zeros((1, 8), np.uint8)}
    with pytest.raises(RuntimeError):
        activation_ranges(model.image_encoder, ImageEncoderReference(model), [broken])
    model.image_encoder.blocks[1][0].spatial_block.ffn.norm.bias[3] = float("nan")
    with torch.inference_mode():
        ImageEncoderReference(model)(torch.from_numpy(feeds[0]["pixels"]))


@pytest.fixture(scope="module")
def measured(feeds):
    """A model that is not to be changed, how its layers are quantized, and what it computes."""
    model = random_model(small_config(SIZE))
    reference = ImageEncoderReference(model)
    integer = all_in_8_bits(model.image_encoder, reference, feeds)
    return model, integer, truths(reference, reference.OUTPUTS, {"noise": feeds[0]})


@pytest.fixture
def int8_rows(measured, feeds, tmp_path):
    """The parity rows of an int8 graph of that model, written from other weights or with other ranges."""

    def rows(*, weights=None, change=lambda ranges: ranges):
        model, integer, truth = measured
        if weights is not None:
            integer = all_in_8_bits(weights.image_encoder, ImageEncoderReference(weights), feeds)
        path = tmp_path / "model.onnx"
        write_image_encoder(weights or model, path, precision="int8", integer_layers=change(integer))
        return compare("image_encoder", truth, cpu_session(path))

    return rows


def scaled(layer, factor):
    return lambda layers: (
        layers
        | {
            name: Quantization(Range(how.range.low * factor, how.range.high * factor), how.divisors)
            for name, how in layers.items()
            if layer in name
        }
    )


def test_int8_bound_passes_measured_ranges(int8_rows):
    check_parity(int8_rows(), "int8", BOUNDS["int8"])


@pytest.mark.parametrize(
    ("layer", "factor"),
    [("convs.2.proj", 0.1), ("convs.3.proj", 0.3), ("convs.3.proj", 100), (".qkv", 0.05), ("", 0.1), ("", 50)],
    ids=["cut patches", "cut last patches", "coarse last patches", "cut attention", "cut all", "coarse all"],
)
def test_int8_bound_refuses_wrong_ranges(int8_rows, layer, factor):
    """Those of a patch convolution, which no residual bypasses, or those of a whole kind of layer."""
    with pytest.raises(ParityError, match="image_features"):
        check_parity(int8_rows(change=scaled(layer, factor)), "int8", BOUNDS["int8"])


def test_int8_bound_refuses_a_wrong_range_of_one_residual(int8_rows):
    with pytest.raises(ParityError, match="image_features"):
        check_parity(int8_rows(change=scaled(f"{ATTENTION}.proj", 0.1)), "int8", BOUNDS["int8"])


@pytest.mark.parametrize("dropped", ["bias", "conv2.fn.dw.bias"])
def test_int8_bound_refuses_weights_without_a_kind_of_bias(int8_rows, dropped):
    without = random_model(small_config(SIZE))
    for name, parameter in without.image_encoder.named_parameters():
        if name.endswith(dropped):
            parameter.zero_()
    with pytest.raises(ParityError, match="image_features"):
        check_parity(int8_rows(weights=without), "int8", BOUNDS["int8"])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_weight_that_is_no_number_fails_the_parity_check(tmp_path, precision):
    config = small_config((40, 36), stages=1)
    model = random_model(replace(config, image=replace(config.image, embed_dims=(16,))))
    broken = random_model(model.config)
    broken.image_encoder.blocks[0][0].channel_block.ffn.fn.net.fc2.weight[0, 0] = torch.nan
    path = tmp_path / "model.onnx"
    write_image_encoder(broken, path, precision=precision)
    session = cpu_session(path)
    feed = {"pixels": np.full((1, 40, 36, 3), 77, np.uint8)}
    reference = ImageEncoderReference(model)
    with pytest.raises(ParityError, match="image_features"):
        check_parity(
            compare("image_encoder", truths(reference, reference.OUTPUTS, {"": feed}), session),
            precision,
            BOUNDS[precision],
        )


@pytest.mark.parametrize("factor", [16, 64, 256])
def test_outlier_channels_cost_int8_nothing_and_the_function_stays_to_the_last_bit(feeds, factor):
    """Both by their own means: the test's outliers and the migration are factors of two."""
    gentle = random_model(small_config(SIZE))
    model = with_outliers(gentle, factor=factor, share=0.02, seed=3)
    features = pytorch(ImageEncoderReference(gentle), feeds[0])[0]
    np.testing.assert_array_equal(pytorch(ImageEncoderReference(model), feeds[0])[0], features)
    all_in_8_bits(model.image_encoder, ImageEncoderReference(model), feeds)
    np.testing.assert_array_equal(pytorch(ImageEncoderReference(model), feeds[0])[0], features)
    extents = {
        name: torch.maximum(-found.low, found.high)
        for name, found in observe(list(integer_layers(model.image_encoder)), ImageEncoderReference(model), feeds)[
            0
        ].items()
        if name.endswith((".qkv", ".fc1", "convs.1.proj"))
    }
    assert len(extents) == 21
    assert all(extent.max() < 12 * extent.median() for extent in extents.values())  # no channel stands out


def test_text_outliers_are_migrated_too_and_its_function_stays_to_the_last_bit(small_model):
    model = with_outliers(small_model, factor=64, share=0.02, seed=3)
    ids, mask = random_texts([2, 9, 77])
    feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    features = pytorch(TextEncoderReference(small_model), feed)[0]
    all_in_8_bits(model.lang_encoder, TextEncoderReference(model), [feed])
    np.testing.assert_array_equal(pytorch(TextEncoderReference(model), feed)[0], features)


def test_every_layer_of_both_encoders_is_listed_with_the_weight_that_multiplies_it():
    model = random_model(SMALL)
    for encoder in (model.image_encoder, model.lang_encoder):
        listed = {id(layer.weight) for layer in integer_layers(encoder)}
        linear = {id(m.weight) for m in encoder.modules() if isinstance(m, nn.Linear)}
        assert linear <= listed
    assert sum(1 for _ in integer_layers(model.image_encoder)) == 4 * 10 + 3  # 5 steps of two blocks, 3 convolutions
    assert sum(1 for _ in integer_layers(model.lang_encoder)) == 4 * SMALL.text.layers


def one_layer(channels):
    """A linear layer behind a GELU, as fc2 is, by its name."""
    model = random_model(SMALL)
    (layer,) = [
        layer
        for layer in integer_layers(model.image_encoder)
        if layer.name.endswith("3.0.spatial_block.ffn.fn.net.fc2")
    ]
    assert layer.weight.shape[1] == channels
    return layer


def rows_with(layer, outliers):
    """Rows as GELU gives them, a few channels of which are far larger."""
    rows = torch.nn.functional.gelu(torch.randn(300, layer.weight.shape[1], generator=torch.Generator().manual_seed(0)))
    rows[:, :3] *= outliers
    return Activations(rows.amin(0).clamp(max=0), rows.amax(0).clamp(min=0), [rows])


def test_outliers_behind_gelu_are_divided_by_a_node_of_their_own_only_where_it_pays():
    layer = one_layer(512)
    assert quantize(layer, rows_with(layer, 1)).divisors is None
    how = quantize(layer, rows_with(layer, 100))
    assert how.divisors is not None
    rows = rows_with(layer, 100).rows[0]
    exact = rows @ layer.weight.T
    error = [
        float((x @ w.T - exact).square().sum())
        for x, w in (
            (layer.rounded_inputs(rows, how), layer.rounded_weight(how)),
            (layer.rounded_inputs(rows, Quantization(Range(rows.min().item(), rows.max().item()))), layer.weight),
        )
    ]
    assert error[0] < 0.25 * error[1]


def test_a_range_is_cut_only_where_what_is_rare_matters_little():
    """One number four times as large as all others, in a channel that the layer does not read."""
    layer = one_layer(512)
    layer.weight[:, 5] = 0
    seen = rows_with(layer, 1)
    largest = seen.high.max().item()
    seen.rows[0][7, 5] = 4 * largest
    seen.high[5] = 4 * largest
    how = quantize(layer, seen)
    assert how.range.high == pytest.approx(0.4 * 4 * largest)
    assert quantize(layer, rows_with(layer, 1)).range.high == pytest.approx(largest)
