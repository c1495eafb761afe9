"""MedImageInsight: its PyTorch modules, strict loading, and the graphs that Triton serves."""
