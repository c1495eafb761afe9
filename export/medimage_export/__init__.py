"""Checkpoint to served model: PyTorch modules, strict loading, ONNX export and its parity check."""

import os

# The Linux wheels of onnxruntime report usage to their maker unless told not to before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
