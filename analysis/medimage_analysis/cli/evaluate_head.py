"""`medimage evaluate head`: heads side by side on the same images."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medimage_analysis.cli.head import FOLDER, label_columns, note
from medimage_client.cli.evaluate_classification import TITLES, cell
from medimage_client.cli.label_options import bootstrap_option
from medimage_client.cli.table import table as text_table
from medimage_client.errors import InvalidInput

if TYPE_CHECKING:
    from medimage_analysis.heads.labelled import LabelColumns


@click.command()
@click.argument("heads", type=FOLDER, nargs=-1, required=True)
@click.option("--table", required=True, type=FOLDER, help="Of the vectors, of the encoder of all heads.")
@label_columns(required=True)
@bootstrap_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def head(heads: tuple[Path, ...], table: Path, columns: "LabelColumns", samples: int, as_json: bool) -> None:
    """Score HEADS side by side, such as a trained one and a zero-shot one.

    All are scored on the same images of --table: those that none of them was trained on or chosen by. They must have
    the same labels.
    """
    import numpy as np

    from medimage_analysis.heads.folder import learnt_from, thresholds_of
    from medimage_analysis.heads.head import Head
    from medimage_analysis.heads.labelled import read_labelled
    from medimage_analysis.heads.measures import measured
    from medimage_analysis.table import Table

    opened = Table.open(table)
    loaded = {str(path): Head.load(path) for path in heads}
    first = loaded[str(heads[0])]
    for name, one in loaded.items():
        one.check_encoder(opened.model, str(table))
        if {*one.labels} != {*first.labels} or one.multilabel != first.multilabel:
            raise InvalidInput(
                f"{name} has other labels than {heads[0]}; train both with the same --label-column and --separator"
            )
    if columns.multilabel != first.multilabel:
        raise InvalidInput(
            f"{heads[0]} was trained on {'labels by themselves' if first.multilabel else 'one label an image'}; give "
            "--label-column and --separator as for `medimage head train`"
        )
    labelled = read_labelled(opened, columns, note=note, labels=first.labels)
    seen = set[str]().union(*map(learnt_from, heads))
    rows = np.array([row for row, name in enumerate(labelled.ids) if name not in seen], np.int64)
    if not rows.size:
        raise InvalidInput(f"{table}: the heads have seen every labelled image of it; give a table of others")
    if len(rows) < len(labelled.ids):
        note(f"{len(labelled.ids) - len(rows)} of {len(labelled.ids)} images are left out: a head was trained on them")
    kept = labelled.take(rows)
    found = {}
    for path, (name, one) in zip(heads, loaded.items(), strict=True):
        order = [one.labels.index(label) for label in first.labels]
        thresholds = thresholds_of(path)
        if one.multilabel and not thresholds:
            raise InvalidInput(f"{name} has no thresholds, for it was made without labels; make it with --label-column")
        found[name] = measured(
            kept.ids,
            first.labels,
            one.scores(kept.vectors)[:, order],
            kept.targets,
            multilabel=first.multilabel,
            thresholds=thresholds,
            samples=samples,
        )
    if as_json:
        click.echo(json.dumps({name: one.to_json() for name, one in found.items()}, indent=2))
        return
    names = list(next(iter(found.values())).overall)
    rows_of_text = [
        [Path(name).name, loaded[name].kind, *(cell(one.overall[key]) for key in names), f"{one.calibration_error:.3f}"]
        for name, one in found.items()
    ]
    told = f"{len(kept.ids)} images, {len(first.labels)} labels"
    told += f"; in brackets 95 % intervals of {samples} bootstrap samples" if samples else ""
    head_of_table = ["head", "kind", *(TITLES[key] for key in names), "calibration error"]
    click.echo("\n".join([told, "", *text_table(head_of_table, rows_of_text)]))
