"""`medimage studies`: what a folder, a zip, a DICOMDIR or an archive holds, as a table."""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from medimage_client.archive.sources import Sources
from medimage_client.archive.studies import Series, Studies, Study
from medimage_client.cli.options import SOURCE, archive_options
from medimage_client.cli.table import table

HEAD = ("series", "modality", "view", "laterality", "images", "size", "description", "UID")
INSTANCE_HEAD = ("image", "view", "laterality", "frames", "size", "position", "UID")


@click.command()
@click.argument("source", type=SOURCE, metavar="PATH_OR_URL")
@click.option("--instances", is_flag=True, help="Show each image of a series, in order.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@archive_options
def studies(source: Path | str, instances: bool, as_json: bool, sources: Sources) -> None:
    """Show the studies, series and images in a folder, a zip, a DICOMDIR, a DICOM file or a DICOMweb archive.

    A url is dicomweb+https://host/dicom-web/studies/UID, …/studies/UID/series/UID, or a query such as
    …/studies?ModalitiesInStudy=CR&StudyDate=20260101-20260131. Images are ordered by position and orientation, else by
    instance number. What is no image is named on standard error.
    """
    found = sources.read(source)
    click.echo(render_json(found) if as_json else "\n".join(render(found, instances=instances)))
    report_left_out(found)


def report_left_out(found: Studies) -> None:
    """What is no image, and other notes, on standard error."""
    for line in (*found.left_out, *found.notes):
        click.echo(line, err=True)
    if found.left_out:
        n = counted(len(found.left_out), "file or object", "files or objects")
        click.echo(f"{n} without an image", err=True)


def render(found: Studies, *, instances: bool) -> list[str]:
    lines: list[str] = []
    for study in found.studies:
        lines += [*([""] if lines else []), study_line(study), ""]
        lines += table(HEAD, [series_row(series) for series in study.series])
        if instances:
            for series in study.series:
                lines += ["", f"series {series.uid}", *table(INSTANCE_HEAD, instance_rows(series))]
    return lines or ["no images"]


def study_line(study: Study) -> str:
    return f"study {study.uid}, {iso(study.date) or 'no date'}, {counted(len(study.instances), 'image', 'images')}"


def series_row(series: Series) -> Sequence[str]:
    first = series.first
    views = {one.view or "-" for one in series.instances}
    sides = {one.laterality or "-" for one in series.instances}
    sizes = {f"{one.columns}x{one.rows}" for one in series.instances}
    return (
        "-" if first.series_number is None else str(first.series_number),
        first.modality or "-",
        " ".join(sorted(views)),
        " ".join(sorted(sides)),
        str(sum(one.n_frames for one in series.instances)),
        sizes.pop() if len(sizes) == 1 else "several",
        first.descriptions[0] if first.descriptions else "-",
        series.uid,
    )


def instance_rows(series: Series) -> list[Sequence[str]]:
    return [
        (
            "-" if one.number is None else str(one.number),
            one.view or "-",
            one.laterality or "-",
            str(one.n_frames),
            f"{one.columns}x{one.rows}",
            "-" if one.position is None else " ".join(f"{value:.1f}" for value in one.position),
            one.sop_uid,
        )
        for one in series.instances
    ]


def iso(date: str) -> str:
    return f"{date[:4]}-{date[4:6]}-{date[6:]}" if len(date) == 8 and date.isdecimal() else date


def counted(n: int, one: str, several: str) -> str:
    return f"{n} {one if n == 1 else several}"


def render_json(found: Studies) -> str:
    return json.dumps(
        [
            {
                "study_uid": study.uid,
                "date": study.date,
                "series": [
                    {
                        "series_uid": series.uid,
                        "number": series.first.series_number,
                        "modality": series.first.modality,
                        "descriptions": series.first.descriptions,
                        "instances": [
                            {
                                "sop_uid": one.sop_uid,
                                "name": one.name,
                                "number": one.number,
                                "view": one.view,
                                "view_code": one.view_code,
                                "laterality": one.laterality,
                                "frames": one.n_frames,
                                "rows": one.rows,
                                "columns": one.columns,
                                "position": one.position,
                                "orientation": one.orientation,
                            }
                            for one in series.instances
                        ],
                    }
                    for series in study.series
                ],
            }
            for study in found.studies
        ],
        indent=2,
    )
