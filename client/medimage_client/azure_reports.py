"""The JSON of Azure's CXRReportGen endpoint: requests to studies, reports to its answer.

    {"input_data": {"columns": ["frontal_image", "lateral_image", "indication", "technique", "comparison"],
                    "index": [0], "data": [["<base64>", "<base64>", "Pneumonia", "One view chest", "None"]]}}

On top of what `azure.py` says:

- every row has a `frontal_image`; the other columns are optional;
- the text "None" is a text: Microsoft's toolkit sends it for a missing comparison, and the model was called with it;
- there are no params, so any is refused: it would have no effect.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from medimage_client.azure import read_image, read_table, read_text, short
from medimage_client.errors import InvalidInput
from medimage_client.report_request import IMAGE_INPUTS, SECTIONS, ReportRequest

COLUMNS = (*IMAGE_INPUTS, *SECTIONS)
MAX_ROWS = 10  # of a request; what the documentation of Azure's endpoint allows
OPTIONS = tuple(option.name for option in fields(ReportRequest))


def is_report_request(request: Mapping[str, Any]) -> bool:
    """Whether a request has a column of this endpoint; if not, it is one of MedImageInsight's, or of none."""
    input_data = request.get("input_data")
    columns = input_data.get("columns") if isinstance(input_data, Mapping) else None
    return isinstance(columns, list) and any(column in COLUMNS for column in columns)


def read_report_requests(request: Mapping[str, Any]) -> list[ReportRequest]:
    """One study a row, from a request that `azure.read_json` has decoded.

    Raises:
        InvalidInput: not the schema above; has row and column where it is one cell's.
    """
    table = read_table(request, COLUMNS)
    if table.params:
        name = short(next(iter(table.params)), OPTIONS)
        raise InvalidInput(f"'params' has {name}; expected none, for this model has no params")
    return [read_study(n, row) for n, row in enumerate(table.rows)]


def read_study(n: int, row: Mapping[str, object]) -> ReportRequest:
    frontal, lateral, prior = (read_image(n, row, column) for column in IMAGE_INPUTS)
    if frontal is None:
        raise InvalidInput("is missing; expected an image file as base64", row=n, column="frontal_image")
    indication, technique, comparison, prior_report = (read_text(n, row, column) for column in SECTIONS)
    return ReportRequest(
        frontal_image=frontal,
        lateral_image=lateral,
        prior_image=prior,
        indication=indication,
        technique=technique,
        comparison=comparison,
        prior_report=prior_report,
    )


def render_reports(outputs: Sequence[str]) -> list[dict[str, str]]:
    """The endpoint's answer: one object a row, whose `output` is the JSON text of the findings."""
    return [{"output": output} for output in outputs]
