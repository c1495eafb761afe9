"""`medimage head`: classifiers on the vectors of a table."""

from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from medimage_analysis.heads import KINDS, Kind
from medimage_client.cli.classify import check_output, render_json, render_table
from medimage_client.cli.label_options import bootstrap_option, read_label_texts
from medimage_client.cli.options import server_options
from medimage_client.cli.output_file import write_files
from medimage_client.constants import DEFAULT_TIMEOUT_S
from medimage_client.errors import InvalidInput
from medimage_client.labels.predictions import predictions_of, render_predictions

if TYPE_CHECKING:
    from medimage_analysis.heads.fitting import Criterion, FitOptions
    from medimage_analysis.heads.head import Head
    from medimage_analysis.heads.labelled import LabelColumns, Labelled

F = TypeVar("F", bound=Callable[..., Any])

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
CURVE = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


@click.group()
def head() -> None:
    """Train a classifier on the vectors of a table, and use it."""


def label_columns(*, required: bool) -> Callable[[F], F]:
    """The options that say where labels stand; the command gets `columns`, None without --label-column."""

    def decorate(command: F) -> F:
        @click.option(
            "--labels",
            "file",
            type=FILE,
            help="Table .csv or .parquet with the column id and those of labels. Without it they are columns of TABLE.",
        )
        @click.option(
            "--label-column",
            "names",
            required=required,
            multiple=True,
            metavar="COLUMN",
            help="Column of labels. Several columns, of 0 and 1, are labels by themselves.",
        )
        @click.option(
            "--separator", help="Between the labels of one cell, as | in Mass|Nodule, which are by themselves."
        )
        @click.option(
            "--group-column",
            "group",
            metavar="COLUMN",
            help="Of the patient, or what else must not be in two parts.  [default: the study, or the image]",
        )
        @wraps(command)
        def with_columns(
            *args: Any,
            file: Path | None,
            names: tuple[str, ...],
            separator: str | None,
            group: str | None,
            split: str | None = None,
            **options: Any,
        ) -> Any:
            from medimage_analysis.heads.labelled import LabelColumns

            if separator is not None and (len(names) > 1 or not separator):
                raise click.UsageError("--separator is between the labels of one --label-column; leave one of them out")
            columns = (
                LabelColumns(file=file, names=names, separator=separator, group=group, split=split) if names else None
            )
            return command(*args, columns=columns, **options)

        return cast(F, with_columns)

    return decorate


@head.command()
@click.argument("table", type=FOLDER)
@click.option("--kind", type=click.Choice(KINDS), default="linear", show_default=True, help="See below.")
@click.option("--to", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--split-column", "split", metavar="COLUMN", help="Column of train, validation or test.")
@label_columns(required=False)
@click.option("--seed", default=0, show_default=True, help="Of the split and the training; the same gives the same.")
@click.option(
    "--choose-by",
    "criterion",
    type=click.Choice(["auc", "accuracy"]),
    default="auc",
    show_default=True,
    help="What the validation part is to be best in.",
)
@click.option("--class-weights", is_flag=True, help="Rare labels count as much as frequent ones; not for knn.")
@click.option("--learning-curve", is_flag=True, help="Also train on a sixteenth to half of the training images.")
@click.option("--prompts", type=FILE, help="Of zeroshot: .csv with the columns label and prompt, several rows a label.")
@click.option("--epochs", default=30, show_default=True, type=click.IntRange(min=0), help="Of mlp: at most.")
@click.option(
    "--patience", default=5, show_default=True, type=click.IntRange(min=1), help="Of mlp: epochs without a better one."
)
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(min=1), help="Of mlp.")
@click.option(
    "--learning-rate", default=3e-4, show_default=True, type=click.FloatRange(min=0, min_open=True), help="Of mlp."
)
@click.option("--hidden", default=512, show_default=True, type=click.IntRange(min=1), help="Of mlp: its last width.")
@click.option(
    "--start",
    type=FILE,
    help="Of mlp: state dict of Microsoft's adapter to begin with, .safetensors or of torch.save; with --epochs 0 it "
    "is taken as it is, for these labels in the order of their names.",
)
@bootstrap_option
@server_options(timeout=DEFAULT_TIMEOUT_S, what="the prompts of zeroshot", scoring=False)
def train(
    table: Path,
    kind: Kind,
    to: Path,
    columns: "LabelColumns | None",
    seed: int,
    criterion: "Criterion",
    class_weights: bool,
    learning_curve: bool,
    prompts: Path | None,
    epochs: int,
    patience: int,
    batch_size: int,
    learning_rate: float,
    hidden: int,
    start: Path | None,
    samples: int,
    url: str,
    timeout: float,
) -> None:
    """Train a head on TABLE, which `medimage embed --to` wrote, and measure it.

    \b
    linear    logistic regression; the validation part chooses how regularised
    mlp       Microsoft's adapter of two linear layers and two convolutions (extra `training`)
    knn       the nearest of the training images; the validation part chooses how many
    zeroshot  vectors of texts, from the Triton at --url; needs no labels, but for being measured

    The images are split by --group-column: 70 % to train, 15 % to choose by, 15 % to test with. The folder has the
    weights, head.json, splits.csv and report.md with pictures.
    """
    from medimage_analysis.heads.fitting import FitOptions
    from medimage_analysis.heads.folder import new_folder
    from medimage_analysis.heads.labelled import read_labelled
    from medimage_analysis.heads.zeroshot import zero_shot_head
    from medimage_analysis.table import Table

    if (kind == "zeroshot") != (prompts is not None):
        raise click.UsageError("--prompts and --kind zeroshot go together")
    if columns is None and kind != "zeroshot":
        raise click.UsageError("--label-column is missing: the column of the labels")
    if start is not None and kind != "mlp":
        raise click.UsageError("--start is for --kind mlp")
    if learning_curve and kind == "zeroshot":
        raise click.UsageError("--learning-curve is not for --kind zeroshot, which learns from no images")
    options = FitOptions(
        criterion=criterion,
        class_weights=class_weights,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        hidden=hidden,
        patience=patience,
        start=start,
    )
    opened = Table.open(table)
    with new_folder(to) as folder:
        made = None
        if prompts is not None:
            texts = read_label_texts((), prompts, ("{}",))
            several = columns is not None and columns.multilabel
            made = zero_shot_head(texts, opened.model, multilabel=several, url=url, timeout=timeout)
        if columns is None:
            assert made is not None
            made.save(folder)
            click.echo(f"{to}: {len(made.labels)} labels, not measured; --label-column measures it")
            return
        labelled = read_labelled(opened, columns, note=note, labels=None if made is None else made.labels)
        told = make(folder, kind, made, labelled, columns, options, opened.model, samples, with_curve=learning_curve)
    click.echo("\n".join([f"{to}: {kind}, {len(labelled.labels)} labels", *told]))


