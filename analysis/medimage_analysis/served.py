"""Which model a Triton serves, as its configs tell: an export writes them so."""

from medimage_analysis.table import Model
from medimage_client.embeddings import IMAGE_ENCODER
from medimage_client.errors import InvalidInput
from medimage_client.images.windowing import DicomWindow
from medimage_client.wire.scoring import is_scoring_uri
from medimage_client.wire.triton import Endpoint

NAME = "medimageinsight"
PREPROCESSING = "image_preprocessing"


async def served_model(url: str, windowing: DicomWindow) -> Model:
    """The model that makes the vectors of images which the client shows by `windowing`.

    Raises:
        InvalidInput: a scoring URI, or a Triton that serves an export without its name.
        MedImageError: no connection, see `errors.py` of the client.
    """
    if is_scoring_uri(url):
        raise InvalidInput("a table names its model, which a scoring URI does not tell; give the url of its Triton")
    transport = Endpoint.parse(url).connect(shared_memory=False)
    try:
        exported = await transport.parameters(IMAGE_ENCODER.model)
        preprocessing = await transport.parameters(PREPROCESSING)
    finally:
        await transport.close()
    return model_of(exported, preprocessing, windowing, place=url)


def model_of(exported: dict[str, str], preprocessing: dict[str, str], windowing: DicomWindow, *, place: str) -> Model:
    """From the parameters of the models' configs."""
    if "precision" not in exported or "profile" not in preprocessing:
        raise InvalidInput(
            f"{place}: does not tell which model it serves; run `medimage export medimageinsight` again, which writes "
            "it into the repository, and restart the server"
        )
    return Model(
        name=NAME,
        checkpoint=exported.get("checkpoint_sha256"),
        precision=exported["precision"],
        profile=preprocessing["profile"],
        windowing=windowing if isinstance(windowing, str) else ",".join(f"{value:g}" for value in windowing),
    )
