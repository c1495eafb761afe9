"""`medimage report`: a chest X-ray study to its findings, as they are written."""

import json
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from PIL import Image

from medimage_client.archive.dicomweb import Archive, Resource, is_dicomweb
from medimage_client.archive.report_images import is_name, is_study, report_images
from medimage_client.archive.sources import Sources
from medimage_client.cli.first_words import FirstWords
from medimage_client.cli.options import SOURCE, SourceType, archive_options, dicom_window_option, server_options
from medimage_client.cli.output_file import Content, check_place, is_file_or_new, write_files
from medimage_client.client import CXRReportGen
from medimage_client.constants import DEFAULT_REPORT_TIMEOUT_S
from medimage_client.images.encoding import ImageInput
from medimage_client.images.windowing import DicomWindow
from medimage_client.reports.grammar import FindingParser, ParsedFinding
from medimage_client.reports.origin import read_images
from medimage_client.reports.report import Report, origin_of
from medimage_client.reports.requests import request_of
from medimage_client.reports.secondary_capture import secondary_capture
from medimage_client.reports.structured_report import structured_report
from medimage_client.schema.reports import Mode

if TYPE_CHECKING:
    from pydicom import Dataset


class ImageType(SourceType):
    """A file or a source, as of its base, or what names an image of the study: a SOP Instance UID or `none`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if isinstance(value, str) and is_name(value) else super().convert(value, param, ctx)


MEANING = {
    "truncated": "cut before its end; --max-new-tokens sets where",
    "malformed": "not of the model's own grammar; what could be read is shown",
}


@click.command()
@click.argument("study", type=SOURCE)
@click.option("--frontal", metavar="UID", help="SOP Instance UID of the frontal image, instead of the one chosen.")
@click.option(
    "--lateral",
    type=ImageType(path_type=Path, exists=True, dir_okay=False),
    help="Lateral image of the same study: a file, a SOP Instance UID or none.",
)
@click.option(
    "--prior",
    type=ImageType(path_type=Path, exists=True),
    help="Frontal image of an earlier study: a file, that study, a SOP Instance UID or none.",
)
@click.option("--indication", help="Why the study was made.")
@click.option("--technique", help="How it was made, such as 'One view chest'.")
@click.option("--comparison", help="What it is compared with.")
@click.option("--prior-report", help="Report of the earlier study.")
@click.option(
    "--mode",
    type=click.Choice(get_args(Mode)),
    default="grounded",
    show_default=True,
    help="Findings with boxes, findings as plain text, or the boxes of --phrase.",
)
@click.option("--phrase", help="The finding to locate, in mode phrase.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Longest answer; the default depends on the mode.")
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=lambda ctx, parameter, path: check_picture(path),
    help="Picture to write: the frontal image with its boxes, and the findings below it.",
)
@click.option(
    "--sr",
    "structured",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=lambda ctx, parameter, path: check_result(path),
    help="DICOM structured report to write. The images have to be DICOM files.",
)
@click.option(
    "--secondary-capture",
    "capture",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=lambda ctx, parameter, path: check_result(path),
    help="The picture as a DICOM Secondary Capture to write, for viewers without structured reports.",
)
@click.option(
    "--store",
    "is_stored",
    is_flag=True,
    help="Store the structured report in the archive that STUDY is in, and with --secondary-capture the picture.",
)
@click.option(
    "--store-to",
    metavar="ARCHIVE",
    help="Store them in another archive, dicomweb+https://host/dicom-web.",
)
@click.option(
    "--again",
    is_flag=True,
    help="Give DICOM results new UIDs. Otherwise the same study, checkpoint and options make the same UIDs.",
)
@dicom_window_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of text.")
@archive_options
@server_options(timeout=DEFAULT_REPORT_TIMEOUT_S, what="the end of the report")
def report(
    study: Path | str,
    frontal: str | None,
    lateral: Path | str | None,
    prior: Path | str | None,
    picture: Path | None,
    structured: Path | None,
    capture: Path | None,
    is_stored: bool,
    store_to: str | None,
    again: bool,
    as_json: bool,
    dicom_window: DicomWindow,
    sources: Sources,
    url: str,
    api_key: str | None,
    timeout: float,
    **options: Any,
) -> None:
    """Findings of a chest X-ray study, each as soon as it is written.

    STUDY is the current frontal image or, as for `medimage studies`, a folder, a zip, a DICOMDIR or a
    dicomweb+https://… of DICOM images: then the frontal image, the lateral one and the earlier study's are chosen, and
    standard error says which and why.

    Boxes are x_min, y_min, x_max, y_max in fractions of the square that the model sees, the middle of the image. With
    --json the object has `output`, [[text, null or boxes], …] as Azure's endpoint answers, and `status`: complete,
    truncated or malformed. If the report is not complete, standard error says so.

    Before the first words, standard error says when to expect them, by what the server has measured of earlier reports,
    and on a terminal how far it has read the prompt.
    """
    archive = archive_for(study, is_stored, store_to, sources)
    has_results = structured is not None or capture is not None or archive is not None
    if again and not has_results:
        raise click.UsageError("--again is for --sr, --secondary-capture and --store")
    images, files = images_of(study, sources, frontal, lateral, prior)
    check_apart({"--picture": picture, "--sr": structured, "--secondary-capture": capture}, files)
    asked = images | options
    request = request_of(**asked)
    headers = read_images(request) if has_results else ()  # refuses before the work, and so does the next
    if archive is not None:
        archive.has(headers[0].StudyInstanceUID, headers[0].SOPInstanceUID)
    first_words = FirstWords()
    with (
        CXRReportGen(url, api_key=api_key) as client,
        client.stream(**asked, dicom_window=dicom_window, timeout=timeout, on_progress=first_words.show) as stream,
    ):
        pieces = first_words.before(stream)
        if as_json:
            for _ in pieces:
                pass
        elif options["mode"] == "findings":
            echo_text(pieces)
        else:
            echo_findings(pieces)
        answer = stream.report
    if as_json:
        click.echo(json.dumps(as_object(answer), ensure_ascii=False))
    elif answer.status != "complete":
        click.echo(f"The report is {answer.status}: {MEANING[answer.status]}.", err=True)
    if picture is not None:
        write_files({picture: render_picture(answer, asked["frontal"], picture, dicom_window)})
    if not has_results:
        return
    origin = origin_of(answer, request, headers, dicom_window, again=again)
    results = {}
    if structured is not None or archive is not None:
        results["structured report"] = structured_report(answer.findings, answer.status, origin)
    if capture is not None:
        drawn = answer.draw(asked["frontal"], dicom_window=dicom_window)
        results["secondary capture"] = secondary_capture(drawn, origin)
    places = {"structured report": structured, "secondary capture": capture}
    write_files({place: dicom_file(results[name]) for name, place in places.items() if place is not None})
    if archive is not None:
        store(results, archive)


def archive_for(study: Path | str, is_stored: bool, store_to: str | None, sources: Sources) -> Archive | None:
    """Where results go: to the archive named, or to the study's."""
    if is_stored and store_to is not None:
        raise click.UsageError("--store and --store-to are both given; expected one")
    if store_to is not None:
        if not is_dicomweb(store_to):
            raise click.BadParameter("expected an archive, dicomweb+https://host/dicom-web", param_hint="--store-to")
        return sources.archive(Resource.parse(store_to).url)
    if not is_stored:
        return None
    if not isinstance(study, str) or not is_dicomweb(study):
        raise click.BadParameter("STUDY is in no archive; name one with --store-to", param_hint="--store")
    return sources.archive(study)


