"""Requests for reports to reports: what stands between a Triton adapter and the scheduler.

A request becomes a prompt at once, so that what is wrong with it is said at once; its images are encoded shortly before
a slot is free for it; its tokens become text as they are decoded; and the whole text is read for its findings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from medimage_client.reports.grammar import OBJ_END, OBJ_START, parse_tolerant, to_output
from medimage_client.schema.reports import (
    IMAGE_INPUTS,
    PROGRESS,
    TEXT_INPUTS,
    ReportProgress,
    ReportTiming,
    Status,
)
from medimage_server.errors import InferenceFailed, InvalidInput
from medimage_server.exported import exported_file
from medimage_server.image_requests import positive
from medimage_server.reports.constraint import Constraint, Grammar
from medimage_server.reports.decoder import Decoder
from medimage_server.reports.embedding import Embeds, TokenEmbedding
from medimage_server.reports.prompt import Prompt, PromptTokenizer, Study
from medimage_server.reports.scheduler import Ending, Job, Scheduler
from medimage_server.reports.settings import GenerationSettings
from medimage_server.reports.text_stream import TextStream

EncodeImages = Callable[[Sequence[bytes]], NDArray[np.float32]]  # n encoded images -> (n, tokens per image, H)


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """One study as a caller sent it."""

    study: Study
    images: Mapping[str, bytes] = field(repr=False)  # by input name, in the order of the prompt; encoded
    max_new_tokens: int | None = None  # None for the default of the mode
    constrained: bool = False
    progress: bool = False  # whether its caller wants to hear how far it is

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]], parameters: Mapping[str, object]) -> "StudyRequest":
        """From the input tensors by name, each of one element, and the parameters of a request.

        An image of no bytes counts as not given, like a text.

        Raises:
            InvalidInput: there is no frontal image, a value is of another type or not allowed; names the input.
        """
        images = {name: _bytes(tensors, name) for name in IMAGE_INPUTS}
        if not images["frontal_image"]:
            raise InvalidInput("frontal_image is missing")
        given: dict[str, Any] = {name: text for name in TEXT_INPUTS if (text := _text(tensors, name))}
        study = Study(has_lateral=bool(images["lateral_image"]), has_prior=bool(images["prior_image"]), **given)
        return cls(
            study=study,
            images={name: image for name, image in images.items() if image},
            max_new_tokens=int(_only(tensors, "max_new_tokens")) if "max_new_tokens" in tensors else None,
            constrained=_flag(parameters, "constrained"),
            progress=_flag(parameters, PROGRESS),
        )


@dataclass(frozen=True, kw_only=True)
class FinishedReport:
    """The end of an answer."""

    output: str = field(repr=False)  # JSON text of the findings
    status: Status
    timing: ReportTiming | None = field(default=None, compare=False)


class Listener(Protocol):
    """Whoever waits for one answer; called in order, by one thread at a time, but for `is_cancelled`."""

    def progress(self, progress: ReportProgress) -> None:
        """How far it is, before its first text; only if the request asks for it."""

    def text(self, delta: str) -> None:
        """More of the answer."""

    def end(self, delta: str, report: FinishedReport) -> None:
        """The last of it. Nothing is called behind this."""

    def fail(self, error: Exception) -> None:
        """There will be no report. Nothing is called behind this."""

    def is_cancelled(self) -> bool:
        """Whether nobody waits any more; called from another thread, at any time."""
        ...


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings:
    """What the operator chose in config.pbtxt."""

    slots: int
    gpu_slots: int
    max_length: int  # 0 for what the model allows
    max_queue: int
    time_limit_s: int
    prefill_chunk: int
    gpu_prefill_chunk: int
    intra_op_thread_count: int  # 0 for one for each core

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> "GeneratorSettings":
        """From the parameters of config.pbtxt.

        Raises:
            ValueError: a parameter is missing or no whole number.
        """
        return cls(
            slots=positive(parameters, "slots"),
            gpu_slots=positive(parameters, "gpu_slots"),
            max_length=_whole(parameters, "max_length"),
            max_queue=positive(parameters, "max_queue"),
            time_limit_s=positive(parameters, "time_limit_s"),
            prefill_chunk=positive(parameters, "prefill_chunk"),
            gpu_prefill_chunk=positive(parameters, "gpu_prefill_chunk"),
            intra_op_thread_count=_whole(parameters, "intra_op_thread_count"),
        )


class ReportGenerator:
    """An exported report model, ready to answer.

    Args:
        folder: what `medimage export cxrreportgen` wrote for the model `cxrreportgen_stream`.
        encode_images: called from several threads, may take its time. Its InvalidInput has the row of a bad image.
        kind, device_id: of the Triton instance, see Decoder.
        cuda_options: of the decoder's CUDA provider.

    Raises:
        FileNotFoundError: the model was not exported yet.
        ValueError: an exported file or a parameter is not as it should be, or the KV cache does not fit in memory.
    """

    def __init__(
        self,
        folder: Path,
        settings: GeneratorSettings,
        encode_images: EncodeImages,
        *,
        kind: str = "CPU",
        device_id: int = 0,
        cuda_options: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._encode_images = encode_images
        self._model = shorten(GenerationSettings.read(folder / "generation.json"), settings.max_length)
        self._tokenizer = Tokenizer.from_file(str(exported_file(folder / "tokenizer.json", "cxrreportgen")))
        self._tokenize = PromptTokenizer(self._tokenizer, self._model)
        decoder = Decoder(
            folder / "decoder.onnx",
            slots=settings.slots,
            gpu_slots=settings.gpu_slots,
            max_length=self._model.max_length,
            long_rope=self._model.long_rope is not None,
            kind=kind,
            device_id=device_id,
            cuda_options=cuda_options,
            threads=settings.intra_op_thread_count,
        )
        self._embed = TokenEmbedding(folder / "embed_tokens.npy", decoder.dtype)
        if self._embed.hidden_size != decoder.hidden_size:
            raise ValueError(
                f"{folder}: embed_tokens.npy has rows of {self._embed.hidden_size} numbers, decoder.onnx takes "
                f"{decoder.hidden_size}; export the model again"
            )
        self._grammar = Grammar(self._tokenizer, self._model, decoder.vocabulary_size)
        # What the decoder cannot do, it cannot do at the first request either: then the model had better not load.
        decoder.prefill(0, self._embed([0]), past=0, position_ids=np.zeros(1, np.int64))
        self.scheduler = Scheduler(
            decoder,
            self._embed,
            max_queue=settings.max_queue,
            time_limit_s=settings.time_limit_s,
            prefill_chunk=settings.gpu_prefill_chunk if decoder.is_on_gpu else settings.prefill_chunk,
            long_rope=self._model.long_rope,
        )

    def submit(self, request: StudyRequest, listener: Listener) -> None:
        """Take a request, and return at once; the listener hears the rest.

        Raises:
            InvalidInput: the texts cannot be used, or the prompt is too long.
            Unavailable: too many requests wait already.
        """
        prompt = self._tokenize(request.study, request.max_new_tokens)
        answer = _AnswerText(TextStream(self._tokenizer), listener)
        constraint = None
        if request.constrained:
            constraint = Constraint(self._grammar, grounded=request.study.mode != "findings")
        self.scheduler.submit(
            Job(
                prepare=lambda: self._embed_prompt(prompt, request.images),
                prompt_length=prompt.length,
                max_new_tokens=prompt.max_new_tokens,
                eos_token_ids=frozenset(self._model.eos_token_ids),
                on_token=answer.add,
                on_end=answer.end,
                is_cancelled=listener.is_cancelled,
                constraint=constraint,
                on_progress=listener.progress if request.progress else None,
                on_timing=answer.time,
            )
        )

    def close(self) -> None:
        """End all requests with an error."""
        self.scheduler.close()

    def _embed_prompt(self, prompt: Prompt, images: Mapping[str, bytes]) -> Embeds:
        try:
            image_tokens = self._encode_images(list(images.values()))
        except InvalidInput as error:
            if error.row is None:
                raise
            raise InvalidInput(error.reason, column=list(images)[error.row]) from None
        expected = (len(images), self._model.tokens_per_image, self._embed.hidden_size)
        if image_tokens.shape != expected:
            raise InferenceFailed(
                f"internal error: the image encoder gave {list(image_tokens.shape)}, not {list(expected)}"
            )
        return self._embed.with_images(prompt.token_ids, prompt.image_positions, image_tokens)


class _AnswerText:
    """Turns the tokens of one job into text for its listener."""

    def __init__(self, stream: TextStream, listener: Listener) -> None:
        self._stream, self._listener = stream, listener
        self._timing: ReportTiming | None = None

    def time(self, timing: ReportTiming) -> None:
        self._timing = timing

    def add(self, token: int) -> None:
        if delta := self._stream.feed(token):
            self._listener.text(delta)

    def end(self, ending: Ending) -> None:
        if isinstance(ending, Exception):
            self._listener.fail(ending)
            return
        delta = self._stream.finish()
        report = read_report(self._stream.text, is_cut=ending == "length")
        self._listener.end(delta, replace(report, timing=self._timing))


def shorten(model: GenerationSettings, max_length: int) -> GenerationSettings:
    """The settings of a model that is served with fewer tokens than it allows; 0 for all of them.

    Raises:
        ValueError: it does not allow that many.
    """
    if max_length > model.max_length:
        raise ValueError(f"parameter max_length is {max_length}; the model allows at most {model.max_length}")
    return replace(model, max_length=max_length or model.max_length)


def read_report(text: str, *, is_cut: bool) -> FinishedReport:
    """The findings of an answer; of one that was cut, the complete ones, and what comes behind them is no fault."""
    parsed = parse_tolerant(text)
    is_malformed = parse_tolerant(_before_the_cut(text)).malformed if is_cut else parsed.malformed
    status: Status = "malformed" if is_malformed else "truncated" if is_cut else "complete"
    return FinishedReport(output=to_output(parsed.findings), status=status)


def _before_the_cut(text: str) -> str:
    """To the end of the last complete finding; where there is none, what stands before the first."""
    complete, end, _ = text.rpartition(OBJ_END)
    return complete + end or text.partition(OBJ_START)[0]


def _only(tensors: Mapping[str, NDArray[Any]], name: str) -> Any:
    values = tensors[name].reshape(-1)
    if len(values) != 1:
        raise InvalidInput(f"{name} has {len(values)} values; expected one")
    return values[0]


def _bytes(tensors: Mapping[str, NDArray[Any]], name: str) -> bytes:
    return bytes(_only(tensors, name)) if name in tensors else b""


def _text(tensors: Mapping[str, NDArray[Any]], name: str) -> str:
    try:
        return _bytes(tensors, name).decode("utf-8")
    except UnicodeDecodeError as error:
        # from None: the original error holds the whole text
        raise InvalidInput(f"{name} is not valid UTF-8 (byte offset {error.start})") from None


def _flag(parameters: Mapping[str, object], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InvalidInput(f"parameter {name} must be true or false")
    return value


def _whole(parameters: Mapping[str, str], name: str) -> int:
    value = parameters.get(name, "")
    if not value.isdecimal():
        raise ValueError(f"parameter {name} is {value!r}; expected a whole number, or 0 for the default")
    return int(value)
