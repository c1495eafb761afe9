"""Requests for reports to text and findings, on a small random model, against PyTorch."""

import queue

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from medimage_server.errors import InferenceFailed, InvalidInput, Unavailable
from medimage_server.reports.decoder import Decoder
from medimage_server.reports.embedding import TokenEmbedding
from medimage_server.reports.generator import GeneratorSettings, ReportGenerator, StudyRequest, read_report
from medimage_server.reports.prompt import PromptTokenizer
from medimage_server.reports.scheduler import Job, Scheduler
from medimage_server.reports.settings import GenerationSettings
from medimage_server.reports.text_stream import TextStream
from tests.server.reports.samples import byte_tokenizer
from tests.server.reports.small_model import CONFIGS, write_small_model
from tests.strict_reports import parse_strict

WAIT_S = 30.0  # for what takes a fraction of a second
SETTINGS = GeneratorSettings(
    slots=3,
    gpu_slots=5,
    max_length=0,
    max_queue=20,
    time_limit_s=30,
    prefill_chunk=64,
    gpu_prefill_chunk=96,
    intra_op_thread_count=1,
)
IMAGE_TOKENS = 4


def encode_images(images):
    """Image tokens that stand for the bytes."""
    hidden = CONFIGS["linear"].decoder.hidden_size
    return np.stack(
        [np.random.default_rng(list(image)).normal(size=(IMAGE_TOKENS, hidden)).astype(np.float32) for image in images]
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_small_model(tmp_path_factory.mktemp("linear"), "linear")


@pytest.fixture(scope="module")
def generator(model):
    generator = ReportGenerator(model.folder, SETTINGS, encode_images)
    yield generator
    generator.close()


class Listener:
    """Collects an answer."""

    def __init__(self):
        self.deltas, self.progresses, self.report = [], [], None
        self._ended = queue.Queue()

    def progress(self, progress):
        self.progresses.append(progress)

    def text(self, delta):
        self.deltas.append(delta)

    def end(self, delta, report):
        self.deltas.append(delta)
        self._ended.put(report)

    def fail(self, error):
        self._ended.put(error)

    def is_cancelled(self):
        return False

    def wait(self):
        """The report; raises what failed."""
        ending = self._ended.get(timeout=WAIT_S)
        if isinstance(ending, Exception):
            raise ending
        return ending


def tensors(max_new_tokens=None, **values):
    arrays = {name: np.array([value], dtype=object) for name, value in values.items()}
    if max_new_tokens is not None:
        arrays["max_new_tokens"] = np.array([max_new_tokens], np.int32)
    return arrays


def request(max_new_tokens=20, *, constrained=False, **values):
    return StudyRequest.from_tensors(
        tensors(max_new_tokens, **{"frontal_image": b"frontal", **values}), {"constrained": constrained}
    )


def submit(generator, *args, **values):
    listener = Listener()
    generator.submit(request(*args, **values), listener)
    return listener


def pytorch_text(model, asked):
    """The answer by PyTorch alone: prompt put together row by row, greedy without a cache, decoded as a whole."""
    settings = GenerationSettings.read(model.folder / "generation.json")
    tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
    prompt = PromptTokenizer(tokenizer, settings)(asked.study, asked.max_new_tokens)
    images = iter(encode_images(list(asked.images.values())))
    image_id = tokenizer.token_to_id("<image>")
    parts = [next(images) if token == image_id else model.table[[token]] for token in prompt.token_ids]
    tokens = model.greedy(np.concatenate(parts), asked.max_new_tokens)
    assert settings.eos_token_ids[0] not in tokens
    return tokenizer.decode(tokens, skip_special_tokens=True).lstrip()


STUDIES = {
    "frontal": {},
    "three images": {"lateral_image": b"lateral", "prior_image": b"prior", "prior_report": b"Normal."},
    "texts": {"indication": "Fièvre".encode(), "technique": b"AP", "comparison": b"None", "mode": b"findings"},
    "phrase": {"mode": b"phrase", "phrase": b"a nodule"},
}


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_answer_is_pytorchs(model, generator, study):
    listener = submit(generator, **study)
    assert listener.wait().status == "truncated"
    assert "".join(listener.deltas) == pytorch_text(model, request(**study))


def test_many_at_once_get_what_each_gets_alone(generator):
    studies = [{"frontal_image": bytes([seed]), "indication": b"x" * (seed * 7)} for seed in range(10)]
    alone = []
    for study in studies:
        listener = submit(generator, 30, **study)
        alone.append((listener.wait(), "".join(listener.deltas)))
    together = [submit(generator, 30, **study) for study in studies]
    assert [(listener.wait(), "".join(listener.deltas)) for listener in together] == alone
    assert len({text for _, text in alone}) > len(studies) / 2  # or a mix-up would pass


def test_answer_that_crosses_the_long_rope_limit_is_pytorchs(tmp_path):
    """The limit is inside the answer: transformers drops its cache there, which here is a second prefill."""
    model = write_small_model(tmp_path, "longrope")
    settings = GenerationSettings.read(model.folder / "generation.json")
    table, rng = TokenEmbedding(model.folder / "embed_tokens.npy", np.float32), np.random.default_rng(0)
    decoder = Decoder(model.folder / "decoder.onnx", slots=2, max_length=settings.max_length, threads=1)
    scheduler = Scheduler(decoder, table, max_queue=9, time_limit_s=30, prefill_chunk=16, long_rope=settings.long_rope)
    for length in (20, 32, 33):  # it crosses after twelve tokens, with the first, and before
        prompt, tokens, ended = model.table[rng.integers(3, 200, length)], [], queue.Queue()
        scheduler.submit(
            Job(
                prepare=lambda prompt=prompt: prompt,
                prompt_length=length,
                max_new_tokens=20,
                eos_token_ids=frozenset(),
                on_token=tokens.append,
                on_end=ended.put,
                is_cancelled=lambda: False,
            )
        )
        assert ended.get(timeout=WAIT_S) == "length"
        assert tokens == model.greedy(prompt, 20)
    scheduler.close()


def test_constrained_answer_is_of_the_grammar(model, monkeypatch):
    """By scores at random, which go everywhere that they may; the small model's own never come to an end."""
    rng = np.random.default_rng(0)

    def scores(decoder, *rows):
        return rng.normal(size=(*rows, decoder.vocabulary_size)).astype(np.float32)

    monkeypatch.setattr(Decoder, "prefill", lambda decoder, *_, **__: scores(decoder))
    monkeypatch.setattr(Decoder, "step", lambda decoder, embeds, **_: scores(decoder, len(embeds)))
    generator, findings = ReportGenerator(model.folder, SETTINGS, encode_images), {"complete": 0, "truncated": 0}
    for _ in range(20):
        listener = submit(generator, 200, constrained=True, mode=b"phrase", phrase=b"x")
        status, text = listener.wait().status, "".join(listener.deltas)
        complete, end, unfinished = text.rpartition("</obj>")
        parse_strict(text if status == "complete" else complete + end)
        assert status == "complete" or unfinished.startswith("<obj>") or not unfinished
        findings[status] += text.count("</obj>")
    assert min(findings.values()) > 0
    generator.close()


def test_image_that_cannot_be_used_is_named_by_its_input(model):
    def refuse(images):
        raise InvalidInput("not an image", row=1)

    generator = ReportGenerator(model.folder, SETTINGS, refuse)
    with pytest.raises(InvalidInput, match=r"^lateral_image: not an image$"):
        submit(generator, lateral_image=b"x", prior_image=b"y").wait()
    with pytest.raises(InvalidInput, match=r"^prior_image: not an image$"):
        submit(generator, prior_image=b"y").wait()
    generator.close()


def test_refusal_of_no_one_image_is_told_as_it_is(model):
    def refuse(images):
        raise InvalidInput("too many images")

    generator = ReportGenerator(model.folder, SETTINGS, refuse)
    with pytest.raises(InvalidInput, match=r"^too many images$"):
        submit(generator, lateral_image=b"x").wait()
    generator.close()


def test_encoder_of_another_export_is_an_error_that_says_so(model):
    generator = ReportGenerator(model.folder, SETTINGS, lambda images: np.zeros((len(images), 7, 64), np.float32))
    with pytest.raises(
        InferenceFailed, match=r"^internal error: the image encoder gave \[1, 7, 64\], not \[1, 4, 64\]$"
    ):
        submit(generator).wait()
    generator.close()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"frontal_image": b""}, r"^frontal_image is missing$"),
        ({"mode": b"short"}, r"^mode must be one of grounded, findings, phrase$"),
        ({"indication": "Röntgen".encode("latin-1")}, r"^indication is not valid UTF-8 \(byte offset 1\)$"),
        ({"max_new_tokens": 0}, r"^max_new_tokens must be positive$"),
        ({"max_new_tokens": 6000}, r"the prompt has \d+ tokens; at most 144 are allowed with 6000 new ones"),
    ],
    ids=["no image", "mode", "text", "no tokens", "too long"],
)
def test_bad_request_is_refused_at_once(generator, values, message):
    with pytest.raises(InvalidInput, match=message):
        generator.submit(request(**values), Listener())


