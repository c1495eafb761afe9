"""CXRReportGen / MAIRA-2: its PyTorch modules, strict loading, and the graphs that Triton serves."""
