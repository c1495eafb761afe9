"""A head's folder -> what Triton serves: a model of vectors, and an ensemble of images around it.

An image goes the way of `medimageinsight_image` and then to the head, so that it shares batches with all other images.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from medimage_export.errors import ExportError, RepositoryError
from medimage_export.heads.graph import INPUT, LABELS, SCORES, write_head_graph
from medimage_export.heads.modules import module_of
from medimage_export.parity import Bound, ParityRow, check_parity, compare, cpu_session, truths
from medimage_export.repository import check_is_repository, is_of_head, put_in_place, staging_folder, write_json
from medimage_export.served_config import HEAD_KEY, parse_config

ENCODER = "medimageinsight_image"  # the ensemble whose way an image goes
PREPROCESSING = "image_preprocessing"
NAME = re.compile(r"[a-z][a-z0-9_]{1,62}")
SUFFIX = "_head"  # of the model of vectors
LABEL_FILE = "labels.txt"
BOUND = Bound(max_abs=1e-6)  # of scores from 0 to 1, beside PyTorch's own rounding
BATCHES = (1, 5)
KINDS = ("mlp", "linear", "knn", "zeroshot")


@dataclass(frozen=True)
class HeadFiles:
    """What is read of a head's folder."""

    kind: str
    labels: list[str]
    multilabel: bool
    encoder: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]


def read_head(folder: Path) -> HeadFiles:
    """What `medimage head train` wrote.

    Raises:
        ExportError: a file is missing or damaged.
    """
    path = folder / "head.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(folder / "weights.safetensors")
        found = HeadFiles(
            described["kind"], described["labels"], described["multilabel"], described["encoder"], tensors
        )
    except OSError as error:
        raise ExportError(
            f"cannot read {error.filename or folder}: {error.strerror}; HEAD is what `medimage head train` wrote"
        ) from None
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ExportError(
            f"{folder}: not what `medimage head train` writes, or damaged ({error}); train it again"
        ) from None
    if found.kind not in KINDS:
        raise ExportError(f"{path}: kind is {found.kind!r}; expected one of {', '.join(KINDS)}")
    unsafe = next((label for label in found.labels if not label.isprintable()), None)
    if unsafe is not None:
        raise ExportError(
            f"{path}: the label {unsafe!r} is more than one line, which Triton's file of labels cannot hold"
        )
    broken = next((name for name, tensor in tensors.items() if not np.isfinite(tensor).all()), None)
    if broken is not None:
        raise ExportError(f"{folder}: {broken} has numbers that are not finite; train the head again")
    return found


