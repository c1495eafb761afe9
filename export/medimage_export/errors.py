"""Errors of export, each one line for the person at the keyboard.

ExportError
├── CheckpointError   the folder is not a MedImageInsight checkpoint, or its tensors are not exactly the model's
│   └── ConfigError   its config.yaml lacks a key, or asks for something that is not implemented
├── RepositoryError   the folder is not this project's model repository, or its configs are for another shape
├── ParityError       the exported model is further from PyTorch than its precision allows
├── UnsupportedByTensorRT   the graph holds what TensorRT's ONNX parser does not document as supported
├── TensorRTMissing   neither the tensorrt package nor trtexec is here; says what to run where they are
├── PlanError         TensorRT refused to build or to run a plan
└── OpenVINOMissing   this machine does not compute bf16: its CPU, or the package openvino
"""


class ExportError(Exception):
    """The export ended without changing the model repository."""


class CheckpointError(ExportError):
    """The folder is not a MedImageInsight checkpoint, or its tensors are not exactly those of the model."""


class ConfigError(CheckpointError):
    """`config.yaml` lacks a key, or asks for something that this implementation does not have."""


class RepositoryError(ExportError):
    """The folder is not this project's model repository, or its configs are for another shape of model."""


class ParityError(ExportError):
    """An exported model is further from its reference than its precision allows."""


class UnsupportedByTensorRT(ExportError):
    """The graph holds what TensorRT's ONNX parser does not document as supported."""


class TensorRTMissing(ExportError):
    """Neither the tensorrt package nor trtexec is here; the message is the command for where they are."""


class PlanError(ExportError):
    """TensorRT refused to build or to run a plan."""


class OpenVINOMissing(ExportError):
    """This machine does not compute bf16: its CPU has no instructions for it, or the package openvino is not here."""
