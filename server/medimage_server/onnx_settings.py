"""What a model config says of onnxruntime's session, CUDA provider and OpenVINO, and the session that it asks for.

Names, numbers and defaults are those of Triton's native onnxruntime backend (its README.md and src/onnxruntime.cc), so
that one config.pbtxt serves both. A config comes as Triton passes it to a Python model: proto field names, JSON types.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import onnxruntime as ort

from medimage_server import cuda
from medimage_server.openvino_session import PRECISIONS, OpenVINOMissing, OpenVINOSession

log = logging.getLogger(__name__)

TRUTH_VALUES = {"1": True, "true": True, "0": False, "false": False}
GRAPH_OPTIMIZATION_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
SESSION_PARAMETERS = {
    "intra_op_thread_count",
    "inter_op_thread_count",
    "execution_mode",
    "enable_mem_arena",
    "enable_mem_pattern",
}
ROWS_PARAMETER = "cpu_max_batch_size"  # ours: the native backend takes no notice of it
# Options of the CUDA provider that the native backend reads from `parameters` and nowhere else: what the accelerator
# named "cuda" says of these is overwritten. It numbers the choices that have names in onnxruntime.
CUDA_PARAMETERS: Mapping[str, Sequence[str]] = {
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "do_copy_in_default_stream": (),
    "gpu_mem_limit": (),
}


class ModelLoadError(Exception):
    """The model cannot be served as configured; str() is one line for the server's log."""


def session_options(config: Mapping[str, Any]) -> ort.SessionOptions:
    """The session's options; what is absent keeps onnxruntime's defaults.

    What is not honoured here is named in a warning, not refused, because the native backend may honour it.

    Raises:
        ModelLoadError: a value is not one that the native backend takes.
    """
    parameters, optimization = config.get("parameters", {}), config.get("optimization", {})
    ignored = sorted(parameters.keys() - SESSION_PARAMETERS - CUDA_PARAMETERS.keys() - {ROWS_PARAMETER})
    _warn_of_ignored(config, ignored)

    options = ort.SessionOptions()
    options.intra_op_num_threads = _whole_number(config, "intra_op_thread_count")
    options.inter_op_num_threads = _whole_number(config, "inter_op_thread_count")
    if _truth(config, "execution_mode", default="0"):
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = _truth(config, "enable_mem_arena", default="1")
    options.enable_mem_pattern = _truth(config, "enable_mem_pattern", default="1")
    level = optimization.get("graph", {}).get("level", 0)
    if level not in GRAPH_OPTIMIZATION_LEVELS:
        raise ModelLoadError(f"{config['name']}: optimization.graph.level is {level}; expected -1, 0, 1 or 2")
    options.graph_optimization_level = GRAPH_OPTIMIZATION_LEVELS[level]
    # x86 without VNNI adds the products of uint8 and int8 by pairs in 16 bits, where they saturate; with this entry the
    # int8 weights become uint8, slower but exact (onnxruntime_session_options_config_keys.h). onnxruntime does that on
    # CPUs with VNNI, too, where it would take 2.4 times as long for nothing.
    if not has_vnni():
        options.add_session_config_entry("session.x64quantprecision", "1")
    # A blank image has attention weights so small that they are denormal: products with those take 60 times as long.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return options


def rows_at_once(config: Mapping[str, Any], *, kind: str) -> int:
    """How many rows of a batch an instance computes at once, 0 for all: `cpu_max_batch_size` on a CPU.

    Raises:
        ModelLoadError: it is no whole number.
    """
    return _whole_number(config, ROWS_PARAMETER) if kind == "CPU" and config["max_batch_size"] > 0 else 0


def has_vnni() -> bool:
    """Whether this CPU adds products of 8-bit integers in 32 bits; false where Linux does not say."""
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()  # avx512_vnni, avx_vnni
    except OSError:
        return False


def cuda_options(config: Mapping[str, Any]) -> dict[str, str]:
    """The CUDA provider's options: those in `parameters`, and any other of the accelerator named "cuda".

    Raises:
        ModelLoadError: a value is not one that the native backend takes.
    """
    accelerators = config.get("optimization", {}).get("execution_accelerators", {}).get("gpu_execution_accelerator", [])
    options: dict[str, str] = {}
    ignored = []
    for accelerator in accelerators:
        if accelerator["name"] == "cuda":
            options |= accelerator.get("parameters", {})
        else:
            ignored.append(f"gpu_execution_accelerator {accelerator['name']}")
    for key in sorted(options.keys() & CUDA_PARAMETERS.keys()):
        del options[key]
        ignored.append(f"{key} outside parameters")
    _warn_of_ignored(config, ignored)
    for key in config.get("parameters", {}).keys() & CUDA_PARAMETERS.keys():
        number, names = _whole_number(config, key), CUDA_PARAMETERS[key]
        if names and number >= len(names):
            raise ModelLoadError(f"{config['name']}: parameter {key} is {number}; expected 0 to {len(names) - 1}")
        options[key] = names[number] if names else str(number)
    return options


class OpenVINOWanted(NamedTuple):
    """That a config has the CPU accelerator "openvino", and in which precision: None is for OpenVINO to choose."""

    precision: str | None


