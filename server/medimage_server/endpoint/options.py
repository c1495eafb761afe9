"""The options of the endpoint, alike for `medimage serve` and `medimage endpoint`: given, and checked."""

import os
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from medimage_server.endpoint.access_log import STDOUT
from medimage_server.endpoint.keys import KEYS_VARIABLE, InvalidKey, check_keys_file, read_keys
from medimage_server.endpoint.private_files import open_private, warning_of
from medimage_server.endpoint.settings import EndpointOptions, EndpointSettings
from medimage_server.endpoint.tls import tls_context
from medimage_server.errors import LaunchError
from medimage_server.options import option

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def endpoint_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command an option for each field of EndpointOptions, and their values as one argument, `endpoint`."""

    @wraps(command)
    def with_options(**values: Any) -> Any:
        own = {field.name: values.pop(field.name) for field in fields(EndpointOptions)}
        return command(endpoint=EndpointOptions(**own), **values)

    for field in reversed(fields(EndpointOptions)):
        flag = "--" + field.name.removesuffix("_s").replace("_", "-")
        with_options = option(flag, field.name, **field.metadata)(with_options)
    return with_options


def checked_settings(
    options: EndpointOptions, *, tritons: tuple[str, ...], triton_metrics: str | None
) -> EndpointSettings:
    """What the workers are told; they serve no deployment yet.

    The keys are taken out of the environment, which other processes of ours would inherit. A file that others may read
    draws a warning.

    Raises:
        LaunchError: keys, certificate or log cannot be used, or anybody on the network could ask without a key.
    """
    tls_context(options)
    keys_file, tls_key = path_of(options.keys_file), path_of(options.tls_key)
    log = None if options.access_log == STDOUT else path_of(options.access_log)
    try:
        if log:
            open(log, "a", opener=open_private).close()
    except OSError as error:
        raise LaunchError(f"cannot write --access-log {options.access_log}: {error.strerror}") from error
    try:
        digests = read_keys(os.environ.pop(KEYS_VARIABLE, ""), KEYS_VARIABLE)
        if keys_file:
            check_keys_file(keys_file)
    except InvalidKey as error:
        raise LaunchError(str(error)) from error
    if not digests and not keys_file and options.score_host not in LOOPBACK:
        raise LaunchError(
            f"--score-host {options.score_host} opens the endpoint to the network, and there are no keys: "
            f"give some with --keys-file or {KEYS_VARIABLE}"
        )
    if options.score_host not in LOOPBACK and options.tls_certificate is None:
        click.echo(
            f"warning: {options.score_host} is on a network, and keys, images and texts travel unencrypted: give "
            "--tls-certificate, or let a proxy with TLS alone reach this port",
            err=True,
        )
    for file in (keys_file, tls_key, log):
        if file and (warning := warning_of(file)):
            click.echo(warning, err=True)
    given = asdict(options) | {"keys_file": str(keys_file.absolute()) if keys_file else None}
    return EndpointSettings(**given, tritons=tritons, key_digests=digests, triton_metrics=triton_metrics)


def path_of(name: str | None) -> Path | None:
    return None if name is None else Path(name)  # an empty name is a mistake to be told, and not no file
