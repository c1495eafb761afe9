"""Requests to a raw Triton client, and the answers to many at once."""

import queue

import numpy as np
import tritonclient.grpc as grpc

from tests.waiting import WAIT_S


def bytes_input(name, rows, transport=grpc):
    """One BYTES input of shape [n, 1]."""
    tensor = transport.InferInput(name, [len(rows), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[row] for row in rows], dtype=np.object_))
    return tensor


def array_input(name, values, triton_type):
    tensor = grpc.InferInput(name, list(values.shape), triton_type)
    tensor.set_data_from_numpy(values)
    return tensor


def embed_images(client, images, **options):
    """(n, 1024) image features of encoded images, through the ensemble."""
    inputs = [bytes_input("image", images)]
    return client.infer("medimageinsight_image", inputs, client_timeout=WAIT_S, **options).as_numpy("image_features")


def embed_texts(client, texts):
    """(n, 1024) text features of UTF-8 texts, through the ensemble."""
    inputs = [bytes_input("text", texts)]
    return client.infer("medimageinsight_text", inputs, client_timeout=WAIT_S).as_numpy("text_features")


class Answers:
    """Answers of requests sent without waiting: `send` them, then `take` them as (key, result, error)."""

    def __init__(self, client, model):
        self.client, self.model = client, model
        self._arrived = queue.Queue()

    def send(self, key, inputs, **options):
        self.client.async_infer(
            self.model, inputs, lambda result, error: self._arrived.put((key, result, error)), **options
        )

    def take(self, count):
        """The next `count` answers in order of arrival; raises queue.Empty when one takes too long."""
        return [self._arrived.get(timeout=WAIT_S) for _ in range(count)]