def test_request_without_a_frontal_image_is_refused():
    with pytest.raises(InvalidInput, match=r"^frontal_image is missing$"):
        StudyRequest.from_tensors({}, {})


def test_input_of_several_values_is_refused():
    with pytest.raises(InvalidInput, match=r"^frontal_image has 2 values; expected one$"):
        StudyRequest.from_tensors({"frontal_image": np.array([b"a", b"b"], dtype=object)}, {})


def test_parameter_of_another_type_is_refused():
    for name in ("constrained", "progress"):
        with pytest.raises(InvalidInput, match=rf"^parameter {name} must be true or false$"):
            StudyRequest.from_tensors(tensors(frontal_image=b"x"), {name: "yes"})


def test_caller_hears_of_progress_only_on_demand_and_of_times_always(generator):
    quiet, listener = submit(generator), Listener()
    generator.submit(StudyRequest.from_tensors(tensors(20, frontal_image=b"frontal"), {"progress": True}), listener)
    report = listener.wait()
    assert quiet.wait() == report
    assert quiet.progresses == []
    assert [progress.state for progress in listener.progresses][:2] == ["waiting", "reading"]
    assert {progress.tokens for progress in listener.progresses} == {listener.progresses[-1].tokens_read}
    assert min(report.timing.queue_s, report.timing.prompt_s, report.timing.decode_s) > 0


