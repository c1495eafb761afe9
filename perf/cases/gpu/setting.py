"""What is measured on a GPU, and what stands in for it where there is none."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from medimage_export.cxrreportgen.checkpoint import RandomTensors, Tensors, expected_shapes, open_checkpoint
from medimage_export.cxrreportgen.config import PHI3_MINI, CXRReportGenConfig
from medimage_export.medimageinsight.checkpoint import find_checkpoint, load_model, random_model
from medimage_export.medimageinsight.config import MedImageInsightConfig
from medimage_export.medimageinsight.reference import UniCL
from perf.cases.suite.device import CPU, CUDA, Device, Dtype
from perf.measure import QUICK_RESULTS, ROOT

Precision = Literal["fp32", "fp16"]


@dataclass(frozen=True)
class Setting:
    """Full size in fp16 on a GPU; or, quick, the phantoms in what the device computes."""

    device: Device
    quick: bool
    folder: Path  # for exports, which pieces share

    @classmethod
    def of(cls, quick: bool) -> "Setting":
        device = CUDA if torch.cuda.is_available() or not quick else CPU
        if quick:
            device = replace(
                device, encoder_rounds=1, path_rounds=1, precisions=device.precisions[:1], image_batches=(1,)
            )
        # convolutions would round fp32, which is the truth here, to 10 bits
        torch.backends.cudnn.allow_tf32 = False
        folder = QUICK_RESULTS / ("gpu-phantoms" if quick else "gpu")
        folder.mkdir(parents=True, exist_ok=True)
        return cls(device, quick, folder)

    @property
    def dtype(self) -> Dtype:
        return "float16" if self.device.torch == "cuda" else "float32"

    @property
    def precision(self) -> Precision:
        return "fp16" if self.device.torch == "cuda" else "fp32"

    @property
    def kind(self) -> str:
        """As of a Triton instance."""
        return "GPU" if self.device.torch == "cuda" else "CPU"

    @property
    def weights(self) -> str:
        return "phantom checkpoints" if self.quick else "random weights of the published sizes"

    def image_model(self) -> UniCL:
        return phantom_model() if self.quick else random_model(MedImageInsightConfig())

    @cached_property
    def reports(self) -> CXRReportGenConfig:
        return phantom_reports()[0] if self.quick else CXRReportGenConfig(decoder=PHI3_MINI)

    def report_tensors(self) -> Tensors:
        return phantom_reports()[1] if self.quick else RandomTensors(expected_shapes(self.reports))


def phantom_model() -> UniCL:
    return load_model(find_checkpoint(ROOT / "checkpoints" / "medimageinsight-phantom"))


def phantom_reports() -> tuple[CXRReportGenConfig, Tensors]:
    return open_checkpoint(ROOT / "checkpoints" / "cxrreportgen-phantom")
