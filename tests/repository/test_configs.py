"""The committed model configs, checked without a server: what Triton would refuse, and what production needs."""

import re
import struct
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image, ImageDraw
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup, ModelQueuePolicy

from tests.paths import REPOSITORY

CONFIGS = {
    path.parent.name: text_format.Parse(path.read_text(), ModelConfig()) for path in REPOSITORY.glob("*/config.pbtxt")
}
ENSEMBLES = sorted(name for name, config in CONFIGS.items() if config.platform == "ensemble")
LEAVES = sorted(CONFIGS.keys() - set(ENSEMBLES))
CALLERS = sorted(name for name, config in CONFIGS.items() if "calls" in config.parameters)  # of other models, by BLS
BATCHED = sorted(set(LEAVES) - set(CALLERS))

# onnxruntime: README.md of triton-inference-server/onnxruntime_backend, "Model Config Options".
# python: a Python model reads its own; these are ours.
DOCUMENTED_PARAMETERS = {
    "onnxruntime": {
        "intra_op_thread_count",
        "inter_op_thread_count",
        "execution_mode",
        "enable_mem_arena",
        "enable_mem_pattern",
        "memory.enable_memory_arena_shrinkage",
        "session.use_device_allocator_for_initializers",
        # "Deprecated Parameters", which are the only place where src/onnxruntime.cc reads these
        *("cudnn_conv_algo_search", "gpu_mem_limit", "arena_extend_strategy", "do_copy_in_default_stream"),
        "cpu_max_batch_size",  # ours: the native backend does not look for it
    },
    "python": {
        *("profile", "max_encoded_bytes", "max_pixels"),
        *("calls", "max_requests"),
        *("slots", "max_length", "max_queue", "time_limit_s", "prefill_chunk", "intra_op_thread_count"),
        *("gpu_slots", "gpu_prefill_chunk", "arena_extend_strategy"),
    },
}

BYTES, UINT8, INT32, INT64, FP32 = "TYPE_STRING", "TYPE_UINT8", "TYPE_INT32", "TYPE_INT64", "TYPE_FP32"
# the seven columns of the Azure schema, and what is ours
REPORT_COLUMNS = (
    *("frontal_image", "lateral_image", "prior_image"),
    *("indication", "technique", "comparison", "prior_report"),
)
REPORT_INPUTS = {name: (BYTES, [1]) for name in (*REPORT_COLUMNS, "mode", "phrase")} | {"max_new_tokens": (INT32, [1])}
REPORT_OUTPUTS = {"output": (BYTES, [1]), "status": (BYTES, [1])}
PUBLIC_TENSORS = {
    "medimageinsight": (
        {"image": (BYTES, [1]), "text": (BYTES, [1])},
        {"image_features": (FP32, [1024]), "text_features": (FP32, [1024]), "scaling_factor": (FP32, [1])},
    ),
    "medimageinsight_image": (
        {"image": (BYTES, [1])},
        {"image_features": (FP32, [1024]), "scaling_factor": (FP32, [1])},
    ),
    "medimageinsight_text": (
        {"text": (BYTES, [1])},
        {"text_features": (FP32, [1024]), "scaling_factor": (FP32, [1])},
    ),
    "text_embedding": (
        {"text": (BYTES, [1])},
        {"text_features": (FP32, [1024]), "scaling_factor": (FP32, [1])},
    ),
    "image_preprocessing": (
        {"image": (BYTES, [1]), "after": (FP32, [1])},
        {"pixels": (UINT8, [480, 480, 3])},
    ),
    "text_tokenizer": (
        {"text": (BYTES, [1])},
        {"input_ids": (INT64, [77]), "attention_mask": (INT64, [77])},
    ),
    "image_encoder": (
        {"pixels": (UINT8, [480, 480, 3])},
        {"image_features": (FP32, [1024]), "scaling_factor": (FP32, [1])},
    ),
    "cxrreportgen": (REPORT_INPUTS, REPORT_OUTPUTS),
    "cxrreportgen_stream": (
        REPORT_INPUTS,
        REPORT_OUTPUTS | dict.fromkeys(("text_output", "model", "timing", "progress"), (BYTES, [1])),
    ),
    "cxr_image_preprocessing": ({"image": (BYTES, [1])}, {"pixels": (UINT8, [518, 518])}),
    "cxr_image_encoder": ({"pixels": (UINT8, [518, 518])}, {"image_tokens": (FP32, [-1, -1])}),
    "text_encoder": (
        {"input_ids": (INT64, [77]), "attention_mask": (INT64, [77])},
        {"text_features": (FP32, [1024]), "scaling_factor": (FP32, [1])},
    ),
}
OPTIONAL = {
    "image_preprocessing": {"after"},
    "cxrreportgen": REPORT_INPUTS.keys() - {"frontal_image"},
    "cxrreportgen_stream": REPORT_INPUTS.keys() - {"frontal_image"},
}


