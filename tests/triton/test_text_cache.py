"""Texts asked before, on a real Triton with a response cache: the same answers, and none that is not theirs."""

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from medimage_server.launcher import run_triton
from tests.triton.requests import WAIT_S, bytes_input, embed_texts
from tests.waiting import wait_until

CACHE_MB = 1  # Triton's entries of 64 texts are a quarter of it


@pytest.fixture(scope="module")
def client(repository, tmp_path_factory):
    models = ["medimageinsight", "medimageinsight_text"]
    log = tmp_path_factory.mktemp("cached") / "server.log"
    with (
        run_triton(repository, models=models, text_cache_mb=CACHE_MB, log=log) as server,
        grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client,
    ):
        yield client


@pytest.fixture
def counts(client):
    """How often since the test began the cache was hit and missed, and how many texts the encoder took, once it is so.

    Triton counts a request after it has answered it.
    """

    def read():
        (cached,) = client.get_inference_statistics("text_embedding").model_stats
        (encoder,) = client.get_inference_statistics("text_encoder").model_stats
        found = cached.inference_stats
        return np.array([found.cache_hit.count, found.cache_miss.count, encoder.inference_count])

    before = read()

    def check(**expected):
        def counted():
            found = dict(zip(("hits", "misses", "encoded"), (read() - before).tolist(), strict=True))
            return {name: found[name] for name in expected}

        wait_until(lambda: counted() == expected, what=f"{expected}")

    return check


def infer(client, model, outputs=None, **columns):
    inputs = [bytes_input(name, rows) for name, rows in columns.items()]
    wanted = outputs and [grpc.InferRequestedOutput(name) for name in outputs]
    return client.infer(model, inputs, outputs=wanted, client_timeout=WAIT_S)


def test_texts_asked_again_get_the_very_same_vectors_without_inference(client, counts, triton):
    texts = [b"heart", "Röntgen".encode(), b""]
    first, again = embed_texts(client, texts), embed_texts(client, texts)
    counts(hits=1, misses=1, encoded=3)
    np.testing.assert_array_equal(again, first)
    np.testing.assert_allclose(again, embed_texts(triton.grpc, texts), rtol=0, atol=1e-5)  # of a server without cache


def test_other_order_other_number_and_other_split_of_the_same_letters_are_other_texts(client, counts):
    requests = [[b"ab", b"c"], [b"c", b"ab"], [b"a", b"bc"], [b"abc"], [b"ab"]]
    answers = {tuple(texts): embed_texts(client, texts) for texts in requests}
    counts(hits=0, misses=5, encoded=8)
    np.testing.assert_allclose(answers[b"ab", b"c"], answers[b"c", b"ab"][::-1], rtol=0, atol=1e-5)


def test_text_beside_an_image_shares_what_was_asked_without(client, counts, repository):
    drawing = (repository / "image_preprocessing/warmup/drawing").read_bytes()[4:]
    alone = embed_texts(client, [b"beside"])
    together = infer(client, "medimageinsight", image=[drawing], text=[b"beside"])
    counts(hits=1, misses=1, encoded=1)
    np.testing.assert_array_equal(together.as_numpy("text_features"), alone)
    assert together.as_numpy("image_features").shape == (1, 1024)


@pytest.mark.parametrize("column", ["text_features", "scaling_factor"])
def test_request_for_one_output_leaves_the_other_to_whoever_asks_next(client, column):
    text = [f"for {column} alone".encode()]
    part = infer(client, "medimageinsight_text", outputs=[column], text=text)
    whole = infer(client, "medimageinsight_text", text=text)
    assert {output.name for output in whole.get_response().outputs} == {"text_features", "scaling_factor"}
    np.testing.assert_array_equal(part.as_numpy(column), whole.as_numpy(column))


def test_refused_text_is_refused_again_with_its_reason(client, counts):
    for _ in range(3):
        with pytest.raises(InferenceServerException, match=r"row 1: text is not valid UTF-8") as caught:
            embed_texts(client, [b"heart", b"\xff"])
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    counts(hits=0)


def test_full_cache_drops_what_was_asked_longest_ago(client, counts):
    requests = [[f"label {request} {row}".encode() for row in range(64)] for request in range(6)]
    first = [embed_texts(client, texts) for texts in requests]
    counts(hits=0, misses=6)
    np.testing.assert_array_equal(embed_texts(client, requests[-1]), first[-1])
    counts(hits=1, misses=6)
    np.testing.assert_allclose(embed_texts(client, requests[0]), first[0], rtol=0, atol=1e-5)
    counts(hits=1, misses=7)


def test_server_without_a_cache_serves_the_same_config(triton):
    def encoded():
        (text_encoder,) = triton.grpc.get_inference_statistics("text_encoder").model_stats
        return text_encoder.inference_count

    before = encoded()
    for _ in range(2):
        embed_texts(triton.grpc, [b"asked twice"])
    wait_until(lambda: encoded() - before == 2, what="inference of both requests")
