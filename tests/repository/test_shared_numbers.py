"""What stands in a config and in the client, held together here because a config can import nothing."""

import inspect
from dataclasses import MISSING, fields
from typing import get_args

import click
import pytest
from tritonclient.grpc.model_config_pb2 import TYPE_INT32, TYPE_STRING

from medimage_client import AsyncCXRReportGen, CXRReportGen, constants
from medimage_client.cli.report import report as report_command
from medimage_client.schema import reports
from medimage_client.schema.reports import ReportRequest
from medimage_server.model_repository import read_configs
from tests.paths import REPOSITORY

CONFIGS = read_configs(REPOSITORY)[0]


def test_queues_wait_as_long_as_the_client_does():
    timeouts_s = {
        name: config.dynamic_batching.default_queue_policy.default_timeout_microseconds / 1e6
        for name, config in CONFIGS.items()
        if config.HasField("dynamic_batching")
    }
    assert timeouts_s == {
        "cxr_image_encoder": constants.DEFAULT_REPORT_TIMEOUT_S,
        "cxr_image_preprocessing": constants.DEFAULT_REPORT_TIMEOUT_S,
        "image_encoder": constants.DEFAULT_TIMEOUT_S,
        "image_preprocessing": constants.DEFAULT_TIMEOUT_S,
        "text_encoder": constants.DEFAULT_TIMEOUT_S,
        "text_tokenizer": constants.DEFAULT_TIMEOUT_S,
    }


def test_reports_may_take_as_long_as_the_client_waits():
    time_limit_s = CONFIGS["cxrreportgen_stream"].parameters["time_limit_s"].string_value
    assert float(time_limit_s) == constants.DEFAULT_REPORT_TIMEOUT_S


def test_unary_model_takes_more_than_the_model_behind_it_so_that_one_bound_counts():
    parameters = {
        key: int(value.string_value)
        for key, value in CONFIGS["cxrreportgen_stream"].parameters.items()
        if value.string_value.isdecimal()
    }
    unary = int(CONFIGS["cxrreportgen"].parameters["max_requests"].string_value)
    assert unary > max(parameters["slots"], parameters["gpu_slots"]) + parameters["max_queue"]


def test_clients_requests_in_flight_fill_the_servers_largest_batch():
    in_flight = constants.DEFAULT_CONCURRENCY
    assert constants.IMAGES_PER_REQUEST * in_flight == CONFIGS["image_encoder"].max_batch_size
    assert constants.TEXTS_PER_REQUEST * in_flight == CONFIGS["text_encoder"].max_batch_size


def test_encoders_are_warm_for_one_row_and_for_one_request_of_the_client():
    assert [warmup.batch_size for warmup in CONFIGS["image_encoder"].model_warmup] == [1, constants.IMAGES_PER_REQUEST]
    assert [warmup.batch_size for warmup in CONFIGS["text_encoder"].model_warmup] == [1, constants.TEXTS_PER_REQUEST]


@pytest.mark.parametrize("model", ["cxrreportgen", "cxrreportgen_stream"])
def test_report_models_take_what_a_request_has(model):
    request = [
        (field.name, TYPE_INT32 if int in get_args(field.type) else TYPE_STRING, field.default is not MISSING)
        for field in fields(ReportRequest)
        if field.name not in reports.PARAMETERS
    ]
    assert [(tensor.name, tensor.data_type, tensor.optional) for tensor in CONFIGS[model].input] == request
    assert all(list(tensor.dims) == [1] for tensor in CONFIGS[model].input)


@pytest.mark.parametrize("client", [AsyncCXRReportGen, CXRReportGen])
@pytest.mark.parametrize("method", ["report", "stream"])
def test_clients_take_what_a_request_has(client, method):
    """An empty text is none: it is not sent."""
    beside = {"study", "dicom_window", "on_progress"}  # where the images are, how they are shown, and who is told
    _, *arguments, timeout = inspect.signature(getattr(client, method)).parameters.values()
    arguments = [argument for argument in arguments if argument.name not in beside]
    request = {field.name.removesuffix("_image"): field for field in fields(ReportRequest)}
    assert timeout.name == "timeout"
    assert [argument.name for argument in arguments] == [*request]
    for argument in arguments:
        field = request[argument.name]
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        if argument.name == "frontal":  # which a study has, too
            assert (argument.annotation, argument.default) == (field.type | None, None)
        else:
            assert argument.annotation == field.type
            assert (argument.default or default) == default


def test_command_takes_what_a_request_has_but_for_parameters():
    options = {parameter.name: parameter for parameter in report_command.params}
    names = [field.name.removesuffix("_image") for field in fields(ReportRequest)]
    assert set(names) - set(options) == set(reports.PARAMETERS)
    assert list(options["mode"].type.choices) == list(get_args(reports.Mode))
    request = {field.name: field.default for field in fields(ReportRequest)}
    command = click.Context(report_command)
    assert options["mode"].get_default(command) == request["mode"]