def test_empty_inputs_count_as_not_given():
    asked = StudyRequest.from_tensors(
        tensors(frontal_image=b"x", lateral_image=b"", indication=b"", mode=b"", phrase=b""), {}
    )
    assert list(asked.images) == ["frontal_image"]
    assert (asked.study.has_lateral, asked.study.mode, asked.study.indication) == (False, "grounded", None)


def test_request_prints_nothing_of_the_patient():
    assert "Jane" not in repr(request(indication=b"Jane Doe", frontal_image=b"Jane"))


def test_closed_generator_refuses(model):
    generator = ReportGenerator(model.folder, SETTINGS, encode_images)
    generator.close()
    with pytest.raises(Unavailable, match="shutting down"):
        submit(generator)


def test_length_beyond_the_models_is_refused_at_load(model):
    settings = GeneratorSettings.read(
        {
            **{"slots": "1", "gpu_slots": "1", "max_length": "7000", "max_queue": "1", "time_limit_s": "1"},
            **{"prefill_chunk": "1", "gpu_prefill_chunk": "1", "intra_op_thread_count": "1"},
        }
    )
    with pytest.raises(ValueError, match=r"^parameter max_length is 7000; the model allows at most 6144$"):
        ReportGenerator(model.folder, settings, encode_images)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, r"parameter slots is ''; expected a positive integer"),
        ({"slots": "0"}, r"parameter slots is '0'; expected a positive integer"),
        ({"slots": "2"}, r"parameter gpu_slots is ''; expected a positive integer"),
        (
            {"slots": "2", "gpu_slots": "2", "max_length": "all"},
            r"parameter max_length is 'all'; expected a whole number",
        ),
    ],
    ids=["missing", "zero", "missing of a GPU", "text"],
)
def test_bad_model_parameter_is_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        GeneratorSettings.read(parameters)


