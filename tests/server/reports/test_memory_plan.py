"""What `medimage serve` says of the memory that reports will take, and how many slots it then asks for."""

import json
import shutil

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from medimage_export.cxrreportgen.decoder_parity import CachedDecoder
from medimage_export.repository import copy_unexported
from medimage_server import cuda_memory
from medimage_server.launcher import select_models
from medimage_server.model_repository import ServedModels
from medimage_server.reports import memory
from medimage_server.reports.decoder import Decoder
from medimage_server.reports.memory_plan import MODEL, plan_memory
from tests.paths import REPOSITORY
from tests.server.reports.samples import generation_settings
from tests.server.reports.small_model import CONFIGS, write_small_model

GB = 1_000_000_000
KV_BYTES = 786_432  # of a token in fp32, at Phi-3-mini's size: 32 layers, key and value, 3,072 numbers
SIZES = {f"{MODEL}/1/decoder.onnx.data": 2.2 * GB, "cxr_image_encoder/1/model.onnx": 0.4 * GB}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """The report models at full size, as far as their files tell; the weights are holes."""
    monkeypatch.setattr(cuda_memory, "device_count", lambda: 0)
    repository = copy_unexported(REPOSITORY, tmp_path / "models")
    for name in (MODEL, "cxr_image_encoder"):
        (repository / name / "1").mkdir(exist_ok=True)
    for file, size in SIZES.items():
        with (repository / file).open("wb") as written:
            written.truncate(int(size))
    generation_settings(repository / MODEL / "1", max_length=4096)
    write_manifest(repository, precision="int4", kv_bytes_per_token=KV_BYTES)
    return repository


def write_manifest(repository, **values):
    (repository / MODEL / "1/manifest.json").write_text(json.dumps(values))


def planned(repository, monkeypatch, free_gb):
    monkeypatch.setattr(memory, "free_bytes", lambda: int(free_gb * GB))
    served = ServedModels(repository, ["cxrreportgen"])
    return plan_memory(served), served


def test_all_slots_are_kept_where_there_is_memory_for_them(repository, monkeypatch):
    plan, served = planned(repository, monkeypatch, 40)
    assert plan.line == (
        "reports take up to 28.8 GB of memory: 2.6 GB for the decoder in int4, 0.4 GB for the encoders, and 3.2 GB for "
        "each of 8 slots (4096 tokens); 40.0 GB are free"
    )
    assert (plan.slots, plan.configs(served)) == (8, {})


def test_too_little_for_one_slot_is_said(repository, monkeypatch):
    plan, _ = planned(repository, monkeypatch, 6)  # 0.8 * (6 - 1.2 * 2.2 - 0.4) is less than 3.22
    assert plan.line.endswith(
        "; 6.0 GB are free, too little for one slot: lower max_length, or give the server more memory"
    )
    assert plan.slots == 1  # with which the decoder refuses to load, by its own line


def test_short_memory_leaves_fewer_slots_and_says_so(repository, monkeypatch, tmp_path):
    plan, served = planned(repository, monkeypatch, 24)
    assert plan.slots == 5  # 0.8 * (24 - 1.2 * 2.2 - 0.4) / 3.22 = 5.2
    assert plan.line.endswith(
        "; 24.0 GB are free, which leaves 5 of the slots: other reports wait (lower the parameter max_length for more, "
        "or give the server more memory)"
    )
    (tmp_path / "scratch").mkdir()
    selected = select_models(repository, served.names, tmp_path / "scratch", plan.configs(served))
    config = text_format.Parse((selected / MODEL / "config.pbtxt").read_text(), ModelConfig())
    assert config.parameters["slots"].string_value == "5"
    config.parameters["slots"].string_value = "8"
    assert config == text_format.Parse((REPOSITORY / MODEL / "config.pbtxt").read_text(), ModelConfig())
    assert (selected / MODEL / "1/model.py").samefile(repository / MODEL / "1/model.py")
    assert (selected / "cxrreportgen").samefile(repository / "cxrreportgen")


def test_not_even_one_slot_is_left_to_the_decoder_to_refuse(repository, monkeypatch):
    assert planned(repository, monkeypatch, 2)[0].slots == 1


def test_shorter_slots_take_less(repository, monkeypatch):
    config = repository / MODEL / "config.pbtxt"
    config.write_text(
        config.read_text().replace(
            'key: "max_length" value { string_value: "0" }', 'key: "max_length" value { string_value: "2048" }'
        )
    )
    assert planned(repository, monkeypatch, 24)[0].slots == 8


def test_cpu_holds_fp16_weights_in_fp32(repository, monkeypatch):
    write_manifest(repository, precision="fp16", kv_bytes_per_token=KV_BYTES // 2)
    plan, _ = planned(repository, monkeypatch, 24)
    assert (plan.decoder, plan.slots) == (4.4 * GB, 8)
    monkeypatch.setattr(cuda_memory, "device_count", lambda: 1)  # whose memory it would be
    assert planned(repository, monkeypatch, 24)[0] is None


@pytest.mark.parametrize("fault", ["an older export", "no manifest", "no weights", "other models"])
def test_what_cannot_be_planned_is_left_to_the_decoder(repository, monkeypatch, fault):
    folder = repository / MODEL / "1"
    if fault == "an older export":
        write_manifest(repository, precision="int4")
    elif fault == "other models":
        shutil.rmtree(repository / MODEL)
        shutil.rmtree(repository / "cxrreportgen")
        served = ServedModels(repository, ["cxr_image_encoder"])
        assert plan_memory(served) is None
        return
    else:
        (folder / {"no manifest": "manifest.json", "no weights": "decoder.onnx.data"}[fault]).unlink()
    assert planned(repository, monkeypatch, 24)[0] is None


def test_exported_graph_tells_what_the_decoder_takes_for_a_token(tmp_path):
    model = write_small_model(tmp_path, "linear")
    path = model.folder / "decoder.onnx"
    told = CachedDecoder(path, CONFIGS["linear"].decoder).kv_bytes_per_token
    decoder = Decoder(path, slots=3, max_length=64, threads=1)
    assert told * 64 * 3 == decoder._memory.nbytes
