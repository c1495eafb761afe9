"""`medimage score`: Azure's JSON in, Azure's JSON out."""

import json
from typing import BinaryIO, get_args

import click

from medimage_client.cli.options import server_options
from medimage_client.client import CXRReportGen, MedImageInsight
from medimage_client.constants import DEFAULT_REPORT_TIMEOUT_S, DEFAULT_TIMEOUT_S
from medimage_client.schema.embeddings import Layout
from medimage_client.schema.reports import is_report_request
from medimage_client.schema.table import read_json


@click.command()
@click.argument("request", type=click.File("rb"), metavar="REQUEST.json")
@click.option(
    "--layout",
    type=click.Choice(get_args(Layout)),
    default="rows",
    show_default=True,
    help="Layout of the answer of MedImageInsight; CXRReportGen has only rows.",
)
@server_options(
    timeout=None, what=f"one request; by default {DEFAULT_TIMEOUT_S:g}, and {DEFAULT_REPORT_TIMEOUT_S:g} for a report"
)
def score(request: BinaryIO, layout: Layout, url: str, api_key: str | None, timeout: float | None) -> None:
    """Answer a request of Azure's MedImageInsight or CXRReportGen endpoint.

    REQUEST.json is the body that the endpoint takes, or - for standard input. Its columns pick the model: any of
    frontal_image, lateral_image, prior_image, indication, technique, comparison and prior_report picks CXRReportGen,
    anything else MedImageInsight.

    The answer goes to standard output: one object per row (rows), a list of objects as in the model card (card) or
    one object as in the documentation (object).
    """
    body = request.read()
    if not is_report_request(read_json(body)):
        with MedImageInsight(url, api_key=api_key) as embeddings:
            click.echo(json.dumps(embeddings.score(body, layout=layout, timeout=timeout)))
        return
    if layout != "rows":
        raise click.BadParameter(f"{layout} is for MedImageInsight; a report has rows", param_hint="--layout")
    with CXRReportGen(url, api_key=api_key) as reports:
        click.echo(json.dumps(reports.score(body, timeout=timeout)))
