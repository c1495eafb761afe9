"""The Python client on a real Triton, against what NVIDIA's own client gets there, over both wires."""

import asyncio
import base64

import numpy as np
import pytest

from medimage_client import AsyncMedImageInsight, InvalidInput, MedImageInsight
from tests.client.azure_samples import IMAGE_AND_TEXT, TEXT_ONLY, TWO_BY_TWO, card_request
from tests.triton.requests import bytes_input, embed_images, embed_texts
from tests.triton.test_serving import TOLERANCE, drawn_png

TEXTS = ["x-ray chest anteroposterior Pneumonia", "", "Röntgen Thorax"]
AZURE_PARAMS = {"image_standardization_image_size": 64, "image_standardization_jpeg_compression_ratio": 10}


@pytest.fixture(params=["grpc", "http"])
def url(request, triton):
    return f"{request.param}://127.0.0.1:{getattr(triton.server, f'{request.param}_port')}"


@pytest.fixture(params=[MedImageInsight, AsyncMedImageInsight], ids=["sync", "async"])
def call(request, url):
    """Call a method of the client by name: call("embed_texts", [...])."""

    async def answer(name, *args, **options):
        async with AsyncMedImageInsight(url) as client:
            return await getattr(client, name)(*args, **options)

    def call(name, *args, **options):
        if request.param is AsyncMedImageInsight:
            return asyncio.run(answer(name, *args, **options))
        with MedImageInsight(url) as client:
            return getattr(client, name)(*args, **options)

    return call


@pytest.fixture(scope="module")
def scaling_factor(triton):
    answer = triton.grpc.infer("medimageinsight_text", [bytes_input("text", [b"a"])])
    return float(answer.as_numpy("scaling_factor")[0, 0])


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


def test_client_is_ready(call):
    assert call("is_ready") is True


def test_many_images_get_the_servers_vectors_in_order(call, triton):
    images = [drawn_png(seed) for seed in range(10)]  # three requests of the client
    embeddings = call("embed_images", images)
    assert embeddings.dtype == np.float32
    assert_close(embeddings, embed_images(triton.grpc, images))


def test_texts_get_the_servers_vectors_in_order(call, triton):
    assert_close(call("embed_texts", TEXTS), embed_texts(triton.grpc, [text.encode() for text in TEXTS]))


def test_azure_params_of_a_call_reach_the_preprocessing(call, triton):
    image = drawn_png(5)
    embeddings = call("embed_images", [image], **AZURE_PARAMS)
    assert_close(embeddings, embed_images(triton.grpc, [image], parameters=AZURE_PARAMS))
    assert np.abs(embeddings - embed_images(triton.grpc, [image])).max() > 10 * TOLERANCE  # of the default 512 and 75


def test_mixed_rows_are_answered_row_by_row(call, triton, scaling_factor):
    images = [drawn_png(0), drawn_png(1)]
    cells = [base64.encodebytes(image).decode() for image in images]
    data = [[cells[0], "heart"], ["", "lung"], [cells[1], None]]
    both, text_only, image_only = call("score", {"input_data": {"columns": ["image", "text"], "data": data}})
    image_features = embed_images(triton.grpc, images)
    text_features = embed_texts(triton.grpc, [b"heart", b"lung"])
    assert [set(row) for row in (both, text_only, image_only)] == [
        {"image_features", "text_features", "scaling_factor"},
        {"text_features", "scaling_factor"},
        {"image_features", "scaling_factor"},
    ]
    assert_close([both["image_features"][0], image_only["image_features"][0]], image_features)
    assert_close([both["text_features"], text_only["text_features"]], text_features)
    assert [row["scaling_factor"] for row in (both, text_only, image_only)] == [scaling_factor] * 3


def test_sample_of_the_documentation_with_text_only_is_answered(call, triton, scaling_factor):
    (row,) = call("score", TEXT_ONLY)
    assert set(row) == {"text_features", "scaling_factor"}
    assert_close([row["text_features"]], embed_texts(triton.grpc, [b"a quick brown fox jumps over the lazy dog"]))
    assert row["scaling_factor"] == scaling_factor


def test_sample_of_the_documentation_with_line_breaks_and_text_flag_is_answered(call, triton, scaling_factor):
    (row,) = call("score", IMAGE_AND_TEXT)
    assert_close(row["image_features"], embed_images(triton.grpc, [base64.b64decode(TWO_BY_TWO)]))
    assert_close([row["text_features"]], embed_texts(triton.grpc, [b"x-ray chest anteroposterior Pleural Effusion"]))
    assert row["scaling_factor"] == scaling_factor


def test_sample_of_the_model_cards_is_answered_in_their_layout(call, triton, scaling_factor):
    film = drawn_png(2)
    images, texts, scale = call("score", card_request(film), layout="card")
    assert_close(images["image_features"], embed_images(triton.grpc, [film]))
    assert_close(texts["text_features"], embed_texts(triton.grpc, [b"x-ray chest anteroposterior Cardiomegaly"]))
    assert scale == {"scaling_factor": scaling_factor}


def test_bad_image_is_named_by_its_index_in_the_callers_list(call):
    with pytest.raises(InvalidInput, match=r"^images\[5\]: ") as refused:
        call("embed_images", [*map(drawn_png, range(5)), b"\x89PNG\r\n\x1a\n cut short", drawn_png(6)])
    assert refused.value.status == 400


def test_bad_image_of_a_request_is_named_by_row_and_column(call):
    cut_short = base64.b64encode(drawn_png(0)[:200]).decode()
    data = [["", "heart"], [cut_short, "lung"]]
    with pytest.raises(InvalidInput, match=r"^row 1, column 'image': PNG file is damaged or truncated") as refused:
        call("score", {"input_data": {"columns": ["image", "text"], "data": data}})
    assert refused.value.status == 400