def signature(tensors):
    return {tensor.name: (DataType.Name(tensor.data_type), list(tensor.dims)) for tensor in tensors}


@pytest.mark.parametrize("model", CONFIGS)
def test_model_is_named_as_its_folder_and_has_a_version_folder(model):
    assert CONFIGS[model].name == model
    assert (REPOSITORY / model / "1").is_dir()


@pytest.mark.parametrize("model", CONFIGS)
def test_model_tensors_are_the_published_ones(model):
    inputs, outputs = PUBLIC_TENSORS[model]
    assert signature(CONFIGS[model].input) == inputs
    assert signature(CONFIGS[model].output) == outputs
    optional = {tensor.name for tensor in CONFIGS[model].input if tensor.optional}
    assert optional == OPTIONAL.get(model, set())


@pytest.mark.parametrize("model", ENSEMBLES)
def test_ensemble_steps_connect_tensors_of_one_type_and_shape(model):
    ensemble = CONFIGS[model]
    flowing = signature(ensemble.input)
    for step in ensemble.ensemble_scheduling.step:
        taken, given = signature(CONFIGS[step.model_name].input), signature(CONFIGS[step.model_name].output)
        for name, source in step.input_map.items():
            assert flowing[source] == taken[name], f"{step.model_name}.{name}"
        flowing |= {target: given[name] for name, target in step.output_map.items()}
        required = {tensor.name for tensor in CONFIGS[step.model_name].input if not tensor.optional}
        assert required <= step.input_map.keys()
    assert signature(ensemble.output).items() <= flowing.items()


@pytest.mark.parametrize("model", ENSEMBLES)
def test_ensemble_is_one_chain_of_steps(model):
    """See medimageinsight/config.pbtxt: before core pull request 466 a failing branch leaked its request."""
    steps = CONFIGS[model].ensemble_scheduling.step
    for before, after in pairwise(steps):
        assert set(before.output_map.values()) & set(after.input_map.values()), f"{after.model_name} would run beside"


@pytest.mark.parametrize("model", ENSEMBLES)
def test_ensemble_takes_no_larger_batch_than_its_steps(model):
    steps = CONFIGS[model].ensemble_scheduling.step
    assert 0 < CONFIGS[model].max_batch_size <= min(CONFIGS[step.model_name].max_batch_size for step in steps)


@pytest.mark.parametrize("model", BATCHED)
def test_leaf_queue_is_bounded_and_lets_a_caller_shorten_its_wait(model):
    policy = CONFIGS[model].dynamic_batching.default_queue_policy
    assert policy.max_queue_size > 0
    assert policy.default_timeout_microseconds > 0  # with 0, Triton never looks at the caller's own timeout
    assert policy.timeout_action == ModelQueuePolicy.REJECT
    assert policy.allow_timeout_override


@pytest.mark.parametrize("model", LEAVES)
def test_leaf_states_what_triton_would_otherwise_guess(model):
    config = CONFIGS[model]
    assert (config.max_batch_size > 0) is (model in BATCHED)
    assert len(config.instance_group) == 1
    assert config.version_policy.latest.num_versions == 1
    assert config.backend in DOCUMENTED_PARAMETERS


def test_reports_have_one_instance_however_many_gpus_there_are():
    """KIND_AUTO and KIND_GPU without `gpus` are one for each GPU; KIND_AUTO with `gpus` does not load without a GPU."""
    (group,) = CONFIGS["cxrreportgen_stream"].instance_group
    assert (group.count, group.kind, list(group.gpus)) == (1, ModelInstanceGroup.KIND_MODEL, [])


@pytest.mark.parametrize("model", LEAVES)
def test_leaf_parameters_are_documented_ones_with_a_text_value(model):
    config = CONFIGS[model]
    assert config.parameters.keys() <= DOCUMENTED_PARAMETERS[config.backend]
    assert all(parameter.string_value for parameter in config.parameters.values())


@pytest.mark.parametrize("model", LEAVES)
def test_leaf_gives_cuda_options_where_the_native_backend_reads_them(model):
    accelerators = CONFIGS[model].optimization.execution_accelerators.gpu_execution_accelerator
    for accelerator in accelerators:
        assert accelerator.name == "cuda"
        assert not accelerator.parameters.keys() & DOCUMENTED_PARAMETERS["onnxruntime"]
        # a captured graph replays one batch size at the first run's addresses
        assert "enable_cuda_graph" not in accelerator.parameters


