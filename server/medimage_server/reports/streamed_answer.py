"""The responses of `cxrreportgen_stream` to one request, and the calls that `cxrreportgen` makes to it.

Such a call carries a request parameter `call_id`. It wants the end of an answer alone, and its errors named, because
BLS loses their code (see medimage_server.bls). Triton 2.51 cannot cancel a BLS call, so another one, whose parameter
`cancel` is that id, says that nobody waits for the first any more.
"""

from typing import Any

import numpy as np

from medimage_server import bls
from medimage_server.error_response import public_error, refusal
from medimage_server.reports.generator import Report

Calls = dict[str, "StreamedAnswer"]  # by call_id, as long as they are not answered


class StreamedAnswer:
    """A medimage_server.reports.generator.Listener that answers a Triton request.

    Args:
        pb_utils: the module triton_python_backend_utils, which there is only inside Triton.
        request: the InferenceRequest; only its sender is kept.
        calls: where the answer is to be found while it lasts, if it has a call_id.
    """

    def __init__(self, pb_utils: Any, request: Any, calls: Calls, call_id: str | None) -> None:
        self._pb_utils = pb_utils
        self._request_id, self._sender = request.request_id(), request.get_response_sender()
        self._calls, self._call_id = calls, call_id
        self.is_given_up = False
        if call_id:
            calls[call_id] = self

    def text(self, delta: str) -> None:
        if not self._call_id:
            self._sender.send(self._response(text_output=delta))

    def end(self, delta: str, report: Report) -> None:
        self._finish(self._response(text_output=delta, output=report.output, status=report.status))

    def fail(self, error: Exception) -> None:
        public = public_error(self._pb_utils, error, self._request_id)
        named = bls.with_name(public) if self._call_id else public
        self._finish(refusal(self._pb_utils, named))

    def is_cancelled(self) -> bool:
        return bool(self.is_given_up or self._sender.is_cancelled())

    def cancel(self, call_id: str) -> None:
        """Give up the call of that name, if it is not answered yet, and answer this request with nothing."""
        if call := self._calls.get(call_id):
            call.is_given_up = True
        self._finish()

    def _finish(self, *response: Any) -> None:
        if self._call_id:
            self._calls.pop(self._call_id, None)
        self._sender.send(*response, flags=self._pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _response(self, **texts: str) -> Any:
        return self._pb_utils.InferenceResponse(
            [
                self._pb_utils.Tensor(name, np.array([text.encode("utf-8")], dtype=object))
                for name, text in texts.items()
            ]
        )
