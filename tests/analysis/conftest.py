"""Images whose embeddings are known, and a run's outcome."""

import io

import pytest
from PIL import Image

from tests.client.fake_triton import grey


def png(value: int) -> bytes:
    """An image that `FakeTriton` answers by the unit vector `value`."""
    file = io.BytesIO()
    Image.fromarray(grey(value)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def images(tmp_path):
    """Nine images: 0.png to 8.png, of which the n-th is answered by the unit vector 10 + n."""
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(9):
        (folder / f"{n}.png").write_bytes(png(10 + n))
    return folder
