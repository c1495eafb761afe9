"""A real worker of the endpoint in front of the Triton of the tests."""

import os
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest

from medimage_server.endpoint.keys import digest
from medimage_server.endpoint.settings import MODELS, EndpointSettings
from medimage_server.endpoint.worker_pool import bound, endpoint_services
from medimage_server.supervisor import running
from tests.triton.endpoint.raw_http import KEY
from tests.triton.heads import HEADS


@contextmanager
def standard_error_to(path):
    """What this process and those that it starts write to standard error goes into a file."""
    saved = os.dup(2)
    try:
        with path.open("wb") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@pytest.fixture(scope="package")
def endpoint(triton, tmp_path_factory):
    """Its `address`, and the files `access_log` and `errors`, its standard error."""
    folder = tmp_path_factory.mktemp("endpoint")
    log, errors = folder / "access.log", folder / "errors.log"
    settings = EndpointSettings(
        tritons=(triton.server.url,),
        deployments=(*MODELS, *HEADS),
        timeout_s=60.0,
        report_timeout_s=60.0,
        drain_limit_s=5.0,
        key_digests=(digest(KEY),),
        access_log=str(log),
        triton_metrics=triton.server.listening.metrics_url,
    )
    with ExitStack() as held:
        listener = held.enter_context(bound("127.0.0.1", 0))
        with standard_error_to(errors):
            held.enter_context(running(endpoint_services(settings, listener, folder)))
        yield SimpleNamespace(address=listener.getsockname(), access_log=log, errors=errors)
