"""Zero-shot classification of drawings that the phantom checkpoint has never seen, by each precision of it.

The set has a long tail, as clinical sets have, so that balanced accuracy says something that accuracy does not: each
exam has twice as many drawings without a finding as with each of its findings.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from medimage_export.medimageinsight.reference import UniCL
from medimage_export.phantoms import CAPTIONS, TEST_SEEDS, phantom
from medimage_export.phantoms.generator import EXAMS
from medimage_server.text_tokenizer import TextTokenizer
from perf.cases.suite.baselines import Encode, ImageEncoder, TextEncoder, eager, in_dtype
from perf.cases.suite.device import SHORT, Device, Precision, runtime_of
from perf.cases.suite.rounds import difference
from perf.cases.suite.sessions import rounded, session
from perf.cases.suite.whole_path import reference_pixels, served_profile

BATCH = 50
NORMAL = 100  # drawings of a study without a finding: 1,450 in all, so that one of them is 0.07 points of accuracy
FINDING = 50  # and one of these 0.10 points of balanced accuracy


@dataclass(frozen=True)
class Drawing:
    caption: str
    seed: int


@dataclass(frozen=True)
class Encoders:
    """Both encoders in one precision."""

    image: Encode
    text: Encode


def drawings(normal: int, finding: int) -> list[Drawing]:
    """Seeds from TEST_SEEDS on, of which the checkpoint was shown none."""
    return [
        Drawing(f"{exam} {condition}", TEST_SEEDS.start + number)
        for exam, (_, conditions) in EXAMS.items()
        for condition in conditions
        for number in range(normal if condition == conditions[0] else finding)
    ]


def encoders(model: UniCL, repositories: Mapping[Precision, Path], device: Device) -> dict[str, Encoders]:
    """The PyTorch model in fp32, in the dtype of the device's baseline, then each exported precision of it."""
    candidates = {}
    for dtype in dict.fromkeys(("float32", device.eager[0])):
        weights = in_dtype(model, dtype, device.torch)
        candidates[f"PyTorch eager {SHORT[dtype]}"] = Encoders(
            eager(ImageEncoder(weights).eval(), device.torch), eager(TextEncoder(weights).eval(), device.torch)
        )
    for precision, repository in repositories.items():
        image, text = (
            rounded(repository, name)
            if precision == "fp16" and device.torch == "cpu"
            else session(repository, name, device)
            for name in ("image_encoder", "text_encoder")
        )
        candidates[runtime_of(precision)] = Encoders(image, text)
    return candidates


def evaluate(
    candidates: Mapping[str, Encoders], test_set: Sequence[Drawing], repository: Path, logit_scale: float
) -> dict[str, dict[str, float | int]]:
    """Accuracy, balanced accuracy and macro one-vs-rest AUC of each candidate, as fractions, on the same pixels.

    `repository` says how images are preprocessed and texts are tokenised. Compared with the first candidate:
    `changed_answers`, drawings that get another caption, and the least cosine of an image's vectors.
    """
    tokenizer = TextTokenizer.from_file(repository / "text_tokenizer" / "1" / "tokenizer.json")
    tokens = tokenizer([caption.encode() for caption in CAPTIONS])
    labels = {name: candidate.text(*tokens) for name, candidate in candidates.items()}
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in candidates}
    for pixels in batches(test_set, served_profile(repository)):
        for name, candidate in candidates.items():
            vectors[name].append(candidate.image(pixels))

    truth = np.array([CAPTIONS.index(drawing.caption) for drawing in test_set])
    images = {name: np.concatenate(parts) for name, parts in vectors.items()}
    probabilities = {name: zero_shot(images[name], labels[name], logit_scale) for name in candidates}
    reference = next(iter(candidates))
    return {
        name: metrics(truth, found)
        | {
            "changed_answers": int((found.argmax(1) != probabilities[reference].argmax(1)).sum()),
            "min_cosine": difference(images[reference], images[name])[1],
        }
        for name, found in probabilities.items()
    }


def batches(test_set: Sequence[Drawing], profile: str) -> Iterator[np.ndarray]:
    """The drawings as the image encoder takes them, (B, 480, 480, 3) uint8."""

    def pixels(drawing: Drawing) -> np.ndarray:
        return reference_pixels(Image.fromarray(phantom(drawing.caption, drawing.seed).image), profile)

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(test_set), BATCH):
            yield np.concatenate(list(pool.map(pixels, test_set[start : start + BATCH])))


def zero_shot(images: np.ndarray, texts: np.ndarray, logit_scale: float) -> np.ndarray:
    """Probabilities (images, texts) of the softmax over the texts, in float64, where they do not tie at 0."""
    logits = np.exp(logit_scale) * (images.astype(np.float64) @ texts.astype(np.float64).T)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def metrics(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Of the classes 0..n-1, each of which occurs in `truth`."""
    answers = probabilities.argmax(axis=1)
    return {
        "accuracy": float(accuracy_score(truth, answers)),
        "balanced_accuracy": float(balanced_accuracy_score(truth, answers)),
        "macro_auc": float(roc_auc_score(truth, probabilities, multi_class="ovr", average="macro")),
    }