def openvino_wanted(config: Mapping[str, Any]) -> OpenVINOWanted | None:
    """What the config says of the CPU accelerator "openvino"; None where it is not named.

    Its parameter `precision`, bf16 or fp32, is ours: the native backend reads none.

    Raises:
        ModelLoadError: the precision is another one.
    """
    accelerators = config.get("optimization", {}).get("execution_accelerators", {}).get("cpu_execution_accelerator", [])
    wanted, ignored = None, []
    for accelerator in accelerators:
        if accelerator["name"] != "openvino":
            ignored.append(f"cpu_execution_accelerator {accelerator['name']}")
            continue
        parameters = accelerator.get("parameters", {})
        wanted = OpenVINOWanted(parameters.get("precision"))
        ignored += [f"openvino's {key}" for key in sorted(parameters.keys() - {"precision"})]
        if wanted.precision not in (None, *PRECISIONS):
            raise ModelLoadError(
                f"{config['name']}: openvino's precision is {wanted.precision!r}; expected one of {sorted(PRECISIONS)}"
            )
    _warn_of_ignored(config, ignored)
    return wanted


def configured_session(
    config: Mapping[str, Any], path: Path, *, kind: str, device_id: int
) -> ort.InferenceSession | OpenVINOSession:
    """Load an ONNX file as the config says. Where OpenVINO cannot be had, onnxruntime's fp32 and a warning.

    Args:
        kind, device_id: see `execution_providers`; OpenVINO is for CPU instances alone.

    Raises:
        ModelLoadError: a value of the config is not one that can be taken.
        Exception: onnxruntime's and OpenVINO's own, which share no base class, when they cannot load the file.
    """
    options, cuda, openvino = session_options(config), cuda_options(config), openvino_wanted(config)
    if openvino and kind == "CPU":
        try:
            return OpenVINOSession(path, openvino.precision, threads=options.intra_op_num_threads)
        except OpenVINOMissing as missing:
            log.warning("%s: %s, so onnxruntime computes fp32", config["name"], missing)
    return open_session(config["name"], path, options, kind=kind, device_id=device_id, cuda_options=cuda)


def open_session(
    model: str,
    path: Path,
    options: ort.SessionOptions,
    *,
    kind: str,
    device_id: int,
    cuda_options: Mapping[str, str] = MappingProxyType({}),
) -> ort.InferenceSession:
    """Load an ONNX file on the device of an instance; a GPU instance that gets the CPU instead is named in a warning.

    Args:
        model: its name, for the warning.
        kind, device_id: see `execution_providers`.

    Raises:
        Exception: onnxruntime's own, which share no base class, when it cannot load the file.
    """
    providers = execution_providers(kind, device_id, cuda_options)
    if len(providers) > 1:
        ort.preload_dlls()  # CUDA and cuDNN as pip installs them, which the system's loader does not find
    session = ort.InferenceSession(path, options, providers=providers)
    # Asked of the session: what is available is what the wheel was built with, and a failed load raises nothing.
    if kind == "GPU" and not cuda.is_used_by(session):
        log.warning(
            "%s: this onnxruntime has no CUDA provider that loads, so the CPU is used "
            "(install onnxruntime-gpu and the CUDA and cuDNN that it needs)",
            model,
        )
    elif kind == "GPU" and (failure := cuda.failure(device_id)):
        log.warning(
            "%s: CUDA device %d computes no convolution, so the CPU is used (install the CUDA and cuDNN that this "
            "onnxruntime needs): %s",
            model,
            device_id,
            failure,
        )
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.disable_fallback()  # after one error of CUDA, run() would compute on the CPU for good and not tell anyone
    return session


def execution_providers(
    kind: str, device_id: int, cuda_options: Mapping[str, str] = MappingProxyType({})
) -> list[str | tuple[str, dict[str, str | int]]]:
    """CUDA first for a GPU instance, if onnxruntime was built with it; the CPU for the rest.

    Args:
        kind: instance kind that Triton chose, "CPU" or "GPU".
        device_id: the CUDA device of a GPU instance.
    """
    if kind != "GPU" or cuda.PROVIDER not in ort.get_available_providers():
        return ["CPUExecutionProvider"]
    return [(cuda.PROVIDER, {**cuda_options, "device_id": device_id}), "CPUExecutionProvider"]


def _whole_number(config: Mapping[str, Any], key: str) -> int:
    """A parameter's value, 0 where it is absent."""
    text = _parameter(config, key, default="0")
    if not text.isdecimal():
        raise ModelLoadError(f"{config['name']}: parameter {key} is {text!r}; expected a whole number")
    return int(text)


def _truth(config: Mapping[str, Any], key: str, *, default: str) -> bool:
    text = _parameter(config, key, default=default)
    if text.lower() not in TRUTH_VALUES:
        raise ModelLoadError(f"{config['name']}: parameter {key} is {text!r}; expected one of {sorted(TRUTH_VALUES)}")
    return TRUTH_VALUES[text.lower()]


def _parameter(config: Mapping[str, Any], key: str, *, default: str) -> str:
    text: str = config.get("parameters", {}).get(key, {"string_value": default})["string_value"]
    return text


def _warn_of_ignored(config: Mapping[str, Any], ignored: Sequence[str]) -> None:
    if ignored:
        log.warning("%s: %s not honoured by the python-based onnxruntime backend", config["name"], ", ".join(ignored))