def store(results: Mapping[str, "Dataset"], archive: Archive) -> None:
    """Store what the archive does not have, and say on standard error what became of each."""
    done = archive.store(results.values())
    for name, result in results.items():
        uid = str(result.SOPInstanceUID)
        if uid in done.found:
            click.echo(f"The archive has the {name} {uid} already; --again stores another.", err=True)
        else:
            click.echo(f"Stored the {name} {uid}.", err=True)


def images_of(
    study: Path | str, sources: Sources, frontal: str | None, lateral: Path | str | None, prior: Path | str | None
) -> tuple[dict[str, Any], list[Path]]:
    """The images by their name in the client, and the files that they are in.

    What was chosen of a study is told on standard error.
    """
    files = [Path(value) for value in (study, lateral, prior) if value is not None]
    if is_study(study):
        images = report_images(study, sources, frontal=frontal, lateral=lateral, prior=prior)
        for line in images.choice.why:
            click.echo(line, err=True)
        files += [Path(image.name) for image in images.choice.images]
        return {"frontal": images.frontal, "lateral": images.lateral, "prior": images.prior}, files
    for name, value in (("--frontal", frontal), ("--lateral", lateral), ("--prior", prior)):
        if value is not None and (name == "--frontal" or isinstance(value, str) or is_study(value)):
            raise click.BadParameter(f"{value} is for a study; STUDY is a single image", param_hint=name)
    return {"frontal": study, "lateral": lateral, "prior": prior}, files


