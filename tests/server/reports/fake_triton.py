"""A stand-in for Triton's Python API with BLS calls to a model that a test plays."""

from types import SimpleNamespace

from tests.python_backend_stand_in import COMPLETE_FINAL, InferenceResponse, Tensor, TritonError


def fake_triton(answer_call=None):
    """pb_utils whose calls are answered by `answer_call(parameters, inputs)`: an iterable of responses."""

    def request(*, model_name, inputs, requested_output_names, parameters, request_id=""):
        assert model_name == "cxrreportgen_stream"
        arrays = {tensor.name(): tensor.as_numpy() for tensor in inputs}
        return SimpleNamespace(exec=lambda decoupled: answer_call(parameters, arrays))

    return SimpleNamespace(
        InferenceRequest=request,
        InferenceResponse=InferenceResponse,
        Logger=SimpleNamespace(log_error=lambda line: None),
        Tensor=Tensor,
        TritonError=TritonError,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=COMPLETE_FINAL,
    )


def response(outputs=None, error=None):
    """What a BLS call gives: outputs by name, an error's text, or the empty end of a stream."""
    return SimpleNamespace(
        has_error=lambda: error is not None,
        error=lambda: SimpleNamespace(message=lambda: error),
        output_tensors=lambda: [Tensor(name, array) for name, array in (outputs or {}).items()],
    )
