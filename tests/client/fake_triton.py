"""A Triton in memory, whose answers follow from what is sent: value k is answered by the k-th unit vector."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medimage_client.errors import MedImageError
from medimage_client.wire.transport import Call

SCALING_FACTOR = np.float32(4.513362407684326)  # of the published model, see its card


def grey(value: int) -> NDArray[np.uint8]:
    """An image that is answered by the unit vector `value`."""
    return np.full((4, 6), value, dtype=np.uint8)


def unit_vectors(positions: Sequence[int]) -> NDArray[np.float32]:
    vectors = np.zeros((len(positions), 1024), dtype=np.float32)
    vectors[np.arange(len(positions)), positions] = 1
    return vectors


def values_of(call: Call) -> list[bytes]:
    """What the call sends in its one tensor, (n, 1)."""
    (tensor,) = call.inputs.values()
    assert tensor.shape[1:] == (1,)
    return tensor[:, 0].tolist()


def position_of(call: Call, value: bytes) -> int:
    """A text's length, an image's first pixel."""
    if "text" in call.inputs:
        return len(value.decode())
    return int(np.asarray(Image.open(BytesIO(value)).convert("L"))[0, 0])


@dataclass
class FakeTriton:
    """A Transport that notes each call. `failures` are raised first, one a call; `refuse` may raise for any call.

    No call is answered before `wait_for_in_flight` calls have been under way at once.
    """

    version = "2.51.0"  # as the server has told it
    failures: list[MedImageError] = field(default_factory=list)
    refuse: Callable[[Call], None] = lambda call: None
    wait_for_in_flight: int = 1
    ready: bool = True
    calls: list[Call] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    closed: int = 0
    told: dict[str, dict[str, str]] = field(
        default_factory=lambda: {
            "medimageinsight_image": {"checkpoint": "a.pt", "checkpoint_sha256": "c0ffee" * 10, "precision": "fp32"},
            "image_preprocessing": {"profile": "azure"},
        }
    )

    async def infer(self, call: Call, *, timeout: float) -> dict[str, NDArray[Any]]:
        self.calls.append(call)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            while self.most_in_flight < self.wait_for_in_flight:
                await asyncio.sleep(0)
            # later requests answer first, so that order is the client's work
            for _ in range(max(1, 20 - len(self.calls))):
                await asyncio.sleep(0)
            if self.failures:
                raise self.failures.pop(0)
            self.refuse(call)
        finally:
            self.in_flight -= 1
        return {
            call.output_names[0]: unit_vectors([position_of(call, value) for value in values_of(call)]),
            "scaling_factor": np.full((len(values_of(call)), 1), SCALING_FACTOR),
        }

    async def parameters(self, model: str) -> dict[str, str]:
        if self.failures:
            raise self.failures.pop(0)
        return self.told[model]

    async def is_ready(self, models: Sequence[str]) -> bool:
        return self.ready

    async def close(self) -> None:
        self.closed += 1
