"""A Triton in memory that reports: its findings say what was sent."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from medimage_client.errors import MedImageError
from medimage_client.schema.reports import PROGRESS, ModelIdentity, ReportProgress, ReportTiming
from medimage_client.wire.transport import Call, Outputs

PIECES = ("<obj>Heart ", "is normal.</obj><obj>Opa", "city. <box><x1><y2><x3><y4></box></ob", "j>")
TEXT = "".join(PIECES)
OUTPUT = '[["Heart is normal.", null], ["Opacity.", [[0.015, 0.025, 0.035, 0.045]]]]'


TIMING = ReportTiming(queue_s=0.25, prompt_s=12.5, decode_s=6.75)
PROGRESS_TOLD = (
    ReportProgress(state="waiting", tokens_read=0, tokens=1520, first_words_s=37.4),
    ReportProgress(state="reading", tokens_read=0, tokens=1520, first_words_s=30.0),
    ReportProgress(state="reading", tokens_read=512, tokens=1520, first_words_s=20.0),
    ReportProgress(state="reading", tokens_read=1520, tokens=1520, first_words_s=0.0),
)
MODEL = ModelIdentity(checkpoint="maira-2", checkpoint_sha256="5a" * 32, precision="fp16", version="0.1.0")


def texts(**values: str) -> Outputs:
    return {name: np.array([value.encode()], dtype=np.object_) for name, value in values.items()}


def sent(call: Call) -> dict[str, object]:
    """The inputs of a call, each a tensor of one value."""
    assert all(tensor.shape == (1,) for tensor in call.inputs.values())
    return {name: tensor.tolist()[0] for name, tensor in call.inputs.items()}


@dataclass
class FakeReports:
    """A Transport that notes each call. `failures` are raised first, one a call; `refuse` may raise for any call.

    A stream sends `pieces`, then fails with `broken` or ends with its report; then it waits if it is to `hang`.
    """

    version = "2.51.0"  # as the server has told it
    failures: list[MedImageError] = field(default_factory=list)
    refuse: Callable[[Call], None] = lambda call: None
    pieces: Sequence[str] = PIECES
    output: str | None = OUTPUT  # None: the call's indication as the one finding
    status: str | None = "complete"  # None: a stream ends without its report
    model: ModelIdentity | None = None  # None: of a server that does not tell
    timing: ReportTiming | None = None
    progress: Sequence[ReportProgress] = ()  # which a stream tells whoever asks for it
    broken: MedImageError | None = None
    hang: bool = False
    wait_for_in_flight: int = 1
    calls: list[Call] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    closed_early: int = 0
    closed: int = 0

    def _begin(self, call: Call, timeout: float) -> None:
        self.calls.append(call)
        self.timeouts.append(timeout)
        if self.failures:
            raise self.failures.pop(0)
        self.refuse(call)

    def _report(self, call: Call) -> Outputs:
        output = json.dumps([[sent(call).get("indication"), None]]) if self.output is None else self.output
        told = {"model": self.model, "timing": self.timing}
        more = {name: value.to_json() for name, value in told.items() if value is not None}
        return texts(output=output, status=self.status, **more)

    async def infer(self, call: Call, *, timeout: float) -> Outputs:
        self._begin(call, timeout)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        while self.most_in_flight < self.wait_for_in_flight:
            await asyncio.sleep(0)
        for _ in range(max(1, 20 - len(self.calls))):  # later requests answer first, so that order is the client's work
            await asyncio.sleep(0)
        self.in_flight -= 1
        return self._report(call)

    async def stream(self, call: Call, *, timeout: float) -> AsyncGenerator[Outputs, None]:
        self._begin(call, timeout)
        try:
            for progress in self.progress if call.parameters.get(PROGRESS) else ():
                yield texts(progress=progress.to_json())
            for piece in self.pieces[:-1]:
                yield texts(text_output=piece)
            if self.broken is not None:
                raise self.broken
            if self.hang:
                await asyncio.Event().wait()
            last = texts(text_output=self.pieces[-1])
            yield last if self.status is None else last | self._report(call)
        except (GeneratorExit, asyncio.CancelledError):
            self.closed_early += 1
            raise

    async def is_ready(self, models: Sequence[str]) -> bool:
        return list(models) == ["cxrreportgen_stream"]

    async def close(self) -> None:
        self.closed += 1
