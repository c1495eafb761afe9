"""From the bytes of a PNG to its vector: the reference pipeline, and the served one."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from medimage_client import MedImageInsight
from medimage_export.phantoms import TEST_SEEDS
from medimage_server.errors import LaunchError
from medimage_server.image_preprocessing import ImagePreprocessor, ImageSettings
from medimage_server.installation import find_triton
from medimage_server.launcher import run_triton
from medimage_server.model_repository import read_configs
from perf.cases.suite.baselines import Encode
from perf.cases.suite.device import Device, Precision
from perf.cases.suite.sessions import session
from perf.pictures import film, png

SIZES = ((512, 512), (1024, 1024), (2048, 2048), (3000, 2500))  # (width, height)
STANDARD_SIZE = (512, 512)
JPEG_QUALITY = 75
MODEL_SIZE = (480, 480)

Embed = Callable[[bytes], np.ndarray]


def film_file(width: int, height: int) -> bytes:
    """The PNG of a chest film that the phantom checkpoint has not seen, 8-bit grey."""
    return png(film(width, height, TEST_SEEDS[0]))


def decode(file: bytes) -> Image.Image:
    """What no pipeline can leave out."""
    image = Image.open(BytesIO(file))
    image.load()
    return image


def reference_pixels(image: Image.Image, profile: str) -> np.ndarray:
    """The two preprocessing profiles in Pillow's plainest form, (1, 480, 480, 3) uint8.

    `azure`: 512 x 512, RGB, a JPEG of quality 75, then what `reference` does: RGB, 480 x 480, bicubic.
    """
    if profile == "azure":
        jpeg = BytesIO()
        image.resize(STANDARD_SIZE).convert("RGB").save(jpeg, "JPEG", quality=JPEG_QUALITY)
        image = Image.open(jpeg)
    return np.array(image.convert("RGB").resize(MODEL_SIZE, Image.Resampling.BICUBIC))[None]


def reference_pipeline(encode: Encode, profile: str) -> Embed:
    """Pillow, then the PyTorch model."""
    return lambda file: encode(reference_pixels(decode(file), profile))


def served_profile(repository: Path) -> str:
    """The preprocessing profile that the repository's config asks for."""
    return read_configs(repository)[0]["image_preprocessing"].parameters["profile"].string_value


@contextmanager
def served(
    repositories: Mapping[Precision, Path], device: Device, logs: Path
) -> Iterator[tuple[str, dict[str, Embed]]]:
    """How the files travel, in words, and for each precision a call that gives a file's vector (1, E).

    Through Triton over gRPC; where no Triton is installed, the server's own preprocessing and the session in this
    process.
    """
    with ExitStack() as stack:
        try:
            find_triton()
        except LaunchError as error:
            yield (
                f"in this process, without Triton: {error}",
                {precision: _in_process(repository, device) for precision, repository in repositories.items()},
            )
            return
        clients = {}
        for precision, repository in repositories.items():
            server = stack.enter_context(
                run_triton(repository, models=["medimageinsight_image"], log=logs / f"triton-{precision}.log")
            )
            clients[precision] = stack.enter_context(MedImageInsight(server.url, timeout=600))
        yield (
            "through Triton over gRPC",
            {precision: lambda file, c=client: c.embed_images([file]) for precision, client in clients.items()},
        )


def _in_process(repository: Path, device: Device) -> Embed:
    parameters = read_configs(repository)[0]["image_preprocessing"].parameters
    settings = ImageSettings.read(
        {name: value.string_value for name, value in parameters.items()},
        repository / "image_preprocessing" / "1" / "preprocessing.json",
    )
    preprocess, encode = ImagePreprocessor(settings), session(repository, "image_encoder", device)
    return lambda file: encode(preprocess([file], {}))
