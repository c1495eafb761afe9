"""Checkpoint to served model: PyTorch modules, strict loading, ONNX export and its parity check."""
