"""What a run leaves: folders of the published layout, which `medimage export` takes, and a classifier package."""

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from medimage_export.medimageinsight.checkpoint import CheckpointFiles
from medimage_training.examples import Example

WEIGHTS = "medimageinsigt-v1.0.0.pt"  # the published name, typing error and all; safetensors in spite of it
MANIFEST = "finetuning.json"
PACKAGE = Path("artifacts") / "checkpoints"  # in an MLflow package


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when all is on disk; else what is there stays."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_checkpoint(
    folder: Path, base: CheckpointFiles, weights: Mapping[str, Tensor], manifest: Mapping[str, Any]
) -> None:
    """Write weights with the base's config and tokenizer. The weights come last, and their hash is in the manifest."""
    tokenizer = folder / "language_model" / base.tokenizer.name
    for target in (tokenizer, folder / "vision_model"):
        target.mkdir(parents=True, exist_ok=True)
    for file in base.tokenizer.iterdir():
        if file.is_file():
            shutil.copyfile(file, tokenizer / file.name)
    shutil.copyfile(base.config, folder / "config.yaml")
    path = folder / "vision_model" / WEIGHTS
    with replacing(path) as partial:
        save_file({name: tensor.detach().float().cpu().contiguous() for name, tensor in weights.items()}, partial)
        digest = sha256(partial)
    write_text(folder / MANIFEST, json.dumps({**manifest, "sha256": digest}, indent=2, ensure_ascii=False) + "\n")


def write_classifier(folder: Path, checkpoint: Path, labels: Sequence[str]) -> None:
    """A checkpoint with its labels, in the layout of the Azure pipeline's second output.

    Its endpoint embeds the text `label.` of each label once and answers the softmax of exp(logit scale) times cosine
    (Azure/azureml-assets, medimageinsight_zero_shot_classification_mlflow_wrapper.py). `prompts.csv` has those texts,
    for commands that take labels. Microsoft's own code for MLflow is not in it.
    """
    inner = folder / PACKAGE
    for source in checkpoint.rglob("*"):
        target = inner / source.relative_to(checkpoint)
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif not source.name.startswith("."):
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(source, target)
    write_text(inner / "config.json", json.dumps({"labels": [*labels]}, indent=4, ensure_ascii=False) + "\n")
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("label", "prompt"), *((label, f"{label}.") for label in labels)])
    write_text(inner / "prompts.csv", text.getvalue())


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under two names: weights have 2.5 GB."""
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_hash(examples: Sequence[Example], digests: Sequence[bytes]) -> str:
    """Of the images and what is said of them, in their order; wherever the files lie."""
    whole = hashlib.sha256()
    for example, digest in zip(examples, digests, strict=True):
        whole.update(digest + json.dumps([example.label, example.text]).encode())
    return whole.hexdigest()
