"""Client for MedImageInsight on Triton Inference Server: images and texts to embeddings.

from medimage_client import MedImageInsight

with MedImageInsight("grpc://localhost:8001") as client:
    embeddings = client.embed_images(["a.png", "b.dcm"])  # (2, 1024) float32
"""

from medimage_client.async_client import AsyncMedImageInsight
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
    TransportError,
    Unavailable,
)

__all__ = [
    "AsyncMedImageInsight",
    "InvalidInput",
    "MedImageError",
    "MedImageInsight",
    "MissingExtra",
    "NotFound",
    "NotReady",
    "RequestTimeout",
    "ResponseError",
    "ServerError",
    "TransportError",
    "Unavailable",
]
