"""The options of the endpoint, alike for `medimage serve` and `medimage endpoint`."""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, get_args

import click

from medimage_client.schema.embeddings import Layout
from medimage_server.endpoint.keys import KEYS_VARIABLE, InvalidKey, check_keys_file, read_keys
from medimage_server.endpoint.private_files import open_private, warning_of
from medimage_server.endpoint.settings import MB, EndpointSettings
from medimage_server.endpoint.tls import check_tls
from medimage_server.errors import LaunchError
from medimage_server.options import option

LOOPBACK = ("127.0.0.1", "::1", "localhost")
SECONDS = click.FloatRange(min=0, min_open=True)
DEFAULTS = EndpointSettings(tritons=())


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointOptions:
    """The options as they are given."""

    score_host: str
    workers: int
    keys_file: Path | None
    tls_certificate: Path | None
    tls_key: Path | None
    layout: Layout
    max_requests: int
    max_body_mb: int
    max_in_flight_mb: int
    timeout: float
    report_timeout: float
    drain_delay: float
    drain_limit: float
    access_log: str | None

    def settings(self, *, tritons: tuple[str, ...], triton_metrics: str | None) -> EndpointSettings:
        """What each worker is told: its part of the bounds, and the keys as digests. It serves no deployment yet.

        The keys are taken out of the environment, which other processes of ours would inherit. A file that others may
        read draws a warning.

        Raises:
            LaunchError: keys, certificate or log cannot be used, or anybody on the network could ask without a key.
        """
        check_tls(self.tls_certificate, self.tls_key)
        self._check_log()
        try:
            digests = read_keys(os.environ.pop(KEYS_VARIABLE, ""), KEYS_VARIABLE)
            if self.keys_file:
                check_keys_file(self.keys_file)
        except InvalidKey as error:
            raise LaunchError(str(error)) from error
        if not digests and not self.keys_file and self.score_host not in LOOPBACK:
            raise LaunchError(
                f"--score-host {self.score_host} opens the endpoint to the network, and there are no keys: "
                f"give some with --keys-file or {KEYS_VARIABLE}"
            )
        self._warn()
        return EndpointSettings(
            tritons=tritons,
            layout=self.layout,
            max_requests=-(-self.max_requests // self.workers),
            max_body_bytes=self.max_body_mb * MB,
            max_in_flight_bytes=self.max_in_flight_mb * MB // self.workers,
            timeout_s=self.timeout,
            report_timeout_s=self.report_timeout,
            drain_delay_s=self.drain_delay,
            drain_limit_s=self.drain_limit,
            key_digests=digests,
            keys_file=str(self.keys_file.absolute()) if self.keys_file else None,
            tls_certificate=str(self.tls_certificate) if self.tls_certificate else None,
            tls_key=str(self.tls_key) if self.tls_key else None,
            access_log=self.access_log,
            triton_metrics=triton_metrics,
        )

    def _warn(self) -> None:
        for file in (self.keys_file, self.tls_key, self._log_file):
            if file and (warning := warning_of(file)):
                click.echo(warning, err=True)

    @property
    def _log_file(self) -> Path | None:
        return None if self.access_log in (None, "-") else Path(str(self.access_log))

    def _check_log(self) -> None:
        if self._log_file is None:
            return
        try:
            open(self._log_file, "a", opener=open_private).close()
        except OSError as error:
            raise LaunchError(f"cannot write --access-log {self.access_log}: {error.strerror}") from error


def endpoint_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options, and their values as one argument, `endpoint`."""

    @wraps(command)
    def with_options(**values: Any) -> Any:
        own = {field.name: values.pop(field.name) for field in fields(EndpointOptions)}
        return command(endpoint=EndpointOptions(**own), **values)

    for add in reversed(OPTIONS):
        with_options = add(with_options)
    return with_options


FILE = click.Path(path_type=Path, dir_okay=False)
OPTIONS = (
    option("--score-host", default="127.0.0.1", help="Address of the endpoint; 0.0.0.0 is every interface."),
    option("--workers", type=click.IntRange(1, 64), default=1, help="Number of worker processes."),
    option(
        "--keys-file",
        type=FILE,
        help="File of keys, one per line; changes take effect within two seconds. Keys may also be in "
        f"{KEYS_VARIABLE}, separated by white space.",
    ),
    option("--tls-certificate", type=FILE, help="PEM file with the certificate and its chain, for https."),
    option("--tls-key", type=FILE, help="PEM file with the key of the certificate."),
    option(
        "--layout",
        type=click.Choice(get_args(Layout)),
        default=DEFAULTS.layout,
        help="Layout of answers, unless a request's header names one.",
    ),
    option(
        "--max-requests",
        type=click.IntRange(min=1),
        default=DEFAULTS.max_requests,
        help="Requests running or waiting, per deployment; more get 429.",
    ),
    option(
        "--max-body-mb",
        type=click.IntRange(1, 1024),
        default=DEFAULTS.max_body_bytes // MB,
        help="Largest request body, in MB; a larger one gets 413.",
    ),
    option(
        "--max-in-flight-mb",
        type=click.IntRange(min=1),
        default=DEFAULTS.max_in_flight_bytes // MB,
        help="All bodies and answers together, in MB; more get 429.",
    ),
    option(
        "--timeout",
        type=SECONDS,
        default=DEFAULTS.timeout_s,
        help="Seconds for a request of embeddings; then it gets 504.",
    ),
    option(
        "--report-timeout",
        type=SECONDS,
        default=DEFAULTS.report_timeout_s,
        help="Seconds for a request of reports; then it gets 504.",
    ),
    option(
        "--drain-delay",
        type=click.FloatRange(min=0),
        default=DEFAULTS.drain_delay_s,
        help="Seconds to keep serving, reported as not ready, after SIGTERM.",
    ),
    option(
        "--drain-limit",
        type=SECONDS,
        default=DEFAULTS.drain_limit_s,
        help="Seconds for requests in flight to finish after that.",
    ),
    option("--access-log", metavar="FILE", help="Append one JSON line per request; - is standard output."),
)
