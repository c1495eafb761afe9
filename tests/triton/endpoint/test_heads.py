"""Heads behind the endpoint: Azure's answer of a fine-tuned deployment, and our client of it."""

import json
from http.client import HTTPConnection

import numpy as np
import pytest

from medimage_client import InvalidInput, MedImageInsight
from tests.triton.commands import png, question
from tests.triton.endpoint.raw_http import KEY
from tests.triton.heads import HEADS

IMAGES = [png(seed) for seed in range(2)]


@pytest.fixture(scope="module")
def vectors(triton):
    with MedImageInsight(triton.server.url) as client:
        return client.embed_images(IMAGES)


def ask(endpoint, path, body, **headers):
    connection = HTTPConnection(*endpoint.address, timeout=30)
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}", **headers}
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def test_path_or_header_of_a_head_answers_sorted_labels(endpoint, vectors):
    body = question(["image"], [[image] for image in IMAGES])
    status, answer = ask(endpoint, "/cxr_findings/score", body)
    assert status == 200
    head = HEADS["cxr_findings"]
    for row, scores in zip(answer, head.scores(vectors), strict=True):
        assert [entry["label"] for entry in row] == [head.labels[i] for i in np.argsort(-scores)]
        assert [entry["score"] for entry in row] == pytest.approx(np.sort(scores)[::-1].tolist(), abs=1e-5)
        assert all([*entry] == ["label", "score"] for entry in row)
    assert ask(endpoint, "/score", body, **{"azureml-model-deployment": "cxr_findings"}) == (200, answer)
    assert ask(endpoint, "/cxr_findings/score", question(["image"], [])) == (200, [])


def test_bad_cells_of_a_head_are_named(endpoint):
    status, answer = ask(endpoint, "/views/score", question(["image"], [[IMAGES[0]], ["bm8gaW1hZ2U="]]))
    assert (status, answer["row"], answer["column"]) == (400, 1, "image")
    status, answer = ask(endpoint, "/views/score", question(["image"], [[""]]))
    assert (status, answer["row"]) == (400, 0) and "is empty" in answer["message"]
    status, answer = ask(endpoint, "/views/score", question(["image", "text"], [[IMAGES[0], "a"]]))
    assert status == 400 and "'columns'" in answer["message"]
    assert ask(endpoint, "/nowhere/score", question(["image"], []))[0] == 404


def test_client_of_a_scoring_uri_asks_each_head(endpoint, vectors):
    host, port = endpoint.address
    with MedImageInsight(f"http://{host}:{port}/score", api_key=KEY) as client:
        found = client.classify(IMAGES, head=["cxr_findings", "views"])
        with pytest.raises(InvalidInput, match="takes images, not embeddings"):
            client.classify(vectors, head="views")
    for name, head in HEADS.items():
        assert found[name].labels == sorted(head.labels)
        order = [head.labels.index(label) for label in found[name].labels]
        np.testing.assert_allclose(found[name].scores, head.scores(vectors)[:, order], atol=1e-5)