@pytest.mark.parametrize("file", ["generation.json", "decoder.onnx", "embed_tokens.npy", "tokenizer.json"])
def test_model_that_was_not_exported_names_the_file(model, tmp_path, file):
    for path in model.folder.iterdir():
        if path.name != file:
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(FileNotFoundError, match=f"{file}: not found; run `medimage export cxrreportgen` to write it"):
        ReportGenerator(tmp_path, SETTINGS, encode_images)


FINDING = "<obj>Effusion.<box><x1><y2><x3><y4></box></obj>"


@pytest.mark.parametrize(
    ("text", "is_cut", "output", "status"),
    [
        ("", False, "[]", "complete"),
        ("Clear lungs.", False, '[["Clear lungs.", null]]', "complete"),
        (FINDING, False, '[["Effusion.", [[0.015, 0.025, 0.035, 0.045]]]]', "complete"),
        ("<obj>Größe</obj>", False, '[["Größe", null]]', "complete"),
        (FINDING + "<obj>Nod", True, '[["Effusion.", [[0.015, 0.025, 0.035, 0.045]]]]', "truncated"),
        (FINDING + "<obj>Nod", False, '[["Effusion.", [[0.015, 0.025, 0.035, 0.045]]]]', "malformed"),
        ("Clear lun", True, '[["Clear lun", null]]', "truncated"),
        ("<obj>Nod", True, "[]", "truncated"),
        ("<obj>A<box><x1></box></obj><obj>Nod", True, '[["A", null]]', "malformed"),
        ("Clear. " + FINDING + "<obj>Nod", True, '[["Effusion.", [[0.015, 0.025, 0.035, 0.045]]]]', "malformed"),
        ("Clear.</box>", True, "[]", "malformed"),
    ],
    ids=[
        *("empty", "plain", "grounded", "umlauts", "cut", "malformed", "cut plain", "cut at once"),
        *("bad box, cut", "text before, cut", "stray marker, cut"),
    ],
)
def test_text_becomes_findings_and_status(text, is_cut, output, status):
    report = read_report(text, is_cut=is_cut)
    assert (report.output, report.status) == (output, status)


def llama_like_tokenizer():
    """With a token for each byte, and a decoder as MAIRA-2's tokenizer.json has it."""
    symbols = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁The", "heart", "é", "�", "."]
    tokenizer = Tokenizer(models.BPE({s: i for i, s in enumerate(symbols)}, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<obj>", "</obj>", "<x1>")])
    return tokenizer


TOKENIZERS = {"llama": llama_like_tokenizer(), "bytes": byte_tokenizer()}


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_deltas_add_up_to_the_decoded_text(tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(3000):
        tokens = rng.integers(0, tokenizer.get_vocab_size(), rng.integers(1, 15)).tolist()
        stream = TextStream(tokenizer)
        deltas = [stream.feed(token) for token in tokens] + [stream.finish()]
        assert "".join(deltas) == tokenizer.decode(tokens, skip_special_tokens=True).lstrip() == stream.text


def test_character_in_pieces_is_held_back_until_it_is_whole():
    tokenizer = TOKENIZERS["llama"]
    stream = TextStream(tokenizer)
    tokens = [tokenizer.token_to_id(token) for token in ("▁The", "▁", "<0xC3>", "<0xA9>", "heart", "<0xC3>")]
    assert [stream.feed(token) for token in tokens] == ["The", " ", "", "", "éheart", ""]
    assert stream.finish() == "�"
