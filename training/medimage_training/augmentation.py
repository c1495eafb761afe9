"""What a training image is put through before it is shown: crop, one random change, flips, an erased rectangle.

The crop and the erasing are those of torchvision's `RandomResizedCrop` and `RandomErasing`; the change is
TrivialAugment (https://arxiv.org/abs/2103.10158) over its wide space. Written with Pillow, since each torchvision wants
one version of PyTorch.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from medimage_training.config import Augmentation

Pixels = NDArray[np.uint8]  # (height, width, 3) RGB
ATTEMPTS = 10  # to find a crop that fits, as in torchvision
ERASED_AREA = (0.02, 0.33)  # share of the picture; torchvision's default, as the next
ERASED_RATIO = (0.3, 3.3)
GREY = (124, 116, 104)  # the mean colour of IMAGE_MEAN, which normalises to 0


def augment(image: Image.Image, size: tuple[int, int], options: Augmentation, rng: np.random.Generator) -> Pixels:
    """An RGB image of any size -> (height, width, 3) uint8 of `size`, which is (height, width)."""
    image = random_crop(image, size, options, rng)
    if options.trivial_augment:
        image = trivial_augment(image, rng)
    if rng.random() < options.horizontal_flip:
        image = ImageOps.mirror(image)
    if rng.random() < options.vertical_flip:
        image = ImageOps.flip(image)
    pixels = np.array(image)
    if rng.random() < options.erasing:
        erase(pixels, rng)
    return pixels


def random_crop(
    image: Image.Image, size: tuple[int, int], options: Augmentation, rng: np.random.Generator
) -> Image.Image:
    """A part of random area and shape, resized; the largest part of an allowed shape if none was found."""
    width, height = image.size
    for _ in range(ATTEMPTS):
        area = width * height * rng.uniform(*options.scale)
        ratio = log_uniform(options.ratio, rng)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            break
    else:
        ratio = min(max(width / height, options.ratio[0]), options.ratio[1])
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        left, top = (width - w) // 2, (height - h) // 2
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))


def log_uniform(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    """As likely to be below 1 as above it, if the bounds are one another's inverse."""
    low, high = bounds
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def erase(pixels: Pixels, rng: np.random.Generator) -> None:
    """Put a grey rectangle somewhere, in place."""
    height, width = pixels.shape[:2]
    for _ in range(ATTEMPTS):
        area = width * height * rng.uniform(*ERASED_AREA)
        ratio = log_uniform(ERASED_RATIO, rng)
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < height and w < width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            pixels[top : top + h, left : left + w] = GREY
            return


def trivial_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """One of CHANGES, of a random strength."""
    change = CHANGES[rng.integers(len(CHANGES))]
    strength = rng.integers(31) / 30  # torchvision has as many steps
    return change(image, strength, rng.choice((-1.0, 1.0)))


def affine(a: float, b: float, c: float, d: float) -> tuple[float, ...]:
    return a, b, 0.0, c, d, 0.0


def moved(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Each place of the result is taken from (a x + b y + c, d x + e y + f) of the image, from its top left corner."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


# (image, strength from 0 to 1, sign) -> image; the largest strengths are those of the wide space
Change = Callable[[Image.Image, float, float], Image.Image]
CHANGES: tuple[Change, ...] = (
    lambda image, strength, sign: image,
    lambda image, strength, sign: moved(image, affine(1, 0.99 * sign * strength, 0, 1)),  # shear
    lambda image, strength, sign: moved(image, affine(1, 0, 0.99 * sign * strength, 1)),
    lambda image, strength, sign: moved(image, (1, 0, 32 * sign * strength, 0, 1, 0)),  # pixels
    lambda image, strength, sign: moved(image, (1, 0, 0, 0, 1, 32 * sign * strength)),
    lambda image, strength, sign: image.rotate(135 * sign * strength, Image.Resampling.BILINEAR),  # degrees
    lambda image, strength, sign: ImageEnhance.Brightness(image).enhance(1 + 0.99 * sign * strength),
    lambda image, strength, sign: ImageEnhance.Color(image).enhance(1 + 0.99 * sign * strength),
    lambda image, strength, sign: ImageEnhance.Contrast(image).enhance(1 + 0.99 * sign * strength),
    lambda image, strength, sign: ImageEnhance.Sharpness(image).enhance(1 + 0.99 * sign * strength),
    lambda image, strength, sign: ImageOps.posterize(image, 8 - round(6 * strength)),  # bits
    lambda image, strength, sign: ImageOps.solarize(image, 255 - round(255 * strength)),
    lambda image, strength, sign: ImageOps.autocontrast(image),
    lambda image, strength, sign: ImageOps.equalize(image),
)
