"""Who waits for a report, as far as Triton tells a model."""

import logging
import threading
from typing import Any

log = logging.getLogger(__name__)


class Caller:
    """The response sender of a request, which one thread answers and another one asks whether it was cancelled.

    With the last response Triton frees what the question looks at, so it is not asked any more then.

    Args:
        pb_utils: the module triton_python_backend_utils, which there is only inside Triton.
        request: the InferenceRequest; only its sender is kept.
    """

    def __init__(self, pb_utils: Any, request: Any) -> None:
        self._final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self._sender = request.get_response_sender()
        self._lock = threading.Lock()
        self._is_answered = False

    def send(self, response: Any) -> None:
        """A response that others follow."""
        self._sender.send(response)

    def finish(self, response: Any) -> None:
        """The last response. Never raises, for nobody is left to be told."""
        with self._lock:
            self._is_answered = True
            try:
                self._sender.send(response, flags=self._final)
            except Exception as error:
                log.error("an answer could not be sent: %s", type(error).__name__)

    def is_cancelled(self) -> bool:
        """Takes Triton about half a millisecond, by the tokens it cost; false once the answer is finished."""
        with self._lock:
            return not self._is_answered and bool(self._sender.is_cancelled())
