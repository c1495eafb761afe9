"""`medimage evaluate search`: how good the search in an index is, by labels."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from medimage_client.cli.table import table
from medimage_client.errors import InvalidInput

if TYPE_CHECKING:
    from medimage_analysis.retrieval import Retrieval, RetrievalScores

DEFAULT_QUERIES = 2000


@click.command()
@click.argument("index")
@click.option("--labels", "column", required=True, metavar="COLUMN", help="Column of INDEX that has the labels.")
@click.option(
    "--queries",
    type=click.IntRange(min=1),
    default=DEFAULT_QUERIES,
    show_default=True,
    help="Ask for as many at most, chosen at random, the same in each run.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def search(index: str, column: str, queries: int, as_json: bool) -> None:
    """Score the search in INDEX: is what is found for an image of its label?

    Precision at 1, 3, 5 and 10 and mAP, by label and their mean over the labels (macro), of exact search. The image's
    own study is left out of what can be found. Rows without a label are left out. Takes 4 KB of memory for each row.
    """
    from medimage_analysis.index import Index
    from medimage_analysis.retrieval import evaluate_retrieval
    from medimage_analysis.table import vectors_of

    opened = Index.open(index)
    opened.check_column(column)
    names = [column, *({"study_uid"} - {column}), "image_features"]
    rows = opened.read(names)
    labelled = rows.filter(rows[column].is_valid())
    if not len(labelled):
        raise InvalidInput(f"{index}: column {column!r} has no labels")
    try:
        scores = evaluate_retrieval(
            vectors_of(labelled["image_features"]),
            [str(label) for label in labelled[column].to_pylist()],
            labelled["study_uid"].to_pylist(),
            queries=queries,
        )
    except InvalidInput as error:
        raise error.at(place=f"{index}, column {column!r}") from None
    if as_json:
        click.echo(json.dumps(asdict(scores) | {"unlabelled": len(rows) - len(labelled)}, indent=2))
        return
    click.echo("\n".join(render(scores)))
    notes = {
        "have no label": len(rows) - len(labelled),
        "were asked for and left out: no other study has their label": scores.without_match,
    }
    for note, count in notes.items():
        if count:
            click.echo(f"{count} of {len(rows)} rows {note}", err=True)


def render(scores: "RetrievalScores") -> Sequence[str]:
    def line(name: str, one: "Retrieval") -> list[str]:
        return [name, str(one.queries), *(f"{value:.3f}" for value in [*one.precision.values(), one.average_precision])]

    head = ["label", "queries", *(f"P@{k}" for k in scores.macro.precision), "mAP"]
    rows = [line(name, one) for name, one in scores.labels.items()]
    return table(head, [*rows, line("macro", scores.macro)])
