"""What the operator chooses for the endpoint, stated once, and what its workers are told at their start."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self, get_args

import click

from medimage_client.embeddings import IMAGE_ENCODER, TEXT_ENCODER
from medimage_client.reports import requests
from medimage_client.schema import embeddings, reports
from medimage_client.schema.embeddings import Layout
from medimage_server.endpoint.keys import KEYS_VARIABLE
from medimage_server.errors import LaunchError
from medimage_server.exported import Export

MB = 2**20

EMBEDDINGS, REPORTS = "medimageinsight", "cxrreportgen"  # the deployments
MODELS = {  # of Triton, that each asks
    EMBEDDINGS: (IMAGE_ENCODER.model, TEXT_ENCODER.model),
    REPORTS: (requests.MODEL,),
}

MAX_ROWS = {EMBEDDINGS: embeddings.MAX_ROWS, REPORTS: reports.MAX_ROWS}  # of one request


def is_head(deployment: str) -> bool:
    return deployment not in MODELS


def models_of(deployment: str) -> tuple[str, ...]:
    """Those of Triton that a deployment asks; a head is one of its own name."""
    return MODELS.get(deployment, (deployment,))


def max_rows(deployment: str) -> int:
    return MAX_ROWS.get(deployment, embeddings.MAX_ROWS)


FILE = click.Path(dir_okay=False)
SECONDS = click.FloatRange(min=0, min_open=True)


def option_field(default: Any, help: str, **settings: Any) -> Any:  # as click's own is named
    """A field that is also an option, see `options.endpoint_options`; the settings are those of `click.option`."""
    return field(default=default, metadata={"default": default, "help": help, **settings})


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointOptions:
    """What the operator chooses, for all workers together."""

    score_host: str = option_field("127.0.0.1", "Address of the endpoint; 0.0.0.0 is every interface.")
    workers: int = option_field(1, "Number of worker processes.", type=click.IntRange(1, 64))
    keys_file: str | None = option_field(
        None,
        "File of keys, one per line; changes take effect within two seconds. Keys may also be in "
        f"{KEYS_VARIABLE}, separated by white space.",
        type=FILE,
    )
    tls_certificate: str | None = option_field(
        None, "PEM file with the certificate and its chain, for https.", type=FILE
    )
    tls_key: str | None = option_field(None, "PEM file with the key of the certificate.", type=FILE)
    layout: Layout = option_field(  # noqa: RUF009  # ruff tells a field by a plain type
        "rows", "Layout of answers, unless a request's header names one.", type=click.Choice(get_args(Layout))
    )
    max_requests: int = option_field(
        64, "Requests running or waiting, per deployment; more get 429.", type=click.IntRange(min=1)
    )
    max_body_mb: int = option_field(
        64, "Largest request body, in MB; a larger one gets 413.", type=click.IntRange(1, 1024)
    )
    max_in_flight_mb: int = option_field(
        256, "All bodies and answers together, in MB; more get 429.", type=click.IntRange(min=1)
    )
    timeout_s: float = option_field(120.0, "Seconds for a request of embeddings; then it gets 504.", type=SECONDS)
    report_timeout_s: float = option_field(600.0, "Seconds for a request of reports; then it gets 504.", type=SECONDS)
    drain_delay_s: float = option_field(
        0.0, "Seconds to keep serving, reported as not ready, after SIGTERM.", type=click.FloatRange(min=0)
    )
    drain_limit_s: float = option_field(30.0, "Seconds for requests in flight to finish after that.", type=SECONDS)
    access_log: str | None = option_field(
        None, "Append one JSON line per request; - is standard output.", metavar="FILE"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings(EndpointOptions):
    """The options, and what a worker has to know beside them."""

    tritons: tuple[str, ...]  # URLs as `medimage endpoint` takes them
    deployments: tuple[str, ...] = ()  # of MODELS, and names of heads
    key_digests: tuple[str, ...] = ()  # SHA-256, in hexadecimal; of keys that are not in the file
    triton_metrics: str | None = None  # URL of the page that is appended to ours; unix:/path is a socket
    # fields of `Export`, by model, if they are known
    exports: dict[str, dict[str, str | None]] = field(default_factory=dict, hash=False)

    @property
    def max_body_bytes(self) -> int:
        return self.max_body_mb * MB

    @property
    def worker_max_requests(self) -> int:
        """Its share of the places, of each deployment."""
        return -(-self.max_requests // self.workers)

    @property
    def worker_max_in_flight_bytes(self) -> int:
        return self.max_in_flight_mb * MB // self.workers

    def time_limit_s(self, deployment: str) -> float:
        """Of a request from its last byte to its answer."""
        return self.report_timeout_s if deployment == REPORTS else self.timeout_s

    def serving(self, models: Collection[str], exports: Mapping[str, Export], heads: Collection[str] = ()) -> Self:
        """The same for the deployments whose models Triton serves, which were exported so, and for these heads.

        Raises:
            LaunchError: there is none.
        """
        deployments = tuple(name for name, parts in MODELS.items() if set(parts) <= set(models))
        deployments += tuple(head for head in heads if head in models)
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
