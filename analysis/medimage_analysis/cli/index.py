"""`medimage index`: an embedding table to a search index."""

from pathlib import Path

import click

KINDS = ("auto", "exact", "ivf-pq")
POOLS = ("mean", "median", "max", "std")


@click.command()
@click.argument("table", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--to",
    required=True,
    metavar="INDEX",
    help="A folder, or object storage as s3://bucket/name, whose keys are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
)
@click.option(
    "--group-by",
    metavar="series|study|COLUMN",
    help="Make one vector of each series, study, or value of a column, instead of one of each image.",
)
@click.option(
    "--pool",
    type=click.Choice(POOLS),
    help="How the vectors of a group become one.  [default: mean]",
)
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default="auto",
    show_default=True,
    help="exact looks at every vector; ivf-pq finds nearly all of the nearest, much faster. auto is exact below "
    "250,000 vectors.",
)
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.95,
    show_default=True,
    help="Of ivf-pq: part of the 10 nearest that a search should find; more takes longer.",
)
@click.option("--replace", is_flag=True, help="Make an index anew that is there; until it is complete, the old one is.")
def index(
    table: Path, to: str, group_by: str | None, pool: str | None, kind: str, recall: float, replace: bool
) -> None:
    """Make a search index of TABLE, which `medimage embed --to` has written.

    `medimage search` finds similar images and texts in it.
    """
    from medimage_analysis.indexing import build
    from medimage_analysis.table import Table

    if pool is not None and group_by is None:
        raise click.UsageError("--pool needs --group-by: without it, nothing is pooled")
    built = build(
        Table.open(table),
        to,
        group_by=group_by,
        pool=pool or "mean",  # type: ignore[arg-type]  # one of the choices
        kind=kind,  # type: ignore[arg-type]  # likewise
        replace=replace,
        recall=recall,
    )
    what = "images" if group_by is None else f"groups by {group_by}"
    click.echo(f"{to}: {built.rows} {what}, copied in {built.seconds:.1f} s")
    if not built.approximations:
        click.echo("search is exact")
    for made in built.approximations:
        click.echo(
            f"IVF-PQ of {made.among}, made in {made.seconds:.1f} s: a search looks into {made.probes} of {made.parts} "
            f"parts and ranks {made.refined} k by their vectors, recall@10 {made.recall:.3f}"
        )
        if made.recall < recall:
            click.echo(f"Warning: --recall {recall:g} is not reached; `medimage search --exact` finds all", err=True)
