"""The worked example of docs/finetuning.md to its end: trained, exported, and served as Azure's classifier is."""

import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from medimage_client import MedImageInsight
from medimage_export.medimageinsight.checkpoint import find_checkpoint, load_model
from medimage_export.medimageinsight.export import export_medimageinsight
from medimage_export.medimageinsight.tokenizer import build_tokenizer
from medimage_export.phantoms import CAPTIONS, UNFAMILIAR_CAPTIONS
from medimage_export.repository import copy_unexported
from medimage_server.launcher import run_triton
from medimage_server.text_tokenizer import TextTokenizer
from medimage_training.batches import tokens_of
from medimage_training.config import read_fine_tuning
from medimage_training.examples import Example
from medimage_training.images import ServedImages
from medimage_training.trainer import fine_tune
from medimage_training.unicl import encode_pixels
from tests.paths import REPOSITORY, ROOT

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawings")
    subprocess.run([sys.executable, ROOT / "examples" / "finetuning_images.py", folder], check=True)
    config = folder / "train.yaml"
    config.write_text(config.read_text().replace("WORKERS: 0", "WORKERS: 1"))
    fine_tune(read_fine_tuning(config), say=lambda line: None)
    return folder


def test_new_captions_are_learnt_and_the_old_ones_kept(drawings):
    report = json.loads((drawings / "finetuned" / "report.json").read_text())
    before, last = report["new"]["before"], report["new"]["last"]
    assert len(report["new"]["labels"]) == len(UNFAMILIAR_CAPTIONS) == 6
    assert before["accuracy"] < 0.3 and last["accuracy"] > 0.5
    assert len(report["old"]["labels"]) == len(CAPTIONS)
    assert report["old"]["last"]["accuracy"] > report["old"]["before"]["accuracy"] - 0.1


def test_served_classifier_answers_by_azures_formula(drawings, tmp_path):
    """softmax(exp(scale) x cosine) over the prompts `label.`, as its zero-shot wrapper computes it."""
    package = drawings / "finetuned" / "classifier"
    repository = copy_unexported(REPOSITORY, tmp_path / "models")
    export_medimageinsight(package, repository)
    with (package / "artifacts/checkpoints/prompts.csv").open(newline="") as file:
        prompts = {row["label"]: [row["prompt"]] for row in csv.DictReader(file)}
    files = sorted((drawings / "images").glob("*_20000.png"))[:6]
    with run_triton(repository, log=tmp_path / "triton.log") as server, MedImageInsight(server.url) as client:
        served = client.classify(files, labels=prompts)

    checkpoint = find_checkpoint(package)
    model, tokenizer = load_model(checkpoint), TextTokenizer(build_tokenizer(checkpoint.tokenizer, 77))
    images = ServedImages((480, 480))
    pixels = np.stack([images.pixels(Example(file.name, "", "", file.name, file)) for file in files])
    labels = json.loads((package / "artifacts/checkpoints/config.json").read_text())["labels"]
    with torch.no_grad():
        vectors, _ = encode_pixels(model, torch.from_numpy(pixels))
        texts = model.encode_text(*tokens_of(tokenizer, [f"{label}." for label in labels]))
        expected = (math.exp(model.logit_scale) * vectors @ texts.T).softmax(dim=-1).numpy()
    np.testing.assert_allclose(served, expected, atol=1e-3)
