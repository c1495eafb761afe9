"""MedImageInsight: checkpoint folder -> what Triton serves, checked before it is put in place."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import onnx
import onnxruntime
import torch
from tokenizers import Tokenizer

from medimage_export.errors import ExportError
from medimage_export.medimageinsight.checkpoint import CheckpointFiles, find_checkpoint, load_model, random_model
from medimage_export.medimageinsight.config import MedImageInsightConfig
from medimage_export.medimageinsight.encoder_writer import Precision
from medimage_export.medimageinsight.encoders import EncoderExport, encoders_of
from medimage_export.medimageinsight.int8 import write_int8
from medimage_export.medimageinsight.reference import UniCL
from medimage_export.medimageinsight.tokenizer import build_tokenizer, write_byte_vocabulary
from medimage_export.node_by_node import NodeByNode
from medimage_export.openvino_session import OpenVINOSession, check_bf16
from medimage_export.parity import Bound, ParityRow, Session, check_parity, compare, cpu_session, truths
from medimage_export.repository import check_configs, check_is_repository, put_in_place, staging_folder, write_json
from medimage_export.served_config import Format, config_change, max_batch_size, told
from medimage_export.tensorrt_plan import Toolkit, build_plan, find_toolkit, timing_cache_of, with_largest_profile

MODELS = ("image_encoder", "image_preprocessing", "medimageinsight", "text_encoder", "text_tokenizer")

CUDA = "CUDAExecutionProvider"

# What a precision may be off PyTorch in float64, beside its rounding in float32: see `parity`. fp32 has a floor, since
# float32 cannot be nearer to the numbers of a unit vector, which are below 1, than 6e-8.
BOUNDS: dict[Precision, Bound] = {
    "fp32": Bound(max_abs=1e-6),
    "fp16": Bound(min_cosine=0.9999),
    "bf16": Bound(min_cosine=0.9999),
    "int8": Bound(min_cosine=0.995),
}


def export_medimageinsight(
    checkpoint: Path | None,
    repository: Path,
    *,
    precision: Precision = "fp32",
    format: Format = "onnx",
    images: Sequence[Path] = (),
    calibration: Sequence[Path] = (),
) -> list[ParityRow]:
    """Export both encoders, the tokenizer and the preprocessing settings into the model repository.

    Nothing in the repository changes unless the parity check passes. `checkpoint=None` exports the published
    architecture at full size with random weights and a vocabulary of bytes, for benchmarks. `images` are files to add
    to the parity check. int8 takes the ranges of its activations from the image files of `calibration`, or else from
    drawings; those of the text encoder from captions.

    Raises:
        CheckpointError, ConfigError: the checkpoint is not exactly what its config says.
        RepositoryError: not this project's model repository, or its configs do not fit the checkpoint or the format.
        ParityError: the exported model is further from PyTorch in float64 than its precision allows.
        ExportError: the options exclude each other, or an image file cannot be read.
        OpenVINOMissing: this machine does not compute bf16.
        TensorRTMissing, UnsupportedByTensorRT, PlanError: see `tensorrt_plan`.
    """
    if precision in ("bf16", "int8") and format == "tensorrt":
        raise ExportError(f"{precision} is for CPUs; TensorRT takes --precision fp16 or fp32")
    if calibration and precision != "int8":
        raise ExportError(f"{precision} needs no calibration images; only --precision int8 takes them")
    openvino = check_bf16() if precision == "bf16" else None
    toolkit = find_toolkit() if format == "tensorrt" else None
    check_is_repository(repository, MODELS)
    model, tokenizer, source = _full_size_random() if checkpoint is None else _loaded(find_checkpoint(checkpoint))
    check_configs(repository, _dims(model.config))
    encoders = encoders_of(model, tokenizer, images, calibration)
    changes = [
        *(config_change(repository, encoder.name, format, precision=precision) for encoder in encoders),
        told(repository, "medimageinsight_image", _identity(source, precision)),
    ]
    with staging_folder(repository, MODELS) as staging:
        parity, in_float32 = [], {}
        for encoder in encoders:
            folder = staging / encoder.name
            feeds = encoder.parity_feeds
            if toolkit is not None:
                feeds = with_largest_profile(feeds, max_batch_size(repository, encoder.name))
            truth = truths(encoder.reference, encoder.reference.OUTPUTS, feeds)  # before a session takes memory, too
            if precision == "int8":
                rows, in_float32[encoder.name] = write_int8(encoder, folder / "model.onnx", truth, BOUNDS["int8"])
                parity += rows
                continue
            if toolkit is None:
                session = _write_onnx(encoder, folder / "model.onnx", precision)
            else:
                session = _write_plan(encoder, folder / "model.plan", precision, toolkit, repository)
            parity += compare(encoder.name, truth, session)
            del session
        check_parity(parity, precision, BOUNDS[precision])

        tokenizer.save(str(staging / "text_tokenizer" / "tokenizer.json"))
        preprocessing = {
            "image_size": list(model.config.image.image_size),
            "interpolation": model.config.image.interpolation,
        }
        write_json(staging / "image_preprocessing" / "preprocessing.json", preprocessing)
        versions = {module.__name__: module.__version__ for module in (torch, onnx, onnxruntime)}
        if toolkit is not None:
            versions["tensorrt"] = toolkit.version
        if openvino is not None:
            versions["openvino"] = openvino
        manifest = {
            "checkpoint": source,
            "format": format,
            "precision": precision,
            "layers_in_fp32": in_float32,
            "versions": versions,
            "parity": [asdict(row) for row in parity],
        }
        write_json(staging / "medimageinsight" / "manifest.json", manifest)
        put_in_place(staging, repository, changes)
    return parity


def _write_onnx(encoder: EncoderExport, path: Path, precision: Precision) -> Session:
    encoder.write(path, precision=precision)
    if precision == "fp16":
        return _open_on_gpu(path) or NodeByNode(path)
    if precision == "bf16":
        return OpenVINOSession(path)
    return cpu_session(path)


def _open_on_gpu(path: Path) -> Session | None:
    """A session that computes float32 in float32, as the served configs ask for; None where there is no GPU."""
    if CUDA not in onnxruntime.get_available_providers():
        return None
    session = onnxruntime.InferenceSession(path, providers=[(CUDA, {"use_tf32": "0"}), "CPUExecutionProvider"])
    return session if CUDA in session.get_providers() else None  # it falls back to the CPU with a warning alone


def _write_plan(
    encoder: EncoderExport, plan: Path, precision: Precision, toolkit: Toolkit, repository: Path
) -> Session:
    with tempfile.TemporaryDirectory(dir=plan.parent) as scratch:  # gone before the plan is put in place
        path = Path(scratch) / "model.onnx"
        encoder.write(path, precision=precision, operators="standard")
        return build_plan(
            toolkit,
            path,
            plan,
            max_batch_size=max_batch_size(repository, encoder.name),
            timing_cache=timing_cache_of(repository),
        )


def _dims(config: MedImageInsightConfig) -> dict[tuple[str, str], Sequence[int]]:
    height, width = config.image.image_size
    return {
        ("image_preprocessing", "pixels"): [height, width, 3],
        ("image_encoder", "pixels"): [height, width, 3],
        ("image_encoder", "image_features"): [config.projection_dim],
        ("text_tokenizer", "input_ids"): [config.text.context_length],
        ("text_encoder", "input_ids"): [config.text.context_length],
        ("text_encoder", "text_features"): [config.projection_dim],
    }


def _loaded(files: CheckpointFiles) -> tuple[UniCL, Tokenizer, dict[str, str]]:
    model = load_model(files)
    with files.weights.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    tokenizer = build_tokenizer(files.tokenizer, model.config.text.context_length)
    return model, tokenizer, {"weights": files.weights.name, "sha256": sha256}


def _identity(source: Mapping[str, str], precision: Precision) -> dict[str, str]:
    """What tells one export's vectors from another's; random weights have no hash."""
    hash_of_weights = {"checkpoint_sha256": source["sha256"]} if "sha256" in source else {}
    return {"checkpoint": source["weights"], **hash_of_weights, "precision": precision}


def _full_size_random() -> tuple[UniCL, Tokenizer, dict[str, str]]:
    config = MedImageInsightConfig()
    with tempfile.TemporaryDirectory() as folder:
        write_byte_vocabulary(Path(folder), config.text.vocab_size)
        tokenizer = build_tokenizer(Path(folder), config.text.context_length)
    return random_model(config), tokenizer, {"weights": "random"}
