"""`medimage score`: Azure's JSON in, Azure's JSON out."""

import json
from typing import BinaryIO, get_args

import click

from medimage_client.azure import Layout
from medimage_client.cli.options import server_options
from medimage_client.client import MedImageInsight


@click.command()
@click.argument("request", type=click.File("rb"), metavar="REQUEST.json")
@click.option(
    "--layout", type=click.Choice(get_args(Layout)), default="rows", show_default=True, help="Form of the answer."
)
@server_options
def score(request: BinaryIO, layout: Layout, url: str, timeout: float) -> None:
    """Answer a request of Azure's MedImageInsight endpoint.

    REQUEST.json is the body that the endpoint takes, or - for standard input. The answer goes to standard output: one
    object a row (rows), the model card's list of objects (card) or the documentation's one object (object).
    """
    with MedImageInsight(url, timeout=timeout) as client:
        click.echo(json.dumps(client.score(request.read(), layout=layout)))