def make(
    folder: Path,
    kind: Kind,
    made: "Head | None",
    labelled: "Labelled",
    columns: "LabelColumns",
    options: "FitOptions",
    encoder: Any,
    samples: int,
    *,
    with_curve: bool,
) -> list[str]:
    """Split, train unless it is made, measure and write; returns what there is to say."""
    import numpy as np

    from medimage_analysis.heads.fitting import Parts, fit, learning_curve
    from medimage_analysis.heads.folder import write_head
    from medimage_analysis.heads.labelled import check_enough
    from medimage_analysis.heads.splits import SPLITS, check_labels_in_parts, split

    indices = labelled.parts
    remedy = "put images of it into each part"
    if indices is None:
        check_enough(labelled, columns)
        if columns.group is None:
            note("without --group-column the images of a study stay together, and a patient's studies may not")
        indices = split(labelled.targets, labelled.groups, seed=options.seed)
        remedy = "try another --seed, or add images"
    check_labels_in_parts(labelled.targets, indices, labelled.labels, columns.place(columns.names[0]), remedy)
    train, validation, test = (labelled.take(np.flatnonzero(indices == index)) for index in range(len(SPLITS)))
    parts = Parts(train, validation, encoder)
    chosen: dict[str, Any] = {}
    if made is None:
        made, chosen = fit(kind, parts, options, tell=note)
    curve = learning_curve(kind, parts, options, CURVE, tell=note) if with_curve else []
    settings = {
        name: value
        for name, value in asdict(options).items()
        if name != "start" and (kind == "mlp" or name in ("criterion", "class_weights", "seed"))
    }
    found = write_head(folder, made, labelled, indices, settings=settings, chosen=chosen, curve=curve, samples=samples)
    sizes = f"{len(train.ids)} images to train, {len(validation.ids)} to choose by, {len(test.ids)} to test with"
    values = ", ".join(
        f"{name} {found[name]['value']:.3f}"
        for name in found
        if isinstance(found[name], dict) and "value" in found[name]
    )
    return [sizes, f"test: {values}"]


@head.command()
@click.argument("head", type=FOLDER)
@click.argument("table", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=lambda ctx, parameter, path: path and check_output(path),
    help="File to write instead: .csv or .parquet, with the columns id, predicted and one for each label.",
)
def predict(head: Path, table: Path, as_json: bool, output: Path | None) -> None:
    """Scores of HEAD for each image of TABLE, whose vectors must be of the same encoder."""
    from medimage_analysis.heads.head import Head
    from medimage_analysis.table import Table, check_vectors

    opened, loaded = Table.open(table), Head.load(head)
    loaded.check_encoder(opened.model, str(table))
    ids, vectors = opened.read(["id"])["id"].to_pylist(), opened.vectors()
    if not ids:
        raise InvalidInput(f"{table} has no rows")
    check_vectors(vectors, ids, str(table), "image_features")
    scores = loaded.scores(vectors)
    if output is not None:
        write_files({output: render_predictions(output, predictions_of(ids, loaded.labels, scores))})
    else:
        click.echo((render_json if as_json else render_table)(ids, loaded.labels, scores))


def note(line: str) -> None:
    click.echo(line, err=True)
