"""Served heads against the heads themselves, on vectors that the same Triton makes."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import tritonclient.grpc as grpc
from click.testing import CliRunner

from medimage_analysis.heads.head import Head
from medimage_analysis.table import to_column, write
from medimage_client import AsyncMedImageInsight, InvalidInput, MedImageInsight, NotFound
from medimage_client.cli.group import medimage
from tests.triton.commands import png
from tests.triton.heads import ENCODER, HEADS
from tests.triton.requests import bytes_input

IMAGES = [png(seed) for seed in range(6)]  # base64
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def client(triton):
    with MedImageInsight(triton.server.url) as client:
        yield client


@pytest.fixture(scope="module")
def vectors(client):
    return client.embed_images(IMAGES)


def runs(triton, model):
    """How often a model has run, and on how many images, or of an ensemble requests, since it was loaded."""
    (stats,) = triton.grpc.get_inference_statistics(model, as_json=True)["model_stats"]
    return int(stats.get("execution_count", 0)), int(stats.get("inference_count", 0))


def test_one_head_answers_images_by_its_ensemble(triton, client, vectors):
    before = runs(triton, "cxr_findings")
    found = client.classify(IMAGES, head="cxr_findings")
    assert found.labels == ["Mass", "Erguß", "No Finding"]
    np.testing.assert_allclose(found.scores, HEADS["cxr_findings"].scores(vectors), atol=TOLERANCE)
    assert runs(triton, "cxr_findings")[1] > before[1]


async def test_several_heads_share_one_run_of_the_encoder(triton, vectors):
    before = runs(triton, "image_encoder")
    async with AsyncMedImageInsight(triton.server.url) as client:
        found = await client.classify(IMAGES, head=["cxr_findings", "views"])
    assert runs(triton, "image_encoder")[1] == before[1] + len(IMAGES)
    for name, head in HEADS.items():
        assert found[name].labels == head.labels
        np.testing.assert_allclose(found[name].scores, head.scores(vectors), atol=TOLERANCE)


def test_images_of_a_head_are_in_one_batch_with_others(triton, client):
    before = runs(triton, "image_encoder")
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(client.embed_images, [IMAGES[0]]) for _ in range(8)]
        asked += [threads.submit(client.classify, [IMAGES[1]], head="cxr_findings") for _ in range(8)]
        answers = [future.result() for future in asked]
    after = runs(triton, "image_encoder")
    assert after[1] - before[1] == 16
    assert after[0] - before[0] < 16
    want = HEADS["cxr_findings"].scores(client.embed_images([IMAGES[1]]))
    for found in answers[8:]:
        np.testing.assert_allclose(found.scores, want, atol=TOLERANCE)


@pytest.mark.parametrize("model", ["cxr_findings", "cxr_findings_head"])
def test_tritons_own_classification_knows_the_labels(triton, vectors, model):
    if model == "cxr_findings":
        inputs = [bytes_input("image", [IMAGES[0].encode()])]
    else:
        inputs = [grpc.InferInput("image_features", [1, 1024], "FP32")]
        inputs[0].set_data_from_numpy(vectors[:1])
    answer = triton.grpc.infer(model, inputs, outputs=[grpc.InferRequestedOutput("scores", class_count=2)])
    found = [entry.decode().split(":") for entry in answer.as_numpy("scores").ravel()]
    scores = HEADS["cxr_findings"].scores(vectors[:1])[0]
    best = np.argsort(-scores)[:2]
    assert [(int(index), label) for _, index, label in found] == [(i, HEADS["cxr_findings"].labels[i]) for i in best]
    np.testing.assert_allclose([float(score) for score, *_ in found], scores[best], atol=1e-4)


def test_a_bad_image_and_a_head_that_is_not_there_are_told(client):
    with pytest.raises(InvalidInput, match=r"images\[1\]"):
        client.classify([IMAGES[0], b"no image"], head="cxr_findings")
    with pytest.raises(NotFound):
        client.classify(IMAGES[:1], head="nowhere")


def test_head_of_texts_scores_as_classify_does(triton, client, vectors, tmp_path):
    prompts = {"chest": ["x-ray chest anteroposterior No Finding", "x-ray chest"], "hand": ["x-ray hand"]}
    lines = [f"{label},{text}" for label, texts in prompts.items() for text in texts]
    (tmp_path / "prompts.csv").write_text("\n".join(["label,prompt", *lines]))
    ids = [f"{n}" for n in range(len(vectors))]
    write(tmp_path / "vectors", pa.table({"id": ids, "image_features": to_column(vectors)}), ENCODER)
    command = ["head", "train", tmp_path / "vectors", "--kind", "zeroshot", "--prompts", tmp_path / "prompts.csv"]
    command = [*map(str, command), "--url", triton.server.url]
    done = CliRunner().invoke(medimage, [*command, "--to", str(tmp_path / "head")])
    assert done.exit_code == 0, done.output
    head = Head.load(tmp_path / "head")
    np.testing.assert_allclose(head.scores(vectors), client.classify(vectors, prompts), atol=TOLERANCE)
    other = replace(ENCODER, checkpoint="1" * 64)
    write(tmp_path / "others", pa.table({"id": ids, "image_features": to_column(vectors)}), other)
    command[2] = str(tmp_path / "others")
    done = CliRunner().invoke(medimage, [*command, "--to", str(tmp_path / "another")])
    assert done.exit_code == 1 and "vectors of two models cannot be compared" in done.output


def test_command_shows_one_head_or_several(triton, vectors, tmp_path):
    for n, image in enumerate(IMAGES[:2]):
        (tmp_path / f"{n}.png").write_bytes(base64.b64decode(image))
    command = ["classify", str(tmp_path), "--url", triton.server.url, "--json"]
    one = json.loads(CliRunner().invoke(medimage, [*command, "--head", "views"]).stdout)
    want = HEADS["views"].scores(vectors[:2])
    assert [row["scores"]["lateral"] for row in one] == pytest.approx(want[:, 1].tolist(), abs=TOLERANCE)
    both = json.loads(CliRunner().invoke(medimage, [*command, "--head", "views", "--head", "cxr_findings"]).stdout)
    for row, same in zip(both["views"], one, strict=True):
        assert row["image"] == same["image"] and row["scores"] == pytest.approx(same["scores"], abs=TOLERANCE)
    assert [*both] == ["views", "cxr_findings"]