def export_head(
    folder: Path, repository: Path, name: str, *, force: bool = False, warn: Callable[[str], None]
) -> list[ParityRow]:
    """Export a head as the models NAME, of images, and NAME_head, of vectors.

    Nothing in the repository changes unless the parity check passes.

    Args:
        force: also for vectors of an encoder that is not the exported one.
        warn: gets a line of what may make the scores of images differ from those of the head's own vectors.

    Raises:
        ExportError: the head cannot be read, its encoder is another one, or the name is not allowed.
        RepositoryError: not this project's model repository, or another model has that name.
        ParityError: the exported head is further from PyTorch in float64 than PyTorch's rounding.
    """
    if not NAME.fullmatch(name):
        raise ExportError(f"--name {name!r}: expected small letters, digits and _, as cxr_findings")
    check_is_repository(repository, [ENCODER, PREPROCESSING])
    check_name(repository, name)
    head = read_head(folder)
    served = exported_encoder(repository)
    for line in differences(head.encoder, served, force=force):
        warn(line)
    width = parse_config(*config_of(repository, ENCODER)).output[0].dims[0]
    models = [name, name + SUFFIX]
    labels = "".join(f"{label}\n" for label in head.labels)
    sha256 = served.get("checkpoint_sha256") or ""
    configs = [
        ensemble_config(repository, name, len(head.labels), sha256),
        head_config(models[1], len(head.labels), width),
    ]
    for model, config in zip(models, configs, strict=True):
        parse_config(repository / model / "config.pbtxt", config)
    new = [repository / model for model in models if not (repository / model).exists()]
    for model in models:
        (repository / model / "1").mkdir(parents=True, exist_ok=True)
    try:
        with staging_folder(repository, models) as staging:
            graph = staging / models[1] / "model.onnx"
            write_head_graph(graph, head.kind, head.tensors, head.labels, multilabel=head.multilabel, width=width)
            rows = check(name, head, graph, width)
            manifest = {
                "head": head.kind,
                "labels": head.labels,
                "encoder": dict(head.encoder),
                "versions": {module.__name__: module.__version__ for module in (torch, onnx, onnxruntime)},
                "max_abs_error": max(row.export.max_abs for row in rows),
            }
            write_json(staging / models[1] / "manifest.json", manifest)
            put_in_place(staging, repository)
        for model, config in zip(models, configs, strict=True):
            (repository / model / LABEL_FILE).write_text(labels, encoding="utf-8")
            (repository / model / "config.pbtxt").write_text(config, encoding="utf-8")
    finally:
        for folder in new:
            if not (folder / "config.pbtxt").exists():  # the export has failed
                shutil.rmtree(folder)
    return rows


def config_of(repository: Path, model: str) -> tuple[Path, str]:
    path = repository / model / "config.pbtxt"
    return path, path.read_bytes().decode()


def check_name(repository: Path, name: str) -> None:
    """Raise RepositoryError if a model that is no head has the name or that of its part, or if it is that of a part."""
    if name.endswith(SUFFIX):
        raise RepositoryError(f"--name {name}: names that end in {SUFFIX} are those of parts; take another name")
    for model in (name, name + SUFFIX):
        config = repository / model / "config.pbtxt"
        if config.is_file() and not is_of_head(config):
            raise RepositoryError(f"--name {name}: {model} is a model that is no head; take another name")


def exported_encoder(repository: Path) -> dict[str, str]:
    """What the export of the encoder has told into the configs."""
    told = parse_config(*config_of(repository, ENCODER)).parameters
    if "precision" not in told:
        raise ExportError(
            f"{repository}: MedImageInsight is not exported there, without which a head has no vectors; run `medimage "
            "export medimageinsight` first"
        )
    profile = parse_config(*config_of(repository, PREPROCESSING)).parameters["profile"].string_value
    return {key: value.string_value for key, value in told.items()} | {"profile": profile}


def differences(encoder: Mapping[str, Any], served: Mapping[str, str], *, force: bool) -> Sequence[str]:
    """Lines of how the exported encoder differs from that of the head's vectors.

    Raises:
        ExportError: it is of another checkpoint, or not known to be of the same, and not `force`.
    """
    wanted, there = encoder.get("checkpoint"), served.get("checkpoint_sha256")
    lines = []
    if wanted is None or wanted != there:
        names = [f"checkpoint {sha256[:12]}" if sha256 else "no known checkpoint" for sha256 in (wanted, there)]
        line = f"the head is for vectors of {names[0]}, and {names[1]} is exported"
        if not force:
            raise ExportError(
                f"{line}: its scores would mean nothing; train it on vectors of this one, export the other, or give "
                "--force"
            )
        lines.append(f"{line}: the scores mean nothing unless both are the same model")
    lines += [
        f"the head's vectors were made with {key} {encoder.get(key)}, and {served[key]} is exported: scores may differ"
        for key in ("precision", "profile")
        if encoder.get(key) != served[key]
    ]
    return lines


