"""What `make perf` measures, on the phantom checkpoint: every runtime really computes the model's vectors."""

import json
import shutil
import sys
from dataclasses import replace
from io import BytesIO

import numpy as np
import onnxruntime
import pytest
import torch
from click import ClickException
from click.testing import CliRunner
from PIL import Image
from scipy.special import softmax
from torch.utils.flop_counter import FlopCounterMode

from medimage_export.medimageinsight.checkpoint import find_checkpoint, load_model
from medimage_export.medimageinsight.config import MedImageInsightConfig
from medimage_export.medimageinsight.reference import UniCL
from medimage_export.phantoms import CAPTIONS, phantom
from medimage_export.phantoms.generator import TRAIN_SEEDS, VALIDATION_SEEDS
from medimage_export.served_config import config_change
from medimage_server.errors import LaunchError
from medimage_server.image_preprocessing import ImagePreprocessor, ImageSettings
from perf import tables
from perf.cases.suite import accuracy, baselines, encoders, floor, main, sessions, whole_path
from perf.cases.suite.device import CPU, CUDA, runtime_of, without_bf16
from perf.cases.suite.rounds import compare, difference
from perf.cases.suite.sessions import check_present, session
from tests.paths import PHANTOM_CHECKPOINT

# The very path of a GPU, on the machine that the tests run on.
CUDA_ON_CPU = replace(CUDA, torch="cpu", provider="CPUExecutionProvider", image_batches=(1, 2))


@pytest.fixture(scope="module")
def model():
    return load_model(find_checkpoint(PHANTOM_CHECKPOINT))


@pytest.fixture(scope="module")
def repositories(exported):
    """The phantom checkpoint in each precision."""
    return {precision: exported(precision) for precision in ("fp32", "fp16", "int8")}


@pytest.fixture
def _without_compilation(monkeypatch):
    """TorchInductor takes minutes; the module as it is takes its place."""
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)


@pytest.mark.usefixtures("_without_compilation")
@pytest.mark.parametrize(
    "device", [without_bf16(CPU), replace(CUDA_ON_CPU, image_batches=(2,))], ids=["cpu", "the path of cuda"]
)
def test_every_runtime_gives_the_models_vectors(device, model, repositories, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    exports = {precision: repositories[precision] for precision in device.precisions}
    for case in encoders.cases(model, exports, device):
        found = {runtime: call() for runtime, call in case.calls.items()}
        ours = {f"OnnxRuntime {precision}" for precision in device.precisions}
        assert ours < set(found) and ("torch.compile" in " ".join(found)) == case.name.startswith("image")
        want = wanted_vectors(case.name, model, exports["fp32"])
        for runtime, vectors in found.items():
            assert vectors.shape == want.shape and vectors.dtype == np.float32, runtime
            bound = 0.999999 if runtime.endswith("fp32") else 0.995
            assert difference(want, vectors)[1] >= bound, runtime


def wanted_vectors(case, model, repository):
    """The model's own, of the texts without any padding."""
    with torch.inference_mode():
        if case.startswith("image"):
            pixels = torch.from_numpy(encoders.images(int(case.split()[-1]))).permute(0, 3, 1, 2) / 255
            mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
            return model.encode_image((pixels - mean[:, None, None]) / std[:, None, None]).numpy()
        ids, mask = encoders.texts(repository / "text_tokenizer" / "1" / "tokenizer.json")
        return model.encode_text(torch.from_numpy(ids[:, :10]), torch.from_numpy(mask[:, :10])).numpy()


def test_a_baseline_that_is_not_there_is_named_with_its_reason(model, repositories, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)

    def no_compiler(module, **options):
        raise RuntimeError("No working C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", lambda module, **options: no_compiler)
    case = next(encoders.cases(model, {"fp32": repositories["fp32"]}, CPU))
    assert case.not_measured == {
        "torch.compile fp32": "torch.compile failed: RuntimeError: No working C++ compiler found",
        "OpenVINO fp32": "OpenVINO is not installed: `make perf` installs it",
    }
    assert list(case.calls) == ["PyTorch eager fp32", "PyTorch eager bf16", "OnnxRuntime fp32"]


@pytest.mark.usefixtures("_without_compilation")
def test_openvino_is_measured_as_the_config_asks_for_it(model, repositories, tmp_path, monkeypatch):
    """In fp32, so that any CPU can; with the accelerator that an export of bf16 leaves in the config."""
    repository = tmp_path / "served"
    shutil.copytree(repositories["fp32"], repository)
    change = config_change(repository, "text_encoder", "onnx", precision="bf16")
    (repository / "text_encoder" / "config.pbtxt").write_text(change.config.replace('"bf16"', '"fp32"'))
    inputs = encoders.texts(repository / "text_tokenizer" / "1" / "tokenizer.json")
    opened = []
    real = sessions.OpenVINOSession.run
    monkeypatch.setattr(
        sessions.OpenVINOSession, "run", lambda self, names, feed: opened.append(names) or real(self, names, feed)
    )
    found = session(repository, "text_encoder", CPU)(*inputs)
    assert opened == [["text_features"]]
    want = session(repositories["fp32"], "text_encoder", CPU)(*inputs)
    assert len(opened) == 1  # which was onnxruntime
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-5)


