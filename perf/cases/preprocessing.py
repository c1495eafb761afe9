"""How long does an image file take to become the encoder's pixels, and would another library do it faster?

Unit: milliseconds of processor time, one thread, so that what else the machine does counts less; medians of rounds in
which all that is compared takes turns. "Plain" is the same result by Pillow's calls spelled out, as a client of the
model's own code would write them; "inflate" is zlib alone on the data of the PNG, below which no decoder on that zlib
can come. Phantoms, with noise in the bits that they lack.

Other libraries are measured where they are installed; the product needs none of them:
    pip install opencv-python-headless pyvips-binary pyvips imagecodecs simplejpeg
"""

import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from io import BytesIO
from types import ModuleType

import click
import numpy as np
from PIL import Image

from medimage_server.image_preprocessing import ImagePreprocessor, ImageSettings
from perf import tables
from perf.measure import Report, quick_option, side_by_side
from perf.pictures import film

Calls = Mapping[str, Callable[[], object]]

SIZES = ((512, 512), (1024, 1024), (2048, 2048), (2500, 3000))  # (width, height)
STANDARD = (512, 512)  # of the azure profile
RESIZED = SIZES[2]  # to it, by every library
SHRINK = [side / standard for side, standard in zip(RESIZED, STANDARD, strict=True)]
JPEG_QUALITY = 90  # of the files; the profile's own is 75
ROUNDS = 9  # measured, after one that is not
SETTINGS = ImageSettings(
    profile="azure",
    max_encoded_bytes=2**25,
    max_pixels=50_000_000,
    image_size=(480, 480),
    interpolation=Image.Resampling.BICUBIC,
)


@click.command()
@quick_option
@click.option("--rounds", default=ROUNDS, show_default=True, help="Measured rounds of each case.")
def main(quick: bool, rounds: int) -> None:
    """Measure the preprocessing of image files, step by step, and libraries that could take a step over."""
    sizes = SIZES[:1] if quick else SIZES
    libraries = {name: module for name in ("cv2", "pyvips", "imagecodecs", "simplejpeg") if (module := library(name))}
    versions = {name: str(getattr(module, "__version__", "?")) for name, module in libraries.items()}
    report = Report("preprocessing", quick=quick)
    report.put(libraries=versions, rounds=rounds)
    files = []
    for width, height in sizes:
        for kind, file in encoded(film(width, height)):
            check_equal(file)
            times = {
                "path": processor_time(path(file), rounds),
                "decode": processor_time(decoders(file, libraries), rounds),
            }
            files.append({"image": f"{width} x {height} {kind}", "bytes": len(file), **times})
            report.put(files=files)
            print(files[-1]["image"])
    resize = [
        {"image": name, "resize": processor_time(calls, rounds), "max_difference": differences(calls)}
        for name, calls in resizers(libraries)
    ]
    report.put(resize=resize)
    print(tables.of("preprocessing", report.content))


def processor_time(calls: Calls, rounds: int) -> dict[str, dict[str, float]]:
    """Median and spread of each call in milliseconds."""
    return {name: found.spread() for name, found in side_by_side(calls, rounds, clock=time.process_time).items()}


def library(name: str) -> ModuleType | None:
    """A library held to one thread, or None where it is not installed."""
    try:
        module = import_module(name)
    except ImportError:
        return None
    if name == "cv2":
        module.setNumThreads(1)
    if name == "pyvips":
        module.vips_lib.vips_concurrency_set(1)
        module.cache_set_max(0)  # or the second round would be no work
    return module