@pytest.mark.parametrize("model", [model for model in LEAVES if CONFIGS[model].backend == "onnxruntime"])
def test_encoder_bounds_its_memory_on_cuda_and_computes_fp32_in_fp32(model):
    """By default onnxruntime takes all that is free, by doubling, tries all convolutions, and rounds fp32 to TF32."""
    config = CONFIGS[model]
    assert 2**30 < int(config.parameters["gpu_mem_limit"].string_value) < 16 * 2**30
    assert config.parameters["arena_extend_strategy"].string_value == "1"
    if any(tensor.name == "pixels" for tensor in config.input):
        assert config.parameters["cudnn_conv_algo_search"].string_value == "1"
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert dict(accelerator.parameters) == {"use_tf32": "0"}


def test_report_decoder_has_the_cuda_options_of_the_encoders():
    """But for a bound: the weights' size is the checkpoint's, and `gpu_slots` bounds the rest."""
    decoder, encoder = CONFIGS["cxrreportgen_stream"], CONFIGS["cxr_image_encoder"]
    assert decoder.parameters["arena_extend_strategy"] == encoder.parameters["arena_extend_strategy"]
    assert decoder.optimization == encoder.optimization


@pytest.mark.parametrize("model", CONFIGS)
def test_parameter_is_given_once(model):
    keys = re.findall(r'\bkey: "([^"]+)" value \{ string_value', (REPOSITORY / model / "config.pbtxt").read_text())
    assert len(keys) == len(set(keys))
    assert set(keys) == CONFIGS[model].parameters.keys()


@pytest.mark.parametrize("model", CALLERS)
def test_caller_takes_requests_at_once_and_bounds_them_itself(model):
    """See the configs: execute returns at once, so that one instance has many requests, and Triton no queue."""
    config = CONFIGS[model]
    assert not config.HasField("dynamic_batching")
    assert not config.model_warmup  # the models that it calls may not be loaded yet
    assert {"max_queue", "max_requests"} & config.parameters.keys()
    assert set(config.parameters["calls"].string_value.split()) <= CONFIGS.keys()


def test_only_the_stream_is_decoupled():
    assert [model for model in LEAVES if CONFIGS[model].model_transaction_policy.decoupled] == ["cxrreportgen_stream"]


def test_whole_report_takes_the_inputs_of_the_stream():
    assert list(CONFIGS["cxrreportgen"].input) == list(CONFIGS["cxrreportgen_stream"].input)


@pytest.mark.parametrize("model", BATCHED)
def test_leaf_warms_up_with_every_required_input(model):
    config = CONFIGS[model]
    assert config.model_warmup
    for warmup in config.model_warmup:
        given = {name: (DataType.Name(tensor.data_type), list(tensor.dims)) for name, tensor in warmup.inputs.items()}
        assert given == signature(tensor for tensor in config.input if not tensor.optional)


def test_only_an_ensemble_inside_ensembles_that_take_all_its_outputs_is_cached():
    """See text_embedding/config.pbtxt: what Triton's cache does not look at. Images depend on request parameters."""
    cached = [model for model in CONFIGS if CONFIGS[model].response_cache.enable]
    assert cached == ["text_embedding"]
    config = CONFIGS["text_embedding"]
    assert config.platform == "ensemble"
    assert [tensor.name for tensor in config.input] == ["text"]
    users = [
        step
        for model in ENSEMBLES
        for step in CONFIGS[model].ensemble_scheduling.step
        if step.model_name == "text_embedding"
    ]
    assert len(users) == 2
    for step in users:
        assert step.output_map.keys() == {tensor.name for tensor in config.output}


def warmup_bytes(model):
    """The one BYTES element of a warm-up file, which Triton wants with its length (4 bytes, little-endian) in front."""
    (warmup,) = CONFIGS[model].model_warmup
    ((_, tensor),) = warmup.inputs.items()
    content = (REPOSITORY / model / "warmup" / tensor.input_data_file).read_bytes()
    (length,) = struct.unpack_from("<I", content)
    assert length == len(content) - 4
    return content[4:]


def test_image_warmup_file_is_a_drawn_disc():
    drawing = Image.new("L", (64, 64), 16)
    ImageDraw.Draw(drawing).ellipse((12, 8, 52, 56), fill=200)
    with Image.open(BytesIO(warmup_bytes("image_preprocessing"))) as image:
        assert image.format == "PNG"
        assert image.tobytes() == drawing.tobytes()


def test_text_encoder_warms_up_with_texts_of_full_length():
    """A mask of zeros would have it warm up on texts of no tokens, which it cuts off."""
    for warmup in CONFIGS["text_encoder"].model_warmup:
        tensor = warmup.inputs["attention_mask"]
        mask = np.fromfile(REPOSITORY / "text_encoder/warmup" / tensor.input_data_file, "<i8")
        np.testing.assert_array_equal(mask, np.ones(tensor.dims))


def test_text_warmup_file_is_a_caption():
    assert warmup_bytes("text_tokenizer") == b"x-ray chest anteroposterior Pneumonia"