def test_names_tell_what_serves_from_the_baselines():
    assert [runtime_of(precision) for precision in CPU.precisions] == [
        "OnnxRuntime fp32",
        "OpenVINO as served bf16",
        "OnnxRuntime int8",
    ]
    assert not any(name.startswith(tables.OURS) for name in ("OpenVINO fp32", "PyTorch eager bf16"))


def test_bf16_is_measured_nowhere_on_a_cpu_without_it():
    device = without_bf16(CPU)
    assert (device.eager, device.precisions) == (("float32",), ("fp32", "int8"))
    assert device.accuracies == ("fp32", "fp16", "int8")
    assert without_bf16(CUDA) == CUDA


def test_texts_have_ten_real_tokens_each(repositories):
    ids, mask = encoders.texts(repositories["fp32"] / "text_tokenizer" / "1" / "tokenizer.json")
    assert ids.shape == mask.shape == (16, 77)
    assert (mask.sum(1) == 10).all()
    assert (ids.argmax(1) == 9).all()  # the end-of-text token has the highest id


def test_vectors_are_compared_with_the_first_calls():
    timings = compare({"a": lambda: np.array([[1.0, 0.0]]), "b": lambda: np.array([[0.6, 0.8]])}, rounds=3)
    assert [len(timing["times_ms"]) for timing in timings.values()] == [3, 3]
    assert (timings["a"]["max_abs_difference"], timings["a"]["min_cosine"]) == (0, 1)
    assert (timings["b"]["max_abs_difference"], timings["b"]["min_cosine"]) == pytest.approx((0.8, 0.6))


def test_operation_counts_are_those_of_pytorchs_counter():
    with torch.device("meta"):
        full_size = UniCL(MedImageInsightConfig())
        with FlopCounterMode(display=False) as image:
            full_size.encode_image(torch.empty(1, 3, 480, 480))
        with FlopCounterMode(display=False) as text:
            full_size.encode_text(torch.zeros(1, 10, dtype=torch.int64), torch.ones(1, 10))
    assert image.get_total_flops() / 1e9 == pytest.approx(floor.IMAGE_GFLOP, rel=0.02)
    assert text.get_total_flops() / 1e9 == pytest.approx(floor.TEXT_GFLOP, rel=0.01)


@pytest.mark.parametrize("device", [CPU, CUDA_ON_CPU], ids=["cpu", "the path of cuda"])
def test_matrix_rate_of_each_precision_is_its_operations_over_the_time_of_the_fastest(device, monkeypatch):
    class Clock:
        """Products take 1, 2, 3, 4 ms, 1, 2, ...: so much passes between two looks."""

        def __init__(self):
            self.now, self.looks = 0.0, 0

        def perf_counter(self):
            self.looks += 1
            self.now += 1e-3 * (1 + self.looks % 4)
            return self.now

    monkeypatch.setattr(floor, "SHAPES", ((64, 32, 16), (64, 64, 64)))
    monkeypatch.setattr(floor, "MIN_SECONDS", 0.1)
    monkeypatch.setattr(floor, "time", Clock())
    rates = floor.matrix_rates(device)
    images = max(device.image_batches)  # as many times the rows
    assert rates == pytest.approx(dict.fromkeys(device.precisions, images * 2 * 64**3 / 1e-3 / 1e9))


