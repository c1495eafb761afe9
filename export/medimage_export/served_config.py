"""Make the config of a served model say what an export wrote: ONNX as committed or for CPUs, or a TensorRT plan."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup, ModelWarmup

from medimage_export.errors import RepositoryError
from medimage_export.tensorrt_profiles import batch_profiles

Format = Literal["onnx", "tensorrt"]


@dataclass(frozen=True)
class Served:
    """How a config names a format, and which files of a version folder are of it."""

    runner: str
    file: str
    files: str  # as a glob: the weights of an ONNX file lie beside it


SERVED: dict[Format, Served] = {
    "onnx": Served('backend: "onnxruntime"', "model.onnx", "model.onnx*"),
    "tensorrt": Served('platform: "tensorrt_plan"', "model.plan", "model.plan"),
}

# Triton's own words; the parameter is for the python-based onnxruntime backend, the native one reads none
OPENVINO = 'cpu_execution_accelerator [ { name: "openvino" parameters { key: "precision" value: "bf16" } } ] '
# CUDA has no kernel for int8's products nor for the attention of an int4 decoder, which is fp32; bf16 is OpenVINO's
FOR_CPUS = ("int8", "int4", "bf16")
# cuDNN plans convolutions for each size of batch anew. On a CPU more warm-ups would cost seconds, and gain nothing.
FOR_GPUS = "  # for fp16 on a GPU, which plans anew for each size"
ANY = "KIND_AUTO|KIND_MODEL"  # kinds of an instance that may be on a GPU or on a CPU
HEAD_KEY = "head"  # parameter of the models that an export of a head makes
TOLD = "  # of what is exported"  # where a caller finds which model it has
ACCELERATORS = r"(?m)^([^#\n]*\bexecution_accelerators \{ )"


@dataclass(frozen=True)
class ConfigChange:
    """What `repository.put_in_place` does to a model besides moving its files in."""

    model: str
    config: str
    stale_files: str | None = None  # as a glob: those of the other format


def parse_config(path: Path, text: str) -> ModelConfig:
    """Read the text of a config as Triton does; RepositoryError, which names `path`, where Triton could not."""
    try:
        return text_format.Parse(text, ModelConfig())
    except text_format.ParseError as exc:
        raise RepositoryError(f"{path}: line {exc}") from exc


def max_batch_size(repository: Path, model: str) -> int:
    """What the config allows, and so a plan must; see `tensorrt_profiles.batch_profiles`."""
    path = repository / model / "config.pbtxt"
    return parse_config(path, path.read_bytes().decode()).max_batch_size


def config_change(repository: Path, model: str, written: Format, *, precision: str) -> ConfigChange:
    """What points a model's config to the file that an export is going to write; changes nothing itself.

    Of the text only the backend or platform, the file's name and the optimisation profiles of the instance groups
    change. For ONNX of a precision for CPUs a kind of ANY becomes KIND_CPU, which a comment behind it tells, and for
    bf16 the CPU accelerator openvino comes in, too. For ONNX in fp16 an image encoder gets more warm-ups. The rest
    stays byte for byte, and back in ONNX of another precision the config is what it was. Hence regular expressions,
    since protobuf's text_format drops comments; their outcome is parsed and must be what is wanted. Otherwise KIND_AUTO
    stays: Triton makes it KIND_GPU where there is a GPU, and without one says itself that TensorRT needs one.

    Raises:
        RepositoryError: the config runs on the CPU, where a plan cannot, or on a GPU, where what is for CPUs cannot; it
            has a CPU accelerator already; or it is written so that these cannot be changed in it.
    """
    path = repository / model / "config.pbtxt"
    edited = _serving(path, path.read_bytes().decode(), written, precision)  # bytes, so that line ends stay
    other: Format = "onnx" if written == "tensorrt" else "tensorrt"
    return ConfigChange(model, edited, SERVED[other].files)


def _serving(path: Path, text: str, written: Format, precision: str) -> str:
    """The text of a config after `config_change`."""
    edited = as_onnx(text)
    wanted = parse_config(path, edited)
    if written == "tensorrt":
        if any(group.kind == ModelInstanceGroup.KIND_CPU for group in wanted.instance_group):
            raise RepositoryError(f"{path}: instance_group is KIND_CPU; a TensorRT plan needs KIND_GPU or KIND_AUTO")
        profiles = [str(index) for index in range(len(batch_profiles(wanted.max_batch_size)))]
        edited = _as_tensorrt(edited, profiles)
        wanted.ClearField("backend")
        wanted.platform = "tensorrt_plan"
        wanted.default_model_filename = SERVED["tensorrt"].file
        for group in wanted.instance_group:
            group.profile[:] = profiles
    elif precision == "fp16":
        if warmups := _warmups(wanted):
            edited = re.sub(r"(?m)^(?=model_warmup\b)", _as_lines(warmups, edited), edited, count=1)
            warmups += wanted.model_warmup
            wanted.ClearField("model_warmup")
            wanted.model_warmup.extend(warmups)
    elif precision in FOR_CPUS:
        if any(group.kind == ModelInstanceGroup.KIND_GPU for group in wanted.instance_group):
            raise RepositoryError(f"{path}: instance_group is KIND_GPU; {precision} needs KIND_CPU or KIND_AUTO")
        edited = re.sub(
            rf"(?m)^([^#\n]*\bkind: )({ANY})\b([^\r\n]*)", rf"\1KIND_CPU\3  # \2{_before(precision)}", edited
        )
        for group in wanted.instance_group:
            group.kind = ModelInstanceGroup.KIND_CPU
        if precision == "bf16":
            edited = re.sub(ACCELERATORS, rf"\1{OPENVINO}", edited)
            accelerators = wanted.optimization.execution_accelerators.cpu_execution_accelerator
            if accelerators:
                raise RepositoryError(
                    f"{path}: has a cpu_execution_accelerator already; bf16 needs its place for openvino"
                )
            accelerators.add(name="openvino", parameters={"precision": "bf16"})
    if parse_config(path, edited) != wanted or wanted.default_model_filename not in ("", SERVED[written].file):
        purpose = written if written == "tensorrt" else precision
        raise RepositoryError(
            f"{path}: cannot be edited for {purpose}; it must have, each once and on a line of its "
            f'own, {SERVED["onnx"].runner}, default_model_filename: "{SERVED["onnx"].file}", a kind in its '
            "instance_group, execution_accelerators { in its optimization, and model_warmup"
        )
    return edited


def changed_alike(path: Path, changed: str, text: str) -> str:
    """The text of a new config with what an export changed in the old one.

    Args:
        changed: text of the old config, as an export left it.
        text: of the new one, as no export changed it yet.

    Raises:
        RepositoryError: the new one cannot serve what was exported, see `config_change`; export again.
    """
    is_plan = re.search(rf"(?m)^{re.escape(SERVED['tensorrt'].runner)}", changed)
    precision = next((one for one in FOR_CPUS if _before(one) in changed), "fp16" if FOR_GPUS in changed else "fp32")
    edited = _serving(path, text, "tensorrt" if is_plan else "onnx", precision)
    told_lines = [line for line in changed.splitlines(keepends=True) if TOLD in line]
    return "".join([edited, *told_lines])


def told(repository: Path, model: str, parameters: Mapping[str, str]) -> ConfigChange:
    """What makes a model's config tell its callers what was exported, which Triton has no other place for.

    Raises:
        RepositoryError: Triton could not read the config.
    """
    path = repository / model / "config.pbtxt"
    text = as_onnx(path.read_bytes().decode())
    parse_config(path, text)
    end = "\r\n" if "\r\n" in text else "\n"
    lines = [
        f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value)} }} }}{TOLD}{end}'
        for key, value in parameters.items()
    ]
    edited = "".join([text, "" if text.endswith("\n") else end, *lines])
    parse_config(path, edited)
    return ConfigChange(model, edited)


def as_onnx(text: str) -> str:
    """The text of a config as it was before an export changed it."""
    text = _renamed(text, "tensorrt", "onnx")
    text = re.sub(rf"(?m)^parameters [^\r\n]*{re.escape(TOLD)}\r?\n", "", text)
    text = re.sub(rf"(?m)^model_warmup \{{[^\r\n]*{re.escape(FOR_GPUS)}\r?\n", "", text)
    text = re.sub(ACCELERATORS + re.escape(OPENVINO), r"\1", text)
    for precision in FOR_CPUS:
        before = re.escape(_before(precision))
        text = re.sub(rf"(?m)^([^#\n]*\bkind: )KIND_CPU\b([^\r\n]*)  # ({ANY}){before}(?=\r?$)", r"\1\3\2", text)
    return re.sub(r"(?m)^([^#\n]*\bkind: KIND_\w+) profile: \[[^\]]*\]", r"\1", text)


def _warmups(config: ModelConfig) -> list[ModelWarmup]:
    """Of an image encoder that may be on a GPU: for each power of two, and the largest batch, that it does not have."""
    on_cpu = all(group.kind == ModelInstanceGroup.KIND_CPU for group in config.instance_group)
    if on_cpu or not config.model_warmup or not any(tensor.name == "pixels" for tensor in config.input):
        return []
    sizes = {2**power for power in range(config.max_batch_size.bit_length())} | {config.max_batch_size}
    found = []
    for size in sorted(sizes - {warmup.batch_size for warmup in config.model_warmup}):
        warmup = ModelWarmup(name=f"batch_of_{size}", batch_size=size)
        for name, tensor in config.model_warmup[0].inputs.items():
            warmup.inputs[name].CopyFrom(tensor)
        found.append(warmup)
    return found


def _as_lines(warmups: Sequence[ModelWarmup], text: str) -> str:
    """With the line ends of `text`."""
    end = "\r\n" if "\r\n" in text else "\n"
    lines = [text_format.MessageToString(warmup, as_one_line=True) for warmup in warmups]
    return "".join(f"model_warmup {{ {line} }}{FOR_GPUS}{end}" for line in lines)


def _before(precision: str) -> str:
    return f" before {precision}, which is for CPUs"


def _as_tensorrt(text: str, profiles: list[str]) -> str:
    names = ", ".join(f'"{name}"' for name in profiles)
    text = _renamed(text, "onnx", "tensorrt")
    return re.sub(r"(?m)^([^#\n]*\bkind: KIND_\w+)", rf"\1 profile: [ {names} ]", text)


def _renamed(text: str, old: Format, new: Format) -> str:
    text = re.sub(rf"(?m)^{re.escape(SERVED[old].runner)}", SERVED[new].runner, text)
    name = 'default_model_filename: "{}"'
    return re.sub(rf"(?m)^{re.escape(name.format(SERVED[old].file))}", name.format(SERVED[new].file), text)
