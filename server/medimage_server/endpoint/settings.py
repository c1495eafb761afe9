"""What a worker of the endpoint is told at its start."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from medimage_client.embeddings import IMAGE_ENCODER, TEXT_ENCODER
from medimage_client.reports.requests import STREAM_MODEL, WHOLE_MODEL
from medimage_client.schema import embeddings, reports
from medimage_client.schema.embeddings import Layout
from medimage_server.errors import LaunchError
from medimage_server.model_repository import Export

MB = 2**20

EMBEDDINGS, REPORTS = "medimageinsight", "cxrreportgen"  # the deployments
MODELS = {  # of Triton, that each asks
    EMBEDDINGS: (IMAGE_ENCODER.model, TEXT_ENCODER.model),
    REPORTS: (WHOLE_MODEL, STREAM_MODEL),
}

MAX_ROWS = {EMBEDDINGS: embeddings.MAX_ROWS, REPORTS: reports.MAX_ROWS}  # of one request


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    tritons: tuple[str, ...]  # grpc:// or http:// URLs
    deployments: tuple[str, ...] = ()  # of MODELS
    layout: Layout = "rows"  # of answers that no header asks for
    max_requests: int = 64  # that are at work or wait, of each deployment, in one worker
    max_body_bytes: int = 64 * MB
    max_in_flight_bytes: int = 256 * MB  # of bodies and answers, in one worker
    timeout_s: float = 120.0  # of a request from its last byte to its answer
    report_timeout_s: float = 600.0
    drain_delay_s: float = 0.0  # from the request to end until connections are refused; not ready meanwhile
    drain_limit_s: float = 30.0  # for requests under way after that
    key_digests: tuple[str, ...] = ()  # SHA-256, in hexadecimal
    keys_file: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    access_log: str | None = None  # a file, or - for standard output
    triton_metrics: str | None = None  # URL of the page that is appended to ours; unix:/path is a socket
    # fields of `Export`, by model, if they are known
    exports: dict[str, dict[str, str | None]] = field(default_factory=dict, hash=False)

    def time_limit_s(self, deployment: str) -> float:
        return self.report_timeout_s if deployment == REPORTS else self.timeout_s

    def serving(self, models: Collection[str], exports: Mapping[str, Export]) -> Self:
        """The same for the deployments whose models Triton serves, which were exported so.

        Raises:
            LaunchError: there is none.
        """
        deployments = tuple(name for name, parts in MODELS.items() if set(parts) <= set(models))
        if not deployments:
            needed = " or ".join(f"{name} needs {' and '.join(parts)}" for name, parts in MODELS.items())
            raise LaunchError(f"there is nothing to score: {needed}; Triton serves {', '.join(models)}")
        return replace(
            self, deployments=deployments, exports={name: export.to_json() for name, export in exports.items()}
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        values: dict[str, Any] = json.loads(text)
        lists: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**values | lists)
