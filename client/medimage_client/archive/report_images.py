"""The images of a report, read from a study."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from medimage_client.archive.choice import Choice, choose, choose_frontal, distinct, latest_of
from medimage_client.archive.dicomweb import is_dicomweb
from medimage_client.archive.files import is_collection
from medimage_client.archive.sources import Source, Sources
from medimage_client.archive.studies import Studies
from medimage_client.errors import InvalidInput
from medimage_client.images.encoding import ImageInput

StudyInput = Source | Studies | Choice


@dataclass(frozen=True, slots=True)
class ReportImages:
    """What goes to the model, and the choice behind it."""

    frontal: bytes  # a DICOM file
    lateral: ImageInput | None
    prior: ImageInput | None
    choice: Choice


def report_images(
    study: StudyInput,
    sources: Sources,
    *,
    frontal: str | None = None,
    lateral: ImageInput | None = None,
    prior: ImageInput | None = None,
) -> ReportImages:
    """Read the images that `choose` chooses, or those of a choice.

    Args:
        study: a source, what was read of one, or a choice.
        frontal: as of `choose`.
        lateral, prior: an image or, as of `choose`, a SOP Instance UID of the study or `none`; None to have it chosen.
            `prior` may be a source, too, of whose latest study the frontal image is taken.

    Raises:
        InvalidInput: as of `choose`, or an image cannot be read.
        MedImageError: an archive fails.
    """
    lateral_name = lateral if isinstance(lateral, str) and is_name(lateral) else None
    prior_name = prior if isinstance(prior, str) and is_name(prior) else None
    if isinstance(study, Choice):
        choice = study
        if frontal is not None or lateral_name or prior_name:
            raise InvalidInput("study is a choice already; expected no names of images beside it")
    else:
        studies = study if isinstance(study, Studies) else sources.read(study)
        choice = choose(
            studies,
            frontal=frontal,
            lateral=lateral_name or (None if lateral is None else "none"),
            prior=prior_name or (None if prior is None else "none"),
        )
    if lateral is not None and lateral_name is None:
        choice = overruled(choice, "lateral", "lateral: as given")
    if prior is not None and prior_name is None:
        choice = overruled(choice, "prior", "prior: as given")
        if is_study(prior):
            try:
                image, reason = choose_frontal(latest_of(sources.read(prior)))  # type: ignore[arg-type]
            except InvalidInput as error:
                raise error.at(column="prior_image") from error
            if image.patient_id and choice.frontal.patient_id not in ("", image.patient_id):
                reason += "; its Patient ID is another than the study's"
            choice = distinct(replace(overruled(choice, "prior", f"prior: {reason}"), prior=image))
    return ReportImages(
        frontal=choice.frontal.read(),
        lateral=choice.lateral.read() if choice.lateral else (None if lateral_name else lateral),
        prior=choice.prior.read() if choice.prior else (None if prior_name else prior),
        choice=choice,
    )


def read_report_images(
    study: StudyInput, *, lateral: ImageInput | None = None, prior: ImageInput | None = None
) -> ReportImages:
    """As `report_images`, with the credentials of the environment and connections that are closed at the end."""
    with Sources() as sources:
        return report_images(study, sources, lateral=lateral, prior=prior)


def is_study(value: object) -> bool:
    """Whether it names several images: an archive's studies, a folder, a zip or a DICOMDIR."""
    if isinstance(value, str) and is_dicomweb(value):
        return True
    if not isinstance(value, str | os.PathLike) or not os.path.exists(value):
        return False
    return os.path.isdir(value) or is_collection(Path(value))


def is_name(value: str) -> bool:
    """Whether a text is a UID or `none`, and no file."""
    return (value == "none" or (set(value) <= set("0123456789.") and "." in value)) and not os.path.exists(value)


def overruled(choice: Choice, image: Literal["lateral", "prior"], line: str) -> Choice:
    why = tuple(line if one.startswith(f"{image}:") else one for one in choice.why)
    return replace(choice, why=why, lateral=None) if image == "lateral" else replace(choice, why=why, prior=None)
