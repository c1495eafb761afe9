"""The `medimage` group: the client's commands, and those that other packages offer."""

import click

from medimage_client.cli.classify import classify
from medimage_client.cli.embed import embed
from medimage_client.cli.evaluate import evaluate
from medimage_client.cli.evaluate_classification import classification
from medimage_client.cli.evaluate_servers import servers
from medimage_client.cli.plugins import CommandGroup
from medimage_client.cli.report import report
from medimage_client.cli.score import score
from medimage_client.cli.status import status
from medimage_client.cli.studies import studies


@click.group(cls=CommandGroup, entry_point_group="medimage.commands")
@click.version_option(package_name="medimage-triton")
def medimage() -> None:
    """Embeddings of medical images and texts from MedImageInsight, and chest X-ray reports from CXRReportGen, on Triton
    Inference Server.

    For research only, not for clinical use.
    """


for command in (classify, embed, evaluate, report, score, status, studies):
    medimage.add_command(command)
for command in (classification, servers):
    evaluate.add_command(command)
