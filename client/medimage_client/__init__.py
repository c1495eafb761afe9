"""Client for MedImageInsight and CXRReportGen on Triton Inference Server.

from medimage_client import CXRReportGen, MedImageInsight

with MedImageInsight("grpc://localhost:8001") as client:
    embeddings = client.embed_images(["a.png", "b.dcm"])  # (2, 1024) float32

with CXRReportGen("grpc://localhost:8001") as client:
    report = client.report("frontal.png", lateral="lateral.png", indication="Cough")  # findings with boxes
"""

from medimage_client.async_client import AsyncMedImageInsight
from medimage_client.async_report_client import AsyncCXRReportGen, AsyncReportStream
from medimage_client.client import MedImageInsight
from medimage_client.errors import (
    InvalidInput,
    MedImageError,
    MissingExtra,
    NotFound,
    NotReady,
    RequestTimeout,
    ResponseError,
    ServerError,
    SharedMemoryError,
    TransportError,
    Unavailable,
)
from medimage_client.report_client import CXRReportGen, ReportStream
from medimage_client.reports.finding import Box, Finding
from medimage_client.reports.report import Report

__all__ = [
    "AsyncCXRReportGen",
    "AsyncMedImageInsight",
    "AsyncReportStream",
    "Box",
    "CXRReportGen",
    "Finding",
    "InvalidInput",
    "MedImageError",
    "MedImageInsight",
    "MissingExtra",
    "NotFound",
    "NotReady",
    "Report",
    "ReportStream",
    "RequestTimeout",
    "ResponseError",
    "ServerError",
    "SharedMemoryError",
    "TransportError",
    "Unavailable",
]
