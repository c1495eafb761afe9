"""Numbers that stand in a config and in the client, held together here because a config can import nothing."""

from medimage_client import constants
from medimage_server.model_repository import read_configs
from tests.paths import REPOSITORY

CONFIGS = read_configs(REPOSITORY)


def test_queues_wait_as_long_as_the_client_does():
    timeouts_s = {
        name: config.dynamic_batching.default_queue_policy.default_timeout_microseconds / 1e6
        for name, config in CONFIGS.items()
        if config.HasField("dynamic_batching")
    }
    assert len(timeouts_s) == 4
    assert set(timeouts_s.values()) == {constants.DEFAULT_TIMEOUT_S}


def test_clients_requests_in_flight_fill_the_servers_largest_batch():
    in_flight = constants.DEFAULT_CONCURRENCY
    assert constants.IMAGES_PER_REQUEST * in_flight == CONFIGS["image_encoder"].max_batch_size
    assert constants.TEXTS_PER_REQUEST * in_flight == CONFIGS["text_encoder"].max_batch_size
