"""CXRReportGen on a real Triton, with a small random model: streams, whole reports, many at once, and every way out."""

import base64
import json
import queue
import re
import shutil
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import astuple, replace
from http.client import HTTPConnection
from importlib.metadata import version
from io import BytesIO
from time import monotonic
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpc
import tritonclient.http as http
from PIL import Image
from tokenizers import Tokenizer
from tritonclient.utils import InferenceServerException

from medimage_client import CXRReportGen
from medimage_client.schema.reports import ModelIdentity
from medimage_export.cxrreportgen.checkpoint import (
    load_image_encoder,
    load_reference_decoder,
    open_checkpoint,
    weights_sha256,
)
from medimage_export.cxrreportgen.export import export_cxrreportgen
from medimage_server.launcher import run_triton
from medimage_server.reports.chest_xray import resize_and_crop, stretch_grey
from medimage_server.reports.prompt import PromptTokenizer, Study
from medimage_server.reports.settings import GenerationSettings
from tests.export.cxrreportgen.small import LLAMA, VISION, write_checkpoint
from tests.strict_reports import parse_strict
from tests.waiting import wait_until

WAIT_S = 60.0  # for any answer: far more than it takes, so that a hang fails the test and not the machine
END_S = 20.0  # Triton ends in about 4 s; one that waits for a request that never ends takes 30 s
SMALL = replace(LLAMA, vision=replace(VISION, patch_size=37))  # 196 tokens an image
ENDLESS = 5000  # new tokens: at a thousand a second, seconds in which a test can do something else
METRICS = {
    "medimage_report_tokens_total": "counter",
    "medimage_report_prefill_seconds_total": "counter",
    "medimage_report_decode_seconds_total": "counter",
    "medimage_report_answers_total": "counter",
    "medimage_report_answers_queue_seconds_total": "counter",
    "medimage_report_answers_prompt_seconds_total": "counter",
    "medimage_report_answers_decode_seconds_total": "counter",
    "medimage_report_live_slots": "gauge",
    "medimage_report_queue_length": "gauge",
    "medimage_report_tokens_per_second": "gauge",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    write_checkpoint(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def exported(unexported, checkpoint, tmp_path_factory):
    """The model repository with the small model exported into it."""
    repository = shutil.copytree(unexported, tmp_path_factory.mktemp("exported") / "models")
    export_cxrreportgen(checkpoint, repository)
    return repository


@contextmanager
def served(repository, log, **parameters):
    """The report models, some parameters of cxrreportgen_stream changed."""
    config = repository / "cxrreportgen_stream/config.pbtxt"
    text = config.read_text()
    for name, value in parameters.items():
        text, found = re.subn(rf'(key: "{name}" value {{ string_value: )"\d+"', rf'\1"{value}"', text)
        assert found == 1
    config.write_text(text)
    with (
        run_triton(repository, models=["cxrreportgen"], log=log) as server,
        grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as grpc_client,
        http.InferenceServerClient(f"127.0.0.1:{server.http_port}", concurrency=8) as http_client,
    ):
        yield SimpleNamespace(server=server, grpc=grpc_client, http=http_client, log=log)


@pytest.fixture(scope="module")
def triton(exported, tmp_path_factory):
    """With the committed configs."""
    with served(exported, tmp_path_factory.mktemp("log") / "log") as triton:
        yield triton


def png(seed):
    """Noise, and in it a disc that no other seed has in that place."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 64, (320, 260), dtype=np.uint8)
    row, column = random.integers(0, 200, 2)
    pixels[row : row + 60, column : column + 60] += 150
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def inputs(transport=grpc, *, max_new_tokens=None, **values):
    tensors = []
    for name, value in values.items():
        tensors.append(transport.InferInput(name, [1], "BYTES"))
        tensors[-1].set_data_from_numpy(np.array([value], dtype=object))
    if max_new_tokens is not None:
        tensors.append(transport.InferInput("max_new_tokens", [1], "INT32"))
        tensors[-1].set_data_from_numpy(np.array([max_new_tokens], np.int32))
    return tensors


def texts(result):
    """The output tensors of an answer that are there, as text."""
    arrays = {name: result.as_numpy(name) for name in ("text_output", "output", "status", "progress")}
    return {name: array[0].decode() for name, array in arrays.items() if array is not None}


def report(triton, *, transport=grpc, parameters=None, **values):
    """`output` and `status` of cxrreportgen."""
    client, limit = (triton.grpc, {"client_timeout": WAIT_S}) if transport is grpc else (triton.http, {})
    answer = client.infer("cxrreportgen", inputs(transport, **values), parameters=parameters, **limit)
    return texts(answer)


class Stream:
    """One gRPC stream to cxrreportgen_stream."""

    def __init__(self, triton, *, parameters=None, **values):
        self.client = grpc.InferenceServerClient(f"127.0.0.1:{triton.server.grpc_port}")
        self._arrived = queue.Queue()
        self.client.start_stream(lambda result, error: self._arrived.put((result, error)))
        self.client.async_stream_infer("cxrreportgen_stream", inputs(**values), parameters=parameters)

    def take(self):
        """The next response's texts; raises its error."""
        result, error = self._arrived.get(timeout=WAIT_S)
        if error:
            raise error
        return texts(result)

    def rest(self):
        """All responses to the last."""
        responses = [self.take()]
        while "status" not in responses[-1]:
            responses.append(self.take())
        return responses

    def close(self, *, cancel=False):
        self.client.stop_stream(cancel_requests=cancel)
        self.client.close()


def stream(triton, **values):
    with closing(Stream(triton, **values)) as answer:
        return answer.rest()


def post(triton, model, kind, **body):
    """Status, content type and body of a request to the generate extension; bytes go as base64."""
    plain = {k: base64.b64encode(v).decode() if isinstance(v, bytes) else v for k, v in body.items()}
    with closing(HTTPConnection("127.0.0.1", triton.server.http_port, timeout=WAIT_S)) as connection:
        connection.request("POST", f"/v2/models/{model}/{kind}", body=json.dumps(plain))
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type"), response.read().decode()


def metrics(triton):
    with urllib.request.urlopen(f"http://127.0.0.1:{triton.server.metrics_port}/metrics", timeout=WAIT_S) as page:
        lines = page.read().decode().splitlines()
    return {line.partition("{")[0]: float(line.split()[-1]) for line in lines if line.startswith("medimage_report")}


def wait_until_idle(triton):
    wait_until(lambda: metrics(triton)["medimage_report_live_slots"] == 0)


@torch.inference_mode()
def test_stream_writes_what_pytorch_writes(triton, checkpoint, exported):
    folder = exported / "cxrreportgen_stream/1"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config, tensors = open_checkpoint(checkpoint)
    pixels = [resize_and_crop(stretch_grey(Image.open(BytesIO(png(seed)))), 518) for seed in (0, 1)]
    image_tokens = iter(load_image_encoder(config, tensors)(torch.from_numpy(np.stack(pixels))))
    table = tensors.read("language_model.model.embed_tokens.weight").float()
    study = Study(has_lateral=True, indication="Cough.")
    prompt = PromptTokenizer(tokenizer, GenerationSettings.read(folder / "generation.json"))(study)
    image_id = tokenizer.token_to_id("<image>")
    embeds = torch.cat([next(image_tokens) if id == image_id else table[[id]] for id in prompt.token_ids])
    decoder, tokens = load_reference_decoder(config.decoder, tensors), []
    for _ in range(12):
        logits = decoder(inputs_embeds=torch.cat([embeds, table[tokens]])[None], use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
    responses = stream(
        triton, frontal_image=png(0), lateral_image=png(1), indication=b"Cough.", max_new_tokens=len(tokens)
    )
    assert "".join(response["text_output"] for response in responses) == tokenizer.decode(tokens).lstrip()


def test_stream_ends_with_the_findings_and_only_there(triton):
    *deltas, last = stream(triton, frontal_image=png(0), max_new_tokens=20)
    assert len(deltas) > 5
    assert all(response.keys() == {"text_output"} for response in deltas)
    text = "".join(response["text_output"] for response in (*deltas, last))
    assert last["status"] == "truncated"
    assert json.loads(last["output"]) == [[text.strip(), None]]


def test_generate_stream_sends_the_same_as_server_sent_events(triton):
    expected = stream(triton, frontal_image=png(0), max_new_tokens=20)
    status, content_type, body = post(
        triton, "cxrreportgen_stream", "generate_stream", frontal_image=png(0), max_new_tokens=20
    )
    assert status == 200
    assert content_type.startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in body.split("\n\n") if line]
    names = ("text_output", "output", "status")
    assert [{name: event[name] for name in names if name in event} for event in events] == expected


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_report_names_the_checkpoint_that_wrote_it(triton, checkpoint, scheme):
    port = triton.server.grpc_port if scheme == "grpc" else triton.server.http_port
    with CXRReportGen(f"{scheme}://127.0.0.1:{port}") as client:
        model = client.report(png(0), max_new_tokens=3).model
        with client.stream(png(0), max_new_tokens=3) as written:
            assert len([*written]) > 0
        assert written.report.model == model
    assert model == ModelIdentity(
        checkpoint=checkpoint.name,
        checkpoint_sha256=weights_sha256(checkpoint),
        precision="fp32",
        version=version("medimage-triton"),
    )


def test_stream_tells_how_far_the_prompt_is_read_to_whoever_asks(triton):
    study = {"frontal_image": png(0), "max_new_tokens": 5}
    expected = stream(triton, **study)
    responses = stream(triton, **study, parameters={"progress": True})
    told = [json.loads(response["progress"]) for response in responses if "progress" in response]
    assert [*expected] == responses[len(told) :]
    assert all("progress" not in response for response in expected)
    tokens = told[0]["tokens"]
    assert tokens > 196  # the image's; read by prefill_chunk
    assert [progress["state"] for progress in told] == ["waiting", *["reading"] * (len(told) - 1)]
    assert [progress["tokens_read"] for progress in told] == [
        0,
        0,
        *range(512, tokens, 512),
        tokens,
    ]  # by prefill_chunk


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_report_has_its_times_and_metrics_add_them_up(triton, scheme):
    port = triton.server.grpc_port if scheme == "grpc" else triton.server.http_port
    wait_until_idle(triton)
    before, told = metrics(triton), []
    with CXRReportGen(f"{scheme}://127.0.0.1:{port}") as client:
        started = monotonic()
        timings = [client.report(png(0), max_new_tokens=20).timing]
        with client.stream(png(0), max_new_tokens=20, on_progress=told.append) as written:
            assert "".join(written)
        seconds = monotonic() - started
    timings.append(written.report.timing)
    assert 0 < sum(sum(astuple(timing)) for timing in timings) < seconds
    assert (told[0].state, told[-1].tokens_read) == ("waiting", told[-1].tokens)
    assert told[0].first_words_s is not None  # by what the report before it took
    name = "medimage_report_answers"
    wait_until(lambda: metrics(triton)[f"{name}_total"] >= before[f"{name}_total"] + 2)
    gained = {key: value - before[key] for key, value in metrics(triton).items()}
    for part in ("queue", "prompt", "decode"):
        expected = sum(getattr(timing, f"{part}_s") for timing in timings)
        assert gained[f"{name}_{part}_seconds_total"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("transport", [grpc, http], ids=["grpc", "http"])
def test_whole_report_is_the_end_of_the_stream(triton, transport):
    study = {"frontal_image": png(2), "prior_image": png(3), "prior_report": b"Clear.", "max_new_tokens": 20}
    last = stream(triton, **study)[-1]
    assert report(triton, transport=transport, **study) == {"output": last["output"], "status": last["status"]}


def test_generate_gives_the_whole_report(triton):
    expected = report(triton, frontal_image=png(0), max_new_tokens=20)
    status, _, body = post(triton, "cxrreportgen", "generate", frontal_image=png(0), max_new_tokens=20)
    assert status == 200
    assert {name: json.loads(body)[name] for name in expected} == expected


def test_constrained_report_is_never_malformed(triton):
    study = {"frontal_image": png(0), "max_new_tokens": 100}
    responses = stream(triton, **study, parameters={"constrained": True})
    text, status = "".join(response["text_output"] for response in responses), responses[-1]["status"]
    complete, end, unfinished = text.rpartition("</obj>")
    parse_strict(text if status == "complete" else complete + end)
    assert status == "complete" or (status == "truncated" and (unfinished.startswith("<obj>") or not unfinished))
    answer = report(triton, **study, parameters={"constrained": True})
    assert answer == {name: responses[-1][name] for name in answer}
    assert text != "".join(response["text_output"] for response in stream(triton, **study))


def test_keys_of_other_services_change_nothing(triton):
    study = {"frontal_image": png(0), "max_new_tokens": 20}
    expected = report(triton, **study)
    strange = {"temperature": 0.7, "cancel": "all", "call_id": "x", "medimage_call": "x"}
    status, _, body = post(triton, "cxrreportgen", "generate", **study, **strange)
    assert (status, {name: json.loads(body).get(name) for name in expected}) == (200, expected)


def test_many_reports_at_once_are_decoded_together_and_each_is_as_alone(triton):
    studies = [{"frontal_image": png(seed), "max_new_tokens": 40 + 5 * seed} for seed in range(12)]
    alone = [report(triton, **study) for study in studies]
    assert len({answer["output"] for answer in alone}) > 6  # or a mix-up would pass
    with ThreadPoolExecutor(len(studies)) as threads:
        whole = [threads.submit(report, triton, **study) for study in studies]
        streams = [Stream(triton, **study) for study in studies[:4]]
        assert [answer.result(WAIT_S) for answer in whole] == alone
        for answer, expected in zip(streams, alone, strict=False):
            assert answer.rest()[-1].items() >= expected.items()
            answer.close()


def test_unary_requests_hold_slots_at_the_same_time(triton):
    wait_until_idle(triton)
    calls = [unary_call(triton) for _ in range(4)]
    wait_until(lambda: metrics(triton)["medimage_report_live_slots"] == 4)
    for call in calls:
        call.close(cancel=True)
    wait_until_idle(triton)


BAD_REQUESTS = {
    "frontal": ({"frontal_image": b"no image"}, "frontal_image: neither an image file nor valid base64"),
    "lateral": ({"lateral_image": png(0)[:200]}, "lateral_image: "),
    "prior": ({"lateral_image": png(1), "prior_image": b"\0"}, "prior_image: "),
    "no frontal": ({"frontal_image": b""}, "frontal_image is missing"),
    "mode": ({"mode": b"short"}, "mode must be one of grounded, findings, phrase"),
    "phrase": ({"mode": b"phrase"}, "phrase must be given in mode phrase"),
    "text": ({"indication": b"\xff"}, "indication is not valid UTF-8"),
    "too long": ({"indication": b"word " * 6000}, "the prompt has "),
    "too many new": ({"max_new_tokens": 6144}, "at most 0 are allowed with 6144 new ones"),
    "no new": ({"max_new_tokens": 0}, "max_new_tokens must be positive"),
}


@pytest.mark.parametrize(("values", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_bad_request_is_refused_with_its_reason_and_no_neighbour(triton, values, message):
    values = {"frontal_image": png(0), **values}
    neighbour = Stream(triton, frontal_image=png(1), max_new_tokens=300)
    neighbour.take()
    with pytest.raises(InferenceServerException, match=re.escape(message)) as caught:
        report(triton, **values)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(InferenceServerException, match=re.escape(message)), closing(Stream(triton, **values)) as bad:
        bad.rest()
    assert neighbour.rest()[-1]["status"] == "truncated"
    neighbour.close()


def test_bad_image_over_http_is_status_400(triton):
    with pytest.raises(InferenceServerException, match="frontal_image: ") as caught:
        report(triton, transport=http, frontal_image=b"no image")
    assert caught.value.status() == "400"
    status, _, body = post(triton, "cxrreportgen", "generate", frontal_image="no image")
    assert (status, "frontal_image: " in body) == (400, True)


def live_stream(triton):
    answer = Stream(triton, frontal_image=png(0), max_new_tokens=ENDLESS)
    answer.take()
    return answer


def unary_call(triton):
    call = triton.grpc.async_infer(
        "cxrreportgen", inputs(frontal_image=png(0), max_new_tokens=ENDLESS), lambda result, error: None
    )
    return SimpleNamespace(close=lambda cancel: call.cancel())


def event_connection(triton):
    """A connection to generate_stream that has read its first events."""
    connection = HTTPConnection("127.0.0.1", triton.server.http_port, timeout=WAIT_S)
    body = {"frontal_image": base64.b64encode(png(0)).decode(), "max_new_tokens": ENDLESS}
    connection.request("POST", "/v2/models/cxrreportgen_stream/generate_stream", body=json.dumps(body))
    response = connection.getresponse()
    assert response.read(10)

    def close(cancel):
        response.close()
        connection.close()

    return SimpleNamespace(close=close)


@pytest.mark.parametrize("start", [live_stream, unary_call, event_connection], ids=["stream", "unary", "events"])
def test_caller_who_leaves_frees_the_slot_at_once(triton, start):
    wait_until_idle(triton)
    before = metrics(triton)["medimage_report_tokens_total"]
    call = start(triton)
    wait_until(lambda: metrics(triton)["medimage_report_live_slots"] == 1)
    call.close(cancel=True)
    wait_until_idle(triton)
    assert metrics(triton)["medimage_report_tokens_total"] - before < ENDLESS
    assert report(triton, frontal_image=png(0), max_new_tokens=5)["status"] == "truncated"


def test_caller_who_leaves_frees_the_slot_of_the_instance_that_has_it(exported, tmp_path):
    """An operator may have several, on several GPUs. Each call of either is left, and the other one's goes on."""
    repository = shutil.copytree(exported, tmp_path / "models")
    config = repository / "cxrreportgen_stream/config.pbtxt"
    config.write_text(config.read_text().replace("count: 1 kind: KIND_MODEL", "count: 2 kind: KIND_CPU"))
    with served(repository, tmp_path / "log", slots=1) as two:
        calls = []
        for n in (1, 2):
            calls.append(unary_call(two))
            wait_until(lambda n=n: sum(live_slots(two).values()) == n)
        for call in calls:
            before = live_slots(two)
            call.close(cancel=True)
            wait_until(lambda before=before: sum(live_slots(two).values()) == sum(before.values()) - 1)
        assert live_slots(two).keys() == {"cxrreportgen_stream_0_0", "cxrreportgen_stream_0_1"}


def live_slots(triton):
    """By instance of cxrreportgen_stream."""
    with urllib.request.urlopen(f"http://127.0.0.1:{triton.server.metrics_port}/metrics", timeout=WAIT_S) as page:
        found = re.findall(r'^medimage_report_live_slots{instance="(\w+)"} (\S+)', page.read().decode(), re.MULTILINE)
    return {instance: float(value) for instance, value in found}


def test_metrics_are_described_and_count(triton):
    with urllib.request.urlopen(f"http://127.0.0.1:{triton.server.metrics_port}/metrics", timeout=WAIT_S) as page:
        text = page.read().decode()
    for name, kind in METRICS.items():
        assert re.search(rf"^# HELP {name} \w.+$", text, re.MULTILINE)
        assert f"# TYPE {name} {kind}\n" in text
    wait_until_idle(triton)
    before = metrics(triton)
    report(triton, frontal_image=png(0), max_new_tokens=50)
    wait_until(lambda: metrics(triton)["medimage_report_tokens_total"] >= before["medimage_report_tokens_total"] + 50)
    after = metrics(triton)
    assert after["medimage_report_prefill_seconds_total"] > before["medimage_report_prefill_seconds_total"]
    assert after["medimage_report_decode_seconds_total"] > before["medimage_report_decode_seconds_total"]


@pytest.fixture(scope="module")
def tight(exported, tmp_path_factory):
    """One slot and a queue of two."""
    repository = shutil.copytree(exported, tmp_path_factory.mktemp("tight") / "models")
    with served(repository, tmp_path_factory.mktemp("log") / "log", slots=1, max_queue=2) as triton:
        yield triton


@pytest.fixture(scope="module")
def hurried(exported, tmp_path_factory):
    """One slot, and a time limit of a second, in which no machine gives ENDLESS tokens."""
    repository = shutil.copytree(exported, tmp_path_factory.mktemp("hurried") / "models")
    with served(repository, tmp_path_factory.mktemp("log") / "log", slots=1, time_limit_s=1) as triton:
        yield triton


def test_full_queue_refuses_at_once_and_serves_on(tight):
    live = live_stream(tight)
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(report, tight, frontal_image=png(seed), max_new_tokens=5) for seed in range(2)]
        wait_until(lambda: metrics(tight)["medimage_report_queue_length"] == 2)
        with pytest.raises(InferenceServerException, match="2 reports are waiting already") as caught:
            report(tight, frontal_image=png(0))
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        with pytest.raises(InferenceServerException, match="2 reports are waiting already") as caught:
            report(tight, transport=http, frontal_image=png(0))
        assert caught.value.status() == "503"
        with pytest.raises(InferenceServerException, match="2 reports are waiting already"):
            stream(tight, frontal_image=png(0))
        live.close(cancel=True)
        assert [answer.result(WAIT_S)["status"] for answer in waiting] == ["truncated"] * 2


def test_report_that_takes_too_long_is_ended_and_its_slot_is_free(hurried):
    wait_until_idle(hurried)
    with ThreadPoolExecutor(1) as threads:
        live = Stream(hurried, frontal_image=png(0), max_new_tokens=ENDLESS)
        waiting = threads.submit(report, hurried, frontal_image=png(1), max_new_tokens=ENDLESS)
        with pytest.raises(InferenceServerException, match="the report took longer than the limit of 1 s"):
            live.rest()
        with pytest.raises(InferenceServerException, match="the report took longer than the limit of 1 s") as caught:
            waiting.result(WAIT_S)
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        live.close()
    assert report(hurried, frontal_image=png(0), max_new_tokens=5)["status"] == "truncated"


def test_server_ends_in_time_after_all_that(hurried):
    wait_until_idle(hurried)
    hurried.http.close()  # Triton waits 30 s for connections that its callers keep open
    hurried.server.process.terminate()
    assert hurried.server.process.wait(END_S) == 0
