"""Client for MedImageInsight and CXRReportGen on Triton Inference Server.

from medimage_client import CXRReportGen, MedImageInsight

with MedImageInsight("grpc://localhost:8001") as client:
    embeddings = client.embed_images(["a.png", "b.dcm"])  # (2, 1024) float32

with CXRReportGen("grpc://localhost:8001") as client:
    report = client.report("frontal.png", lateral="lateral.png", indication="Cough")  # findings with boxes
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medimage_client.archive.choice import Choice, choose
    from medimage_client.archive.credentials import Credentials
    from medimage_client.archive.dicomweb import Archive, Stored
    from medimage_client.archive.sources import read_studies
    from medimage_client.archive.studies import Instance, Series, Studies, Study
    from medimage_client.async_client import AsyncCXRReportGen, AsyncMedImageInsight
    from medimage_client.client import CXRReportGen, MedImageInsight, ReportStream
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
    from medimage_client.reports.finding import Box, Finding
    from medimage_client.reports.report import Report
    from medimage_client.reports.stream import AsyncReportStream
    from medimage_client.schema.heads import HeadScores
    from medimage_client.schema.reports import ModelIdentity, ReportProgress, ReportTiming

__all__ = [
    "Archive",
    "AsyncCXRReportGen",
    "AsyncMedImageInsight",
    "AsyncReportStream",
    "Box",
    "CXRReportGen",
    "Choice",
    "Credentials",
    "Finding",
    "HeadScores",
    "Instance",
    "InvalidInput",
    "MedImageError",
    "MedImageInsight",
    "MissingExtra",
    "ModelIdentity",
    "NotFound",
    "NotReady",
    "Report",
    "ReportProgress",
    "ReportStream",
    "ReportTiming",
    "RequestTimeout",
    "ResponseError",
    "Series",
    "ServerError",
    "SharedMemoryError",
    "Stored",
    "Studies",
    "Study",
    "TransportError",
    "Unavailable",
    "choose",
    "read_studies",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Names load with their first use: Triton's processes, which need a constant, would import every client."""
        modules = (
            *("errors", "archive.studies", "archive.choice", "archive.dicomweb", "archive.sources"),
            *(
                "reports.finding",
                "reports.report",
                "reports.stream",
                "schema.heads",
                "schema.reports",
                "client",
                "async_client",
            ),
        )
        if name in __all__:
            for module in modules:
                found = getattr(import_module(f"{__name__}.{module}"), name, None)
                if found is not None:
                    return globals().setdefault(name, found)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
