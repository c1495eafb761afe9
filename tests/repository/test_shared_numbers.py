"""Numbers that stand in a config and in the client, held together here because a config can import nothing."""

from medimage_client import constants
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
    assert unary > parameters["slots"] + parameters["max_queue"]


def test_clients_requests_in_flight_fill_the_servers_largest_batch():
    in_flight = constants.DEFAULT_CONCURRENCY
    assert constants.IMAGES_PER_REQUEST * in_flight == CONFIGS["image_encoder"].max_batch_size
    assert constants.TEXTS_PER_REQUEST * in_flight == CONFIGS["text_encoder"].max_batch_size


def test_encoders_are_warm_for_one_row_and_for_one_request_of_the_client():
    assert [warmup.batch_size for warmup in CONFIGS["image_encoder"].model_warmup] == [1, constants.IMAGES_PER_REQUEST]
    assert [warmup.batch_size for warmup in CONFIGS["text_encoder"].model_warmup] == [1, constants.TEXTS_PER_REQUEST]
