"""What a client needs of a connection, over whatever protocol."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from medimage_client.errors import ResponseError
from medimage_client.schema.json_text import decode_json

Outputs = dict[str, NDArray[Any]]  # by name
SCORES, LABELS = "scores", "labels"  # outputs of a head, (n, labels) each


@dataclass(frozen=True, slots=True)
class Call:
    """One inference request."""

    model: str
    inputs: Mapping[str, NDArray[Any]] = field(repr=False)  # by name; object arrays, of bytes or str, travel as BYTES
    output_names: Sequence[str]
    parameters: Mapping[str, int]  # a bool stays one
    decoupled: bool = False  # the model's answer is a stream of responses
    optional_names: Sequence[str] = ()  # outputs that are taken from a stream where it has them


class Transport(Protocol):
    """What the client needs of a connection; every error is a MedImageError."""

    async def infer(self, call: Call, *, timeout: float) -> Outputs:
        """The call's outputs; a decoupled model's stream is read to its end.

        The caller keeps the time; `timeout`, in seconds, tells the server when nobody waits any more.
        """

    def stream(self, call: Call, *, timeout: float) -> AsyncGenerator[Outputs, None]:
        """The responses of a decoupled model, each with those of the call's outputs that it has, also optional ones.

        To close it before its end cancels the request on the server.
        """

    async def is_ready(self, models: Sequence[str]) -> bool:
        """Whether the server and these models can answer."""

    async def close(self) -> None: ...


async def read_to_end(responses: AsyncGenerator[Outputs, None], names: Sequence[str]) -> Outputs:
    """The last response of a stream that has all these outputs.

    Raises:
        ResponseError: there is none.
    """
    async with aclosing(responses):
        whole = [outputs async for outputs in responses if outputs.keys() >= set(names)]
    if not whole:
        raise ResponseError("the stream ended before its report", status=200)
    return whole[-1]


def read_object(text: bytes) -> dict[str, Any] | None:
    """JSON of an object, None for anything else."""
    try:
        value = decode_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
