"""A study with what is asked of its report, and the JSON of Azure's CXRReportGen endpoint.

    {"input_data": {"columns": ["frontal_image", "lateral_image", "indication", "technique", "comparison"],
                    "index": [0], "data": [["<base64>", "<base64>", "Pneumonia", "One view chest", "None"]]}}

On top of what `table.py` says:

- every row has a `frontal_image`; the other columns are optional;
- the text "None" is a text: Microsoft's toolkit sends it for a missing comparison, and the model was called with it;
- there are no params, so any is refused: it would have no effect.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from medimage_client.errors import InvalidInput, ResponseError
from medimage_client.images.encoding import ImageInput
from medimage_client.schema.json_text import decode_json
from medimage_client.schema.table import check_text, read_image, read_table, read_text, short

Mode = Literal["grounded", "findings", "phrase"]
Status = Literal["complete", "truncated", "malformed"]

# Fields of ReportRequest, inputs of the models and columns of Azure's endpoint have the same names.
IMAGE_INPUTS = ("frontal_image", "lateral_image", "prior_image")
SECTIONS = ("indication", "technique", "comparison", "prior_report")
TEXT_INPUTS = (*SECTIONS, "mode", "phrase")
PARAMETERS = ("constrained",)  # of a request; the other inputs are tensors
PROGRESS = "progress"  # a parameter by which a caller asks a stream for it, and the output that tells it
MAX_INT32 = 2**31 - 1
COLUMNS = (*IMAGE_INPUTS, *SECTIONS)
MAX_ROWS = 10  # of a request; what the documentation of Azure's endpoint allows


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """What a report can be asked with: images, sections of the request form, and options.

    Clients, command line, endpoint and models take it from here. An empty section, or none, is not sent.

    Raises:
        InvalidInput: an option or a text is wrong, which it names. Images are looked at when they are encoded.
    """

    frontal_image: ImageInput = field(repr=False)
    lateral_image: ImageInput | None = field(default=None, repr=False)
    prior_image: ImageInput | None = field(default=None, repr=False)
    indication: str | None = field(default=None, repr=False)
    technique: str | None = field(default=None, repr=False)
    comparison: str | None = field(default=None, repr=False)
    prior_report: str | None = field(default=None, repr=False)
    mode: Mode = "grounded"
    phrase: str | None = field(default=None, repr=False)
    max_new_tokens: int | None = None
    constrained: bool = False

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise InvalidInput(f"mode is {short(self.mode)}; expected one of {list(get_args(Mode))}")
        if self.frontal_image is None:
            raise InvalidInput("frontal_image is None; expected an image")
        for name in (*SECTIONS, "phrase"):
            text = getattr(self, name)
            if text is not None:
                check_text(text, column=name)
        if self.mode == "phrase" and not (self.phrase and self.phrase.strip()):
            raise InvalidInput("phrase is empty; mode 'phrase' needs the finding to locate")
        if self.mode != "phrase" and self.phrase:
            raise InvalidInput(f"phrase is given and mode is {self.mode!r}; expected mode 'phrase', or no phrase")
        n = self.max_new_tokens
        if n is not None and (not isinstance(n, int) or isinstance(n, bool) or not 0 < n <= MAX_INT32):
            raise InvalidInput(f"max_new_tokens is {short(n)}; expected a whole number above 0, or None")


OPTIONS = tuple(option.name for option in fields(ReportRequest))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """What wrote a report."""

    checkpoint: str  # the name of its folder
    checkpoint_sha256: str | None  # of its weights, in hexadecimal; None of random ones
    precision: str  # it was exported in
    version: str  # of the medimage-triton that served it

    def to_json(self) -> str:
        """The text of the output `model`."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportTiming:
    """Where the time of a report went on the server, in seconds; together, from its arrival to its end."""

    queue_s: float  # before its first token, while nothing was done for it
    prompt_s: float  # its images were encoded and its prompt was read, beside the tokens of other reports
    decode_s: float  # from its first token to its last

    def to_json(self) -> str:
        """The text of the output `timing`."""
        return json.dumps({name: round(seconds, 4) for name, seconds in asdict(self).items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportProgress:
    """How far a report is before its first word."""

    state: Literal["waiting", "reading"]  # for a slot and its images; its prompt
    tokens_read: int
    tokens: int  # of the prompt, those of the images with it
    first_words_s: float | None  # seconds until they come, by what was measured before; None of the first report

    def to_json(self) -> str:
        """The text of the output `progress`."""
        seconds = self.first_words_s
        return json.dumps(asdict(self) | {"first_words_s": None if seconds is None else round(seconds, 2)})


def read_timing(text: str) -> ReportTiming:
    """The timing of an output `timing`, which may have more in it.

    Raises:
        ResponseError: it lacks something, or is not JSON.
    """
    values = _values(text, ReportTiming)
    if values is None or not all(_is_number(seconds) for seconds in values.values()):
        raise ResponseError("the output timing is not the JSON of an object of seconds", status=200)
    return ReportTiming(**values)


def read_progress(text: str) -> ReportProgress:
    """The progress of an output `progress`; errors as above."""
    values = _values(text, ReportProgress)
    if (
        values is None
        or values["state"] not in ("waiting", "reading")
        or not all(type(values[name]) is int for name in ("tokens_read", "tokens"))
        or not (values["first_words_s"] is None or _is_number(values["first_words_s"]))
    ):
        raise ResponseError("the output progress is not the JSON of how far a report is", status=200)
    return ReportProgress(**values)


def _values(text: str, kind: type[Any]) -> dict[str, Any] | None:
    """What a JSON object has under the names of the fields of a dataclass; None if it is none, or lacks one."""
    try:
        values = decode_json(text.encode())
        return {name.name: values[name.name] for name in fields(kind)}
    except (KeyError, TypeError, ValueError):
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_identity(text: str) -> ModelIdentity:
    """The model of an output `model`, which may have more in it.

    Raises:
        ResponseError: it lacks something, or is not JSON.
    """
    names = [name.name for name in fields(ModelIdentity)]
    values = _values(text, ModelIdentity)
    model = None if values is None else ModelIdentity(**values)
    texts = [] if model is None else [model.checkpoint, model.checkpoint_sha256 or "", model.precision, model.version]
    if model is None or not all(isinstance(text, str) for text in texts):
        raise ResponseError(f"the output model is not the JSON of an object with the texts {names}", status=200)
    return model


def is_report_request(request: Mapping[str, Any]) -> bool:
    """Whether a request has a column of this endpoint; if not, it is one of MedImageInsight's, or of none."""
    input_data = request.get("input_data")
    columns = input_data.get("columns") if isinstance(input_data, Mapping) else None
    return isinstance(columns, list) and any(column in COLUMNS for column in columns)


def read_report_requests(request: Mapping[str, Any]) -> list[ReportRequest]:
    """One study a row, from a request that `table.read_json` has decoded.

    Raises:
        InvalidInput: not the schema above; has row and column where it is one cell's.
    """
    table = read_table(request, COLUMNS)
    if table.params:
        name = short(next(iter(table.params)), OPTIONS)
        raise InvalidInput(f"'params' has {name}; expected none, for this model has no params")
    return [read_study(n, row) for n, row in enumerate(table.rows)]


def read_study(n: int, row: Mapping[str, object]) -> ReportRequest:
    cells: dict[str, Any] = {column: read_image(n, row, column) for column in IMAGE_INPUTS}
    if cells["frontal_image"] is None:
        raise InvalidInput("is missing; expected an image file as base64", row=n, column="frontal_image")
    return ReportRequest(**cells | {column: read_text(n, row, column) for column in SECTIONS})


def render_reports(outputs: Sequence[str]) -> list[dict[str, str]]:
    """The endpoint's answer: one object a row, whose `output` is the JSON text of the findings."""
    return [{"output": output} for output in outputs]