def check_apart(places: Mapping[str, Path | None], images: Sequence[Path]) -> None:
    """Refuse a result that would take the place of another one, or of an image that the report is of."""
    taken = {image.resolve(): "an image of the report" for image in images}
    for option, place in places.items():
        if place is not None and is_file_or_new(place):
            if what := taken.get(place.resolve()):
                raise click.BadParameter(f"{place} is {what}; name another file", param_hint=option)
            taken[place.resolve()] = f"the place of {option}"


def check_result(path: Path | None) -> Path | None:
    """Refuse before the work what could not be written after it."""
    if path is not None:
        check_place(path)
    return path


def check_picture(path: Path | None) -> Path | None:
    """As `check_result`, with the suffix."""
    if path is None:
        return None
    if picture_format(path) not in Image.SAVE:
        raise click.BadParameter(f"{path} has no suffix of a picture; expected .png, .jpg or the like")
    check_place(path)
    return path


def picture_format(path: Path) -> str | None:
    return Image.registered_extensions().get(path.suffix.lower())


def render_picture(report: Report, frontal: ImageInput, path: Path, dicom_window: DicomWindow) -> Content:
    file = BytesIO()
    try:
        report.draw(frontal, dicom_window=dicom_window).save(file, picture_format(path))
    except OSError as error:  # of Pillow, for a mode of pixels that the format does not have
        raise click.ClickException(f"cannot write {path}: {error}") from error
    return file.getbuffer()


def dicom_file(result: "Dataset") -> Content:
    file = BytesIO()
    result.save_as(file, enforce_file_format=True)
    return file.getbuffer()


def echo_text(pieces: Iterable[str]) -> None:
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()


def echo_findings(pieces: Iterable[str]) -> None:
    parser = FindingParser()
    n_findings = 0

    def echo(findings: Sequence[ParsedFinding]) -> None:
        nonlocal n_findings
        for finding in findings:
            n_findings += 1
            click.echo(f"{n_findings}. {render_finding(finding)}")

    for piece in pieces:
        echo(parser.feed(piece))
    echo(parser.finish())


def render_finding(finding: ParsedFinding) -> str:
    """One line: the text, and its boxes in brackets."""
    text, boxes = finding
    rendered = ["[" + ", ".join(f"{edge:.3f}" for edge in box) + "]" for box in boxes or ()]
    return " ".join([*text.split(), *rendered])


def as_object(report: Report) -> dict[str, object]:
    output = [
        [finding.text, [[box.x_min, box.y_min, box.x_max, box.y_max] for box in finding.boxes] or None]
        for finding in report.findings
    ]
    return {"output": output, "status": report.status}
