"""A real child is done with every file of a hostile corpus within the limits, and with the largest honest ones.

Some of the corpus belongs to the usual tests, with less computing time. The soak test has all of it, with the server's
limits, and prints the slowest and the largest.
"""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from medimage_server.errors import InvalidInput
from medimage_server.image_preprocessing import ImageSettings, OneImage, Standardization
from medimage_server.image_process import ImageLimits, ImageProcess
from tests.server.hostile_files import BOMBS, good_files, mutations
from tests.server.measured import MEASURED, SHAPE, Measured

SETTINGS = ImageSettings(
    profile="azure",
    max_encoded_bytes=2**25,
    max_pixels=50_000_000,
    image_size=(480, 480),
    interpolation=Image.Resampling.BICUBIC,
)
LIMITS = ImageLimits()
SHORT = ImageLimits(cpu_s=2)
AT_REST_MB = 150
MUTATIONS = 1000
DECODED, REFUSED = "decoded", "refused"
TOO_SLOW, TOO_LARGE, CRASH = "computing time", "GB of memory", "crash"  # parts of what is said of them


def ended_s(limits):
    """Of an image whose child was ended; the kernel counts whole seconds."""
    return limits.cpu_s + 1.0


def run_corpus(files, limits=LIMITS):
    """(name, computing time in s, peak of the child in MB, how it ended) of each file; a new child for each format."""
    with ImageProcess(Measured(OneImage(SETTINGS)), SHAPE, limits) as process:
        for name, file in files:
            try:
                cpu_s, peak_mb, is_image = MEASURED.unpack(process.run(file).tobytes())
                yield name, cpu_s, peak_mb, DECODED if is_image else REFUSED
            except InvalidInput as error:
                ending = next(part for part in (TOO_SLOW, TOO_LARGE, CRASH) if part in str(error))
                yield name, ended_s(limits) if ending == TOO_SLOW else 0.0, 0.0, ending


def check(results, limits=LIMITS):
    assert max(cpu_s for _, cpu_s, _, _ in results) <= ended_s(limits)
    assert max(peak_mb for _, _, peak_mb, _ in results) <= AT_REST_MB + limits.memory_bytes / 2**20


def tell(title, results):
    slowest, largest = (max(results, key=lambda result: result[column]) for column in (1, 2))
    endings = [ending for _, _, _, ending in results]
    print(
        f"{title:16} {len(results):5} files; slowest {slowest[1]:5.2f} s ({slowest[0]}), "
        f"largest {largest[2]:5.0f} MB ({largest[0]}); decoded {endings.count(DECODED)}, "
        f"refused {endings.count(REFUSED)}, ended for time {endings.count(TOO_SLOW)}, "
        f"for memory {endings.count(TOO_LARGE)}, by a crash {endings.count(CRASH)}"
    )


def bombs(format, share=1):
    """One in `share`, made one at a time: some have 30 MB."""
    return ((name, make()) for name, make in list(BOMBS[format]())[::share])


@pytest.mark.parametrize("format", BOMBS)
def test_some_hostile_files_of_a_format_are_done_within_the_limits(format):
    files = [*bombs(format, share=10), *mutations(format, MUTATIONS // 25)]
    check(list(run_corpus(files, SHORT)), SHORT)


@pytest.mark.soak
@pytest.mark.parametrize("format", BOMBS)
def test_hostile_files_of_a_format_are_done_within_the_limits(format, capsys):
    results = [*run_corpus(bombs(format)), *run_corpus(mutations(format, MUTATIONS, seed=1))]
    with capsys.disabled():
        print()
        tell(format, results)
    check(results)


def large_files():
    """50 megapixels, or 32 MiB, of what film there is: smooth, with some noise."""
    side = 7071
    x, y = np.meshgrid(np.linspace(0, 200, side, dtype=np.float32), np.linspace(0, 50, side, dtype=np.float32))
    noise = np.random.default_rng(0).integers(-2, 3, (side, side), dtype=np.int8)
    grey = (x + y + noise + 2).astype(np.uint8)
    rgb = Image.fromarray(np.dstack([grey, grey // 2, 255 - grey]))
    deep = Image.fromarray((np.add(x, y) * 16).astype(np.uint16))
    smooth = Image.fromarray(np.dstack([(x + y).astype(np.uint8)] * 3))
    yield "RGB PNG", encoded(smooth, "PNG", compress_level=1)
    yield "RGBA PNG", encoded(smooth.convert("RGBA"), "PNG", compress_level=1)
    yield "12-bit PNG", encoded(deep, "PNG", compress_level=1)
    yield "JPEG", encoded(rgb, "JPEG", quality=90)
    yield "progressive JPEG", encoded(rgb, "JPEG", quality=90, progressive=True, subsampling=0)
    yield "LZW TIFF", encoded(smooth, "TIFF", compression="tiff_lzw")
    yield "deflate TIFF", encoded(smooth, "TIFF", compression="tiff_adobe_deflate")
    yield "12-bit TIFF", encoded(deep, "TIFF", compression="tiff_adobe_deflate")
    yield "WebP", encoded(rgb, "WEBP", method=0)
    yield "lossless WebP", encoded(smooth, "WEBP", lossless=True, method=0, quality=0)
    yield "AVIF", encoded(rgb, "AVIF", speed=10)
    yield "GIF", encoded(smooth.getchannel(0), "GIF")
    yield "grey JPEG 2000", encoded(Image.fromarray(grey), "JPEG2000", quality_mode="rates", quality_layers=[10])
    yield "RGB JPEG 2000", encoded(smooth, "JPEG2000", quality_mode="rates", quality_layers=[40])
    yield "BMP", encoded(Image.fromarray(grey[:, :4600]), "BMP")
    yield "12-bit PGM", b"P5\n4095 4000\n4095\n" + np.asarray(deep)[:4000, :4095].astype(">u2").tobytes()


def encoded(image, format, **options):
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.soak
def test_largest_honest_files_are_within_the_limits(capsys):
    for name, file in large_files():
        results = list(run_corpus([(f"{len(file) / 2**20:.1f} MB", file)]))
        with capsys.disabled():
            print()
            tell(name, results)
        assert [ending for _, _, _, ending in results] == [DECODED]
        check(results)


@pytest.mark.parametrize("format", BOMBS)
def test_good_files_that_are_mutated_are_read(format):
    with ImageProcess(OneImage(SETTINGS), OneImage(SETTINGS).shape) as process:
        for file in good_files(format):
            assert process.run(file, (Standardization(),)).shape == (480, 480, 3)