def check(name: str, head: HeadFiles, graph: Path, width: int) -> list[ParityRow]:
    """The parity check of the scores, on random unit vectors; and that the labels come with them."""
    try:
        reference = module_of(head.kind, head.tensors, multilabel=head.multilabel)
    except (RuntimeError, KeyError) as error:
        raise ExportError(
            f"its weights are not those of the kind {head.kind}: {str(error).splitlines()[-1].strip()}"
        ) from None
    rng = np.random.default_rng(0)
    feeds = {}
    for batch in BATCHES:
        vectors = rng.normal(size=(batch, width))
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        feeds["one vector" if batch == 1 else "vectors"] = {INPUT: vectors}
    session = cpu_session(graph)
    rows = compare(name, truths(reference, [SCORES], feeds), session)
    check_parity(rows, "fp32", BOUND)
    found = session.run([LABELS], feeds["vectors"])[0]
    assert found.tolist() == [head.labels] * BATCHES[-1]
    return rows


def head_config(name: str, n_labels: int, width: int) -> str:
    return f"""\
name: "{name}"
backend: "onnxruntime"
max_batch_size: 64  # a few million multiply-adds each
input [ {{ name: "{INPUT}" data_type: TYPE_FP32 dims: [ {width} ] }} ]
output [
  {{ name: "{SCORES}" data_type: TYPE_FP32 dims: [ {n_labels} ] label_filename: "{LABEL_FILE}" }},
  {{ name: "{LABELS}" data_type: TYPE_STRING dims: [ {n_labels} ] }}
]
default_model_filename: "model.onnx"
version_policy {{ latest {{ num_versions: 1 }} }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]  # less work than to copy the vectors to a GPU
dynamic_batching {{
  max_queue_delay_microseconds: 0  # what the encoder has batched arrives together
  default_queue_policy {{
    max_queue_size: 64
    default_timeout_microseconds: 120000000  # as the encoder before it
    timeout_action: REJECT
    allow_timeout_override: true
  }}
}}
parameters {{ key: "{HEAD_KEY}" value {{ string_value: "{name}" }} }}
parameters {{ key: "intra_op_thread_count" value {{ string_value: "1" }} }}  # more would take them from the encoder
model_warmup [ {{
  name: "one_vector"
  batch_size: 1
  inputs {{ key: "{INPUT}" value {{ data_type: TYPE_FP32 dims: [ {width} ] zero_data: true }} }}
}} ]
"""


def ensemble_config(repository: Path, name: str, n_labels: int, sha256: str) -> str:
    """As the encoder's ensemble in the repository, and the head behind it."""
    most = parse_config(*config_of(repository, ENCODER)).max_batch_size
    return f"""\
name: "{name}"
platform: "ensemble"
max_batch_size: {most}  # of its steps
input [ {{ name: "image" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [
  {{ name: "{SCORES}" data_type: TYPE_FP32 dims: [ {n_labels} ] label_filename: "{LABEL_FILE}" }},
  {{ name: "{LABELS}" data_type: TYPE_STRING dims: [ {n_labels} ] }}
]
version_policy {{ latest {{ num_versions: 1 }} }}
parameters {{ key: "{HEAD_KEY}" value {{ string_value: "{name}{SUFFIX}" }} }}
parameters {{ key: "encoder_sha256" value {{ string_value: "{sha256}" }} }}  # with which it was exported
ensemble_scheduling {{
  step [
    {{
      model_name: "{PREPROCESSING}"
      model_version: -1
      input_map {{ key: "image" value: "image" }}
      output_map {{ key: "pixels" value: "pixels" }}
    }},
    {{
      model_name: "image_encoder"
      model_version: -1
      input_map {{ key: "pixels" value: "pixels" }}
      output_map {{ key: "image_features" value: "image_features" }}
    }},
    {{
      model_name: "{name}{SUFFIX}"
      model_version: -1
      input_map {{ key: "{INPUT}" value: "image_features" }}
      output_map {{ key: "{SCORES}" value: "{SCORES}" }}
      output_map {{ key: "{LABELS}" value: "{LABELS}" }}
    }}
  ]
}}
"""