def test_floor_is_work_over_rate():
    assert tables.floor_ms(615, 250) == pytest.approx(2460)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("profile", ["reference", "azure"])
def test_reference_pixels_are_those_of_the_server(profile, mode, repositories):
    settings = ImageSettings(
        profile=profile,
        max_encoded_bytes=2**25,
        max_pixels=50_000_000,
        image_size=(480, 480),
        interpolation=Image.Resampling.BICUBIC,
    )
    caption = next(caption for caption in CAPTIONS if (phantom(caption, 0).image.ndim == 3) == (mode == "RGB"))
    image = Image.fromarray(phantom(caption, 2000, size=700).image)
    file = BytesIO()
    image.save(file, "PNG")
    want = ImagePreprocessor(settings)([file.getvalue()], {}).astype(int)
    got = whole_path.reference_pixels(whole_path.decode(file.getvalue()), profile).astype(int)
    assert got.shape == (1, 480, 480, 3)
    assert np.abs(want - got).mean() < 0.1 and np.abs(want - got).max() <= (1 if profile == "reference" else 8)


@pytest.mark.parametrize(("width", "height"), (*whole_path.SIZES[:2], (300, 250)))
def test_pngs_have_the_size_asked_for_and_are_grey(width, height):
    image = whole_path.decode(whole_path.film_file(width, height))
    assert (image.size, image.mode, image.format) == ((width, height), "L", "PNG")


def test_without_triton_the_whole_path_runs_in_this_process(model, repositories, monkeypatch, tmp_path):
    def no_triton():
        raise LaunchError("no tritonserver on PATH or in this environment")

    monkeypatch.setattr(whole_path, "find_triton", no_triton)
    file = whole_path.film_file(300, 250)
    reference = whole_path.reference_pipeline(
        baselines.eager(baselines.ImageEncoder(model), "cpu"), whole_path.served_profile(repositories["fp32"])
    )
    with whole_path.served({"fp32": repositories["fp32"]}, CPU, tmp_path) as (through, embeds):
        assert through == "in this process, without Triton: no tritonserver on PATH or in this environment"
        assert difference(reference(file), embeds["fp32"](file))[1] >= 0.9999


def test_test_set_is_unseen_and_has_a_long_tail():
    test_set = accuracy.drawings(accuracy.NORMAL, accuracy.FINDING)
    seeds = {drawing.seed for drawing in test_set}
    assert not seeds & {*TRAIN_SEEDS, *VALIDATION_SEEDS}
    counts = {caption: sum(drawing.caption == caption for drawing in test_set) for caption in CAPTIONS}
    assert len(set(test_set)) == len(test_set) == sum(counts.values()) == 1450
    assert sorted(counts.values()) == [50] * 13 + [100] * 8


def test_metrics_of_a_set_worked_out_by_hand():
    truth = np.array([0, 0, 0, 1, 2])
    probabilities = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.5, 0.4], [0.5, 0.3, 0.2]])
    # 3 of 5 right; recalls 2/3, 1 and 0. One against the rest: of class 0, (0.7 and 0.6) beat 0.1 and 0.5, and 0.2
    # beats 0.1 alone, 5 of 6 pairs; of class 1, 0.5 beats 0.2, 0.3 and 0.3 but not 0.7, 3 of 4; of class 2, 0.2 beats
    # three times 0.1 but not 0.4, 3 of 4.
    found = accuracy.metrics(truth, probabilities)
    assert found == pytest.approx(
        {"accuracy": 3 / 5, "balanced_accuracy": (2 / 3 + 1 + 0) / 3, "macro_auc": (5 / 6 + 3 / 4 + 3 / 4) / 3}
    )


def test_zero_shot_is_the_softmax_of_scaled_cosines():
    random = np.random.default_rng(0)
    images, texts = random.standard_normal((5, 8)), random.standard_normal((3, 8))
    want = softmax(np.exp(1.5) * images @ texts.T, axis=1)
    assert np.allclose(accuracy.zero_shot(images, texts, 1.5), want)


