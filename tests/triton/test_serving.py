"""MedImageInsight on a real Triton, by raw gRPC and HTTP, against PyTorch and Pillow."""

import base64
from contextlib import closing
from http.client import HTTPConnection
from io import BytesIO

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpc
import tritonclient.http as http
from PIL import Image, ImageDraw
from tokenizers import Tokenizer
from tritonclient.utils import InferenceServerException

from medimage_export.medimageinsight.checkpoint import find_checkpoint, load_model
from medimage_export.medimageinsight.reference import ImageEncoderReference, TextEncoderReference
from tests.paths import PHANTOM_CHECKPOINT
from tests.triton.requests import WAIT_S, Answers, array_input, bytes_input, embed_images, embed_texts
from tests.waiting import wait_until

MODELS = [
    "medimageinsight",
    "medimageinsight_image",
    "medimageinsight_text",
    "image_preprocessing",
    "image_encoder",
    "text_tokenizer",
    "text_encoder",
]
CAPTIONS = [b"x-ray chest anteroposterior Pneumonia", b"", "Röntgen Thorax".encode()]
TOLERANCE = 1e-5  # on numbers of unit vectors; the export's own bound


def drawn_png(seed):
    """An ellipse on noise: an image that no other seed gives."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 64, (300, 200), dtype=np.uint8))
    x, y = random.integers(20, 100, 2).tolist()
    ImageDraw.Draw(image).ellipse((x, y, x + 60, y + 90), fill=220)
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def pytorch():
    return load_model(find_checkpoint(PHANTOM_CHECKPOINT)).eval()


@pytest.mark.parametrize("model", MODELS)
def test_model_is_ready_over_grpc_and_http(triton, model):
    assert triton.grpc.is_model_ready(model)
    assert triton.http.is_model_ready(model)


@torch.no_grad()
def test_image_encoder_gives_pytorchs_vectors(triton, pytorch):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 480, 480, 3), dtype=np.uint8)
    answer = triton.grpc.infer("image_encoder", [array_input("pixels", pixels, "UINT8")])
    features, scaling_factor = ImageEncoderReference(pytorch)(torch.from_numpy(pixels))
    np.testing.assert_allclose(answer.as_numpy("image_features"), features.numpy(), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(answer.as_numpy("scaling_factor"), scaling_factor.numpy(), rtol=1e-6)


@torch.no_grad()
def test_texts_get_pytorchs_vectors(triton, pytorch, repository):
    tokenizer = Tokenizer.from_file(str(repository / "text_tokenizer/1/tokenizer.json"))
    encodings = tokenizer.encode_batch([caption.decode() for caption in CAPTIONS])
    ids = torch.tensor([encoding.ids for encoding in encodings])
    mask = torch.tensor([encoding.attention_mask for encoding in encodings])
    features, _ = TextEncoderReference(pytorch)(ids, mask)
    np.testing.assert_allclose(embed_texts(triton.grpc, CAPTIONS), features.numpy(), rtol=0, atol=TOLERANCE)


def test_image_and_text_together_give_what_each_gives_alone(triton):
    images = [drawn_png(seed) for seed in range(3)]
    answer = triton.grpc.infer("medimageinsight", [bytes_input("image", images), bytes_input("text", CAPTIONS)])
    together = answer.as_numpy("image_features"), answer.as_numpy("text_features")
    np.testing.assert_allclose(together[0], embed_images(triton.grpc, images), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(together[1], embed_texts(triton.grpc, CAPTIONS), rtol=0, atol=TOLERANCE)
    assert answer.as_numpy("scaling_factor").shape == (3, 1)


def test_bad_images_among_concurrent_requests_take_no_neighbour_down(triton):
    images = {seed: drawn_png(seed) for seed in range(8)}
    alone = {seed: embed_images(triton.grpc, [image]) for seed, image in images.items()}
    assert np.abs(alone[0] - alone[1]).max() > 10 * TOLERANCE  # or a mix-up would pass
    answers = Answers(triton.grpc, "medimageinsight_image")
    for seed, image in images.items():
        answers.send(seed, [bytes_input("image", [image])])
        answers.send("bad", [bytes_input("image", [b"\x89PNG\r\n\x1a\n cut short"])])
    for key, result, error in answers.take(2 * len(images)):
        if key == "bad":
            assert error.status() == "StatusCode.INVALID_ARGUMENT"
            assert "row 0: " in error.message()
        else:
            np.testing.assert_allclose(result.as_numpy("image_features"), alone[key], rtol=0, atol=TOLERANCE)


def test_waiting_images_are_preprocessed_one_request_at_a_time(triton):
    """Batched, they would wait for each other in one process while the other had nothing to do."""

    def counts():
        (statistics,) = triton.grpc.get_inference_statistics("image_preprocessing").model_stats
        return np.array([statistics.inference_count, statistics.execution_count])

    before = counts()
    answers = Answers(triton.grpc, "image_preprocessing")
    for seed in range(40):
        answers.send(seed, [bytes_input("image", [drawn_png(seed)])])
    assert [error for _, _, error in answers.take(40)] == [None] * 40
    wait_until(lambda: (counts() - before).tolist() == [40, 40], what="40 executions of one request")


@pytest.mark.parametrize("model", ["image_preprocessing", "medimageinsight_image"])
def test_bad_image_in_a_request_is_refused_by_its_row(triton, model):
    with pytest.raises(InferenceServerException, match=r"row 1: ") as caught:
        triton.grpc.infer(model, [bytes_input("image", [drawn_png(0), b"no image", drawn_png(1)])])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("model", ["medimageinsight_text", "medimageinsight"])
def test_text_that_is_not_utf8_is_refused_by_its_row(triton, model):
    inputs = [bytes_input("text", [b"heart", "Röntgen".encode("latin-1")])]
    if model == "medimageinsight":
        inputs.append(bytes_input("image", [drawn_png(0), drawn_png(1)]))
    with pytest.raises(InferenceServerException, match=r"row 1: .*UTF-8") as caught:
        triton.grpc.infer(model, inputs)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_bad_image_over_http_is_status_400(triton):
    with pytest.raises(InferenceServerException, match="row 0: ") as caught:
        triton.http.infer("medimageinsight_image", [bytes_input("image", [b"no image"], http)])
    assert caught.value.status() == "400"


def test_token_id_outside_the_vocabulary_is_the_callers_error(triton):
    ids, mask = np.full((1, 77), 10**6), np.ones((1, 77), np.int64)
    with pytest.raises(InferenceServerException, match="cannot take the values of input_ids") as caught:
        triton.grpc.infer(
            "text_encoder", [array_input("input_ids", ids, "INT64"), array_input("attention_mask", mask, "INT64")]
        )
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_raw_file_as_http_body_gives_the_images_vector(triton):
    """What `curl --data-binary @image.png` sends; the client library has no call for it."""
    image = drawn_png(3)
    with closing(HTTPConnection("127.0.0.1", triton.server.http_port, timeout=WAIT_S)) as connection:
        headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
        connection.request("POST", "/v2/models/medimageinsight_image/infer", body=image, headers=headers)
        response = connection.getresponse()
        body = response.read()
    assert response.status == 200
    header_length = response.getheader("Inference-Header-Content-Length")
    result = http.InferResult.from_response_body(body, header_length=header_length and int(header_length))
    expected = embed_images(triton.grpc, [image])
    np.testing.assert_allclose(result.as_numpy("image_features"), expected, rtol=0, atol=TOLERANCE)


def test_base64_with_line_breaks_gives_the_files_vector(triton):
    image = drawn_png(4)
    raw, wrapped = embed_images(triton.grpc, [image, base64.encodebytes(image)])
    np.testing.assert_array_equal(raw, wrapped)


@pytest.mark.parametrize("transport", [grpc, http], ids=["grpc", "http"])
def test_request_parameters_reach_the_preprocessing_through_the_ensemble(triton, transport):
    """The image standardization of the Azure endpoint, done here with Pillow alone."""
    image = drawn_png(5)
    file = BytesIO()
    Image.open(BytesIO(image)).resize((64, 64)).convert("RGB").save(file, "JPEG", quality=10)
    pixels = np.asarray(Image.open(file).resize((480, 480), Image.Resampling.BICUBIC))
    expected = triton.grpc.infer("image_encoder", [array_input("pixels", pixels[np.newaxis], "UINT8")])

    parameters = {"image_standardization_image_size": 64, "image_standardization_jpeg_compression_ratio": 10}
    client = {grpc: triton.grpc, http: triton.http}[transport]
    answer = client.infer("medimageinsight_image", [bytes_input("image", [image], transport)], parameters=parameters)
    features = answer.as_numpy("image_features")

    np.testing.assert_allclose(features, expected.as_numpy("image_features"), rtol=0, atol=TOLERANCE)
    assert np.abs(features - embed_images(triton.grpc, [image])).max() > 10 * TOLERANCE  # of the default 512 and 75


def test_more_images_than_a_batch_holds_are_refused(triton):
    with pytest.raises(InferenceServerException, match="batch-size must be <= 16"):
        triton.grpc.infer("medimageinsight_image", [bytes_input("image", [drawn_png(0)] * 17)], client_timeout=WAIT_S)