def encoded(grey: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """The same picture in the files that X-rays come in: a name and the bytes."""
    noise = np.random.default_rng(0).integers(0, 2**8, grey.shape, dtype=np.uint16)
    deep = grey.astype(np.uint16) << 8 | noise
    rgb = Image.fromarray(grey).convert("RGB")
    for name, image, format in (
        ("8-bit grey PNG", Image.fromarray(grey), "PNG"),
        ("12-bit grey PNG", Image.fromarray(deep >> 4), "PNG"),
        ("16-bit grey PNG", Image.fromarray(deep), "PNG"),
        ("RGB PNG", rgb, "PNG"),
        ("grey JPEG", Image.fromarray(grey), "JPEG"),
        ("RGB JPEG", rgb, "JPEG"),
    ):
        file = BytesIO()
        image.save(file, format, **({"quality": JPEG_QUALITY} if format == "JPEG" else {}))
        yield name, file.getvalue()


def plain(file: bytes) -> np.ndarray:
    """The azure profile by Pillow's calls alone; deep grey by a table over its bit range."""
    image: Image.Image = Image.open(BytesIO(file))
    if image.mode == "I;16":
        values = np.asarray(image)
        white = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if values.max() < 2**bits)
        image = Image.fromarray(((np.arange(white + 1) * 255 + white // 2) // white).astype(np.uint8)[values])
    jpeg = BytesIO()
    image.resize(STANDARD).convert("RGB").save(jpeg, "JPEG", quality=75)
    return np.asarray(Image.open(jpeg).convert("RGB").resize((480, 480), Image.Resampling.BICUBIC))


def check_equal(file: bytes) -> None:
    """Raise unless ours gives the pixels of the plain calls: a faster path to others would be no gain."""
    np.testing.assert_array_equal(ImagePreprocessor(SETTINGS)([file], {})[0], plain(file))


def path(file: bytes) -> Calls:
    """The whole way, plain and ours, its two large steps, and the floor of PNG."""
    preprocess, image = ImagePreprocessor(SETTINGS), SETTINGS.decode(file)
    calls = {
        "plain": lambda: plain(file),
        "ours": lambda: preprocess([file], {}),
        "decode": lambda: SETTINGS.decode(file),
        "resize": lambda: image.resize(STANDARD),
    }
    if data := png_data(file):
        calls["inflate"] = lambda: zlib.decompress(data)
    return calls


def png_data(file: bytes) -> bytes:
    """The compressed pixels of a PNG (its IDAT chunks); nothing of another file."""
    found, position = [], len(b"\x89PNG\r\n\x1a\n")
    if not file.startswith(b"\x89PNG"):
        return b""
    while position < len(file):
        length, kind = struct.unpack_from(">I4s", file, position)
        found.append(file[position + 8 : position + 8 + length] if kind == b"IDAT" else b"")
        position += 12 + length
    return b"".join(found)


def decoders(file: bytes, libraries: Mapping[str, ModuleType]) -> Calls:
    """File to pixels of its own depth, by Pillow and by each library that can."""
    calls: dict[str, Callable[[], object]] = {"Pillow": lambda: Image.open(BytesIO(file)).load()}
    is_png = file.startswith(b"\x89PNG")
    if cv2 := libraries.get("cv2"):
        calls["OpenCV"] = lambda: cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    if pyvips := libraries.get("pyvips"):
        calls["libvips"] = lambda: pyvips.Image.new_from_buffer(file, "").numpy()
    if imagecodecs := libraries.get("imagecodecs"):
        calls["imagecodecs"] = lambda: (imagecodecs.png_decode if is_png else imagecodecs.jpeg_decode)(file)
    if (simplejpeg := libraries.get("simplejpeg")) and not is_png:
        colour = "GRAY" if Image.open(BytesIO(file)).mode == "L" else "RGB"
        calls["simplejpeg"] = lambda: simplejpeg.decode_jpeg(file, colour)
    return calls


def resizers(libraries: Mapping[str, ModuleType]) -> Iterator[tuple[str, Calls]]:
    """A large grey image to the standard size: Pillow's bicubic, which is the truth, and what comes near it."""
    width, height = RESIZED
    noise = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    ramp = np.add.outer(np.linspace(0, 128, height), np.linspace(0, 127, width)).astype(np.uint8)
    for name, pixels in (("film", film(width, height)), ("noise", noise), ("gradient", ramp)):
        image = Image.fromarray(pixels)
        calls: dict[str, Callable[[], object]] = {
            "Pillow": lambda image=image: image.resize(STANDARD),
            "Pillow, reducing_gap=2": lambda image=image: image.resize(STANDARD, reducing_gap=2.0),
        }
        if cv2 := libraries.get("cv2"):
            calls["OpenCV, area"] = lambda pixels=pixels, cv2=cv2: cv2.resize(
                pixels, STANDARD, interpolation=cv2.INTER_AREA
            )
        if pyvips := libraries.get("pyvips"):
            source = pyvips.Image.new_from_array(pixels)
            calls["libvips, cubic"] = lambda source=source: source.reduce(*SHRINK, kernel="cubic").numpy()
        yield name, calls


def differences(calls: Calls) -> dict[str, int]:
    """The largest difference in grey levels from the first call's pixels."""
    results = {name: np.asarray(call()).astype(int) for name, call in calls.items()}
    truth = next(iter(results.values()))
    return {name: int(np.abs(result - truth).max()) for name, result in results.items()}
