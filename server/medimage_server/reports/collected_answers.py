"""`cxrreportgen`: one answer for one request, collected from `cxrreportgen_stream`, many at a time.

In Triton a model that is not decoupled answers before it takes the next request, unless its requests have senders:
then `execute` may return at once, and a thread gives the one answer (python backend, "Default Mode", since 24.06).
"""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from medimage_client.schema.reports import PARAMETERS
from medimage_server import bls
from medimage_server.errors import InferenceFailed, Unavailable, public_error, refusal
from medimage_server.reports.caller import Caller
from medimage_server.reports.periodic import Periodic
from medimage_server.triton_workarounds import PARAMETER, file_of, models_folder, new_number

log = logging.getLogger(__name__)

STREAM = "cxrreportgen_stream"
OUTPUTS = ("output", "status")
POLL_S = 0.25  # how often callers are asked whether they still wait


class CollectedAnswers:
    """The requests that wait for their report.

    Args:
        pb_utils: the module triton_python_backend_utils, which there is only inside Triton.
        max_requests: that may wait, each with a thread of its own. More than the slots and the queue of the stream
            model, so that it is that model which refuses.
    """

    def __init__(self, pb_utils: Any, max_requests: int) -> None:
        self._pb_utils, self._max_requests = pb_utils, max_requests
        self._waiting: dict[int, Caller] = {}  # by the number of their call
        self._threads = ThreadPoolExecutor(max_requests, thread_name_prefix="collect")
        self._watcher = Periodic("cancellations", POLL_S, self._pass_cancellations_on)

    def add(self, request: Any, parameters: Mapping[str, Any]) -> None:
        """Have a request answered, and return at once."""
        caller, number = Caller(self._pb_utils, request), new_number()
        if len(self._waiting) >= self._max_requests:
            error = Unavailable(f"{self._max_requests} requests are waiting already; try again later")
            caller.finish(refusal(self._pb_utils, error))
            return
        # Copied, for the request's memory is Triton's again when execute returns.
        tensors = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
        passed_on = {name: parameters[name] for name in PARAMETERS if name in parameters}  # the others are none of ours
        self._waiting[number] = caller
        self._threads.submit(self._answer, number, request.request_id(), tensors, passed_on)

    def close(self) -> None:
        """Wait for the answers that are on their way."""
        self._threads.shutdown()
        self._watcher.close()

    def _answer(
        self, number: int, request_id: str, tensors: Mapping[str, NDArray[Any]], parameters: Mapping[str, Any]
    ) -> None:
        try:
            answer = self._collect(request_id, tensors, {**parameters, PARAMETER: number})
        except Exception as error:
            answer = refusal(self._pb_utils, public_error(self._pb_utils, error, request_id))
        self._waiting.pop(number).finish(answer)
        mark_of(number).unlink(missing_ok=True)

    def _collect(self, request_id: str, tensors: Mapping[str, NDArray[Any]], parameters: Mapping[str, Any]) -> Any:
        tensor = self._pb_utils.Tensor
        request = self._pb_utils.InferenceRequest(
            model_name=STREAM,
            request_id=request_id,
            inputs=[tensor(name, values) for name, values in tensors.items()],
            requested_output_names=list(OUTPUTS),
            parameters=dict(parameters),
        )
        answer = None
        for response in request.exec(decoupled=True):  # to its end: one that is left early is never released
            if response.has_error():
                answer = refusal(self._pb_utils, bls.by_name(response.error().message()))
            elif response.output_tensors():
                outputs = {output.name(): output.as_numpy() for output in response.output_tensors()}
                answer = self._pb_utils.InferenceResponse([tensor(name, outputs[name].copy()) for name in OUTPUTS])
        if answer is None:
            raise InferenceFailed(f"internal error: {STREAM} ended without an answer")
        return answer

    def _pass_cancellations_on(self) -> None:
        for number, caller in list(self._waiting.items()):
            try:
                if caller.is_cancelled():
                    mark_of(number).touch()
                    if number not in self._waiting:  # just answered, and its file was removed before it was made
                        mark_of(number).unlink(missing_ok=True)
            except Exception as error:  # /dev/shm may be full; it is tried again, and the others have their turn
                log.error("a cancellation could not be told: %s", type(error).__name__)


def mark_of(number: int) -> Path:
    """Which tells the stream model that nobody waits for a call."""
    return file_of(models_folder(), number)
