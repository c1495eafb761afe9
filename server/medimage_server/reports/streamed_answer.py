"""The responses of `cxrreportgen_stream` to one request, and the calls that `cxrreportgen` makes to it.

Such a call carries the request parameter CALL_ID. It wants the end of an answer alone, and its errors named, because
BLS loses their code, and cannot cancel a call (see triton_workarounds.py); so another one, whose parameter CANCEL is
that id, says that nobody waits for the first any more. Both names are for this server alone: Triton makes a
parameter of every unknown key that a caller sends, so they are none that a caller would choose, and the id is random.
"""

import re
from typing import Any

import numpy as np

from medimage_server import bls
from medimage_server.error_response import public_error, refusal
from medimage_server.errors import InvalidInput
from medimage_server.reports.caller import Caller
from medimage_server.reports.generator import Report

CALL_ID, CANCEL = "medimage_internal_call_id", "medimage_internal_cancel"
ID_FORM = re.compile(r"[0-9a-f]{32}")  # uuid4().hex

Calls = dict[str, "StreamedAnswer"]  # by their CALL_ID, as long as they are not answered


class StreamedAnswer:
    """A medimage_server.reports.generator.Listener that answers a Triton request.

    Args:
        pb_utils: the module triton_python_backend_utils, which there is only inside Triton.
        request: the InferenceRequest; only its sender is kept.
        calls: where the answer is to be found while it lasts, if it has a call_id.
        call_id: the request's parameter CALL_ID; anything but an id counts as none.
    """

    def __init__(self, pb_utils: Any, request: Any, calls: Calls, call_id: object) -> None:
        self._pb_utils = pb_utils
        self._request_id, self._caller = request.request_id(), Caller(pb_utils, request)
        self._calls, self._call_id = calls, as_id(call_id)
        self.is_given_up = False
        if self._call_id:
            calls[self._call_id] = self

    def text(self, delta: str) -> None:
        if not self._call_id:
            self._caller.send(self._response(text_output=delta))

    def end(self, delta: str, report: Report) -> None:
        self._finish(self._response(text_output=delta, output=report.output, status=report.status))

    def fail(self, error: Exception) -> None:
        public = public_error(self._pb_utils, error, self._request_id)
        named = bls.with_name(public) if self._call_id else public
        self._finish(refusal(self._pb_utils, named))

    def is_cancelled(self) -> bool:
        return self.is_given_up or self._caller.is_cancelled()

    def cancel(self, call_id: object) -> None:
        """Give up the call of that id, if there is one that is not answered yet; answer this request with nothing.

        Raises:
            InvalidInput: it is no id.
        """
        known = as_id(call_id)
        if known is None:
            raise InvalidInput(f"parameter {CANCEL} is not for callers of this server")
        if call := self._calls.get(known):
            call.is_given_up = True
        self._finish()

    def _finish(self, *response: Any) -> None:
        if self._call_id:
            self._calls.pop(self._call_id, None)
        self._caller.finish(*response)

    def _response(self, **texts: str) -> Any:
        return self._pb_utils.InferenceResponse(
            [
                self._pb_utils.Tensor(name, np.array([text.encode("utf-8")], dtype=object))
                for name, text in texts.items()
            ]
        )


def as_id(value: object) -> str | None:
    """A parameter that has the form of an id; None for any other."""
    return value if isinstance(value, str) and ID_FORM.fullmatch(value) else None