def test_evaluation_tells_a_damaged_encoder_from_a_good_one(model, repositories):
    every = accuracy.encoders(model, {"int8": repositories["int8"]}, CPU)
    candidates = {name: every[name] for name in ("PyTorch eager fp32", "OnnxRuntime int8")}
    good = candidates["PyTorch eager fp32"]
    candidates["damaged"] = replace(good, image=lambda pixels: good.image(255 - pixels))
    found = accuracy.evaluate(candidates, accuracy.drawings(1, 1), repositories["int8"], float(model.logit_scale))
    assert found["PyTorch eager fp32"]["accuracy"] >= 0.9
    assert found["PyTorch eager fp32"]["changed_answers"] == 0
    assert found["OnnxRuntime int8"]["accuracy"] >= 0.9 and found["OnnxRuntime int8"]["min_cosine"] < 0.999999
    assert found["damaged"]["accuracy"] < 0.8 and found["damaged"]["changed_answers"] > 5


def test_accuracy_of_fp16_on_a_cpu_is_not_that_of_a_session_there(model, repositories):
    pixels = encoders.images(1)
    fp32, fp16 = (
        accuracy.encoders(model, {precision: repositories[precision]}, CPU)[f"OnnxRuntime {precision}"].image(pixels)
        for precision in ("fp32", "fp16")
    )
    computed_in_fp32 = session(repositories["fp16"], "image_encoder", CPU)(pixels)
    assert fp16.dtype == np.float32
    # rounding at every node moves the vectors further than rounding the weights alone
    assert 1 - difference(fp32, fp16)[1] > 1 - difference(fp32, computed_in_fp32)[1] > 0


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="it has one")
def test_a_session_that_silently_leaves_the_gpu_is_refused(repositories):
    with pytest.raises(RuntimeError, match="without CUDAExecutionProvider: install onnxruntime-gpu"):
        session(repositories["fp16"], "image_encoder", CUDA)


def test_a_session_on_a_gpu_has_the_options_that_are_served(repositories, monkeypatch):
    asked = {}

    def load(path, options, providers):
        asked.update(providers=providers)
        raise RuntimeError("there is no GPU here")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", load)
    with pytest.raises(RuntimeError, match="no GPU here"):
        session(repositories["fp16"], "image_encoder", CUDA)
    provider, options = asked["providers"][0]
    assert provider == "CUDAExecutionProvider"
    assert (options["use_tf32"], options["cudnn_conv_algo_search"]) == ("0", "HEURISTIC")  # as in config.pbtxt


def test_a_gpu_that_is_not_there_is_missed_before_anything_else(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(main, ["--quick", "--device", "cuda", "--repository-fp32", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output == ("Error: --device cuda: PyTorch finds no GPU here (torch.cuda.is_available() is False)\n")


def test_an_onnxruntime_without_cuda_is_refused_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ClickException, match="no CUDAExecutionProvider; `make perf-gpu` puts onnxruntime-gpu in its"):
        check_present(CUDA)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="it has one")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_cuda_provider_that_does_not_load_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    with pytest.raises(ClickException, match="could not load CUDAExecutionProvider"):
        check_present(CUDA)


def test_the_cpu_is_always_present():
    check_present(CPU)


def test_a_repository_of_another_precision_is_refused_before_anything_is_measured(repositories):
    result = CliRunner().invoke(main, ["--quick", "--repository-fp32", str(repositories["int8"])])
    assert result.exit_code == 1
    assert "--repository-fp32 holds an export of precision int8" in result.output


def test_a_repository_of_tensorrt_plans_is_refused(tmp_path):
    folder = tmp_path / "medimageinsight" / "1"
    folder.mkdir(parents=True)
    manifest = {"checkpoint": {"weights": "0" * 64}, "format": "tensorrt", "precision": "fp32"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    result = CliRunner().invoke(main, ["--quick", "--repository-fp32", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output == "Error: --repository-fp32 holds an export of format tensorrt: only onnx is measured\n"
