"""The responses of `cxrreportgen_stream` to one request, which may be a call of `cxrreportgen`.

Such a call has a number (why, `triton_workarounds.py` says). It wants the end of an answer alone, and its errors named,
because BLS loses their code (`medimage_server.bls`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from medimage_client.schema.reports import ReportProgress
from medimage_server import bls
from medimage_server.errors import public_error, refusal
from medimage_server.reports.caller import Caller
from medimage_server.reports.generator import FinishedReport
from medimage_server.triton_workarounds import is_given_up, number_of


class StreamedAnswer:
    """A medimage_server.reports.generator.Listener that answers a Triton request.

    Args:
        pb_utils: the module triton_python_backend_utils, which there is only inside Triton.
        request: the InferenceRequest; only its sender is kept.
        parameters: of the request.
        model: what the output `model` tells; None for no such output.
    """

    def __init__(
        self, pb_utils: Any, request: Any, parameters: Mapping[str, object], *, model: str | None = None
    ) -> None:
        self._pb_utils, self._model = pb_utils, model
        self._request_id, self._caller = request.request_id(), Caller(pb_utils, request)
        self._parameters = parameters
        self._is_call = number_of(parameters) is not None

    def progress(self, progress: ReportProgress) -> None:
        if not self._is_call:
            self._caller.send(self._response(progress=progress.to_json()))

    def text(self, delta: str) -> None:
        if not self._is_call:
            self._caller.send(self._response(text_output=delta))

    def end(self, delta: str, report: FinishedReport) -> None:
        more = {} if self._model is None else {"model": self._model}
        if report.timing is not None:
            more["timing"] = report.timing.to_json()
        self._caller.finish(self._response(text_output=delta, output=report.output, status=report.status, **more))

    def fail(self, error: Exception) -> None:
        public = public_error(self._pb_utils, error, self._request_id)
        self._caller.finish(refusal(self._pb_utils, bls.with_name(public) if self._is_call else public))

    def is_cancelled(self) -> bool:
        return self._caller.is_cancelled() or is_given_up(self._parameters)

    def _response(self, **texts: str) -> Any:
        return self._pb_utils.InferenceResponse(
            [
                self._pb_utils.Tensor(name, np.array([text.encode("utf-8")], dtype=object))
                for name, text in texts.items()
            ]
        )
