"""The clients' methods over a Triton in memory: order, batches, bounds, names in errors, probabilities, scores."""

import asyncio
import base64
import inspect
import json
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit, softmax

from medimage_client import AsyncMedImageInsight, InvalidInput, MedImageInsight, ServerError, Unavailable
from medimage_client.images.encoding import encode_image
from tests.client.dicom_files import RAMP, dicom, file_of
from tests.client.fake_triton import values_of

SCALE = np.exp(4.513362407684326)


def base64_of(image):
    return base64.b64encode(encode_image(image)).decode()


def test_many_images_come_back_in_order_from_bounded_concurrent_requests(client, triton, grey, unit_vectors):
    values = [(7 * i) % 256 for i in range(50)]
    triton.wait_for_in_flight = 4
    embeddings = client.embed_images([grey(value) for value in values])
    assert embeddings.dtype == np.float32
    assert np.array_equal(embeddings, unit_vectors(values))
    assert sorted(len(values_of(call)) for call in triton.calls) == [2] + [4] * 12
    assert triton.most_in_flight == 4


def test_concurrency_bounds_the_requests_of_all_calls_of_a_client(triton, grey):
    async def three_calls():
        client = AsyncMedImageInsight("grpc://unused", concurrency=2, transport=triton)
        triton.wait_for_in_flight = 2
        await asyncio.gather(*(client.embed_images([grey(1)] * 20) for _ in range(3)))

    asyncio.run(three_calls())
    assert triton.most_in_flight == 2


def test_many_texts_come_back_in_order_and_equal_ones_are_sent_once(client, triton, unit_vectors):
    lengths = [1 + i % 40 for i in range(100)]
    embeddings = client.embed_texts(["é" * n for n in lengths])
    assert np.array_equal(embeddings, unit_vectors(lengths))
    assert sorted(len(values_of(call)) for call in triton.calls) == [8, 16, 16]


def test_no_inputs_give_an_empty_array_without_a_request(client, triton):
    assert client.embed_images([]).shape == (0, 1024)
    assert client.embed_texts([]).shape == (0, 1024)
    assert triton.calls == []


def test_large_images_are_split_into_requests_of_bounded_size(client, triton, grey, unit_vectors, monkeypatch):
    size = len(encode_image(grey(0)))
    monkeypatch.setattr("medimage_client.embeddings.MAX_REQUEST_BYTES", 2 * size + size // 2)
    assert np.array_equal(client.embed_images([grey(v) for v in (5, 6, 7, 8, 9)]), unit_vectors([5, 6, 7, 8, 9]))
    assert sorted(len(values_of(call)) for call in triton.calls) == [1, 2, 2]


def test_image_params_travel_as_request_parameters(client, triton, grey):
    client.embed_images(
        [grey(1)], image_standardization_image_size=480, image_standardization_jpeg_compression_ratio=95
    )
    assert triton.calls[0].parameters == {
        "image_standardization_image_size": 480,
        "image_standardization_jpeg_compression_ratio": 95,
    }
    client.embed_images([grey(1)])
    assert triton.calls[1].parameters == {}


def test_image_param_out_of_range_is_refused_before_sending(client, triton, grey):
    with pytest.raises(InvalidInput, match="image_standardization_image_size' is -1; expected a whole number"):
        client.embed_images([grey(1)], image_standardization_image_size=-1)
    assert triton.calls == []


def film(value):
    """An image of more pixels than the square, answered by the unit vector `value`."""
    return np.full((600, 700), value, dtype=np.uint8)


def base64_of_file(value):
    file = BytesIO()
    Image.fromarray(film(value)).save(file, "BMP")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    "call",
    [
        lambda client, options: client.embed_images([film(7)], resize="client", **options),
        lambda client, options: client.classify([film(7)], ["ab"], resize="client"),
        lambda client, options: client.score(
            {"input_data": {"columns": ["image"], "data": [[base64_of_file(7)]]}, "params": options}, resize="client"
        ),
    ],
    ids=["embed_images", "classify", "score"],
)
def test_client_resizes_large_images_and_says_so(client, triton, call):
    call(client, {})
    (sent,) = [call for call in triton.calls if "image" in call.inputs]
    assert sent.parameters == {"resized_by_client": True}
    assert Image.open(BytesIO(values_of(sent)[0])).size == (512, 512)


def test_client_resizes_to_the_size_that_azures_parameter_asks_for(client, triton):
    client.embed_images([film(7)], resize="client", image_standardization_image_size=300)
    assert triton.calls[0].parameters == {"resized_by_client": True, "image_standardization_image_size": 300}
    assert Image.open(BytesIO(values_of(triton.calls[0])[0])).size == (300, 300)


def test_images_go_as_they_are_unless_told_otherwise(client, triton):
    client.embed_images([film(7)])
    assert triton.calls[0].parameters == {}
    assert values_of(triton.calls[0]) == [encode_image(film(7))]


def test_unknown_place_to_resize_is_refused_before_sending(client, triton, grey):
    with pytest.raises(InvalidInput) as refused:
        client.embed_images([grey(1)], resize="Jane Doe")
    assert str(refused.value) == "resize is not one of ['server', 'client']"
    assert triton.calls == []


def test_unreadable_image_is_named_by_its_index(client, grey):
    with pytest.raises(InvalidInput) as refused:
        client.embed_images([grey(1)] * 9 + [np.zeros((2, 2))])
    assert str(refused.value).startswith("images[9]: is an array of float64; pass window=")
    assert str(refused.value) == f"images[9]: {refused.value.reason}"
    assert (refused.value.row, refused.value.column) == (9, "image")


def refuse(value, message):
    def check(call):
        rows = [row for row, sent in enumerate(values_of(call)) if sent == value]
        if rows:
            raise InvalidInput(message, row=rows[0])

    return check


def place_of(refused):
    return refused.value.reason, refused.value.row, refused.value.column


def test_image_refused_by_the_server_is_named_by_its_index_in_the_callers_list(client, triton, grey):
    triton.refuse = refuse(b"garbage", "not an image")
    with pytest.raises(InvalidInput) as refused:
        client.embed_images([grey(1)] * 6 + [b"garbage"] + [grey(1)] * 6)
    assert str(refused.value) == "images[6]: not an image"
    assert place_of(refused) == ("not an image", 6, "image")
    assert refused.value.status == 400


def test_text_refused_by_the_server_is_named_by_its_first_index(client, triton):
    triton.refuse = refuse(b"bad", "is refused")
    with pytest.raises(InvalidInput) as refused:
        client.embed_texts(["a", "a", "a", "bad", "bad"])
    assert str(refused.value) == "texts[3]: is refused"
    assert place_of(refused) == ("is refused", 3, "text")


@pytest.mark.parametrize("images", ["a.png", b"bytes", np.zeros((2, 2), np.uint8), None], ids=type)
def test_single_image_in_place_of_a_list_is_refused(client, images):
    with pytest.raises(InvalidInput, match="expected a list, also for a single one"):
        client.embed_images(images)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a", "texts is of type str; expected a list, also for a single one"),
        (["a", None], "texts[1]: is of type NoneType; expected str"),
        (["a\udc80"], "texts[0]: is not valid Unicode; expected no lone surrogates"),
    ],
)
def test_unusable_texts_are_refused_by_index(client, texts, message):
    with pytest.raises(InvalidInput) as refused:
        client.embed_texts(texts)
    assert str(refused.value) == message


def random_embeddings(rng, n):
    vectors = rng.standard_normal((n, 1024))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("multilabel", [False, True], ids=["softmax", "sigmoid"])
def test_classify_is_softmax_or_sigmoid_of_the_scaled_cosines(client, unit_vectors, multilabel):
    images = random_embeddings(np.random.default_rng(0), 5)
    lengths = [3, 8, 21]
    logits = SCALE * images.astype(float)[:, lengths]  # the labels' embeddings are unit vectors
    expected = expit(logits) if multilabel else softmax(logits, axis=1)
    scores = client.classify(images, ["x" * n for n in lengths], multilabel=multilabel)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-12)


def test_classify_embeds_images_and_puts_labels_into_the_template(client, triton, grey):
    scores = client.classify([grey(9), grey(5)], ["ab", "abcdef"], template="of {}")
    assert [values_of(call) for call in triton.calls if "text" in call.inputs] == [[b"of ab", b"of abcdef"]]
    assert scores.argmax(axis=1).tolist() == [1, 0]  # "of abcdef" has 9 characters, "of ab" 5
    np.testing.assert_allclose(scores.max(axis=1), 1, atol=1e-6)


def test_prompts_of_a_label_are_averaged_and_normalised(client, triton, unit_vectors):
    images = random_embeddings(np.random.default_rng(0), 5)
    labels = {"heart": ["x" * 3, "x" * 8, "x" * 8], "lung": ["x" * 19]}
    # the prompts' embeddings are unit vectors: those of "of " and 3, 8, 8 letters have the mean (1, 2) / 3
    heart = (unit_vectors([6])[0] + 2 * unit_vectors([11])[0]) / np.sqrt(5)
    expected = softmax(SCALE * images.astype(float) @ np.stack([heart, unit_vectors([22])[0]]).T, axis=1)
    np.testing.assert_allclose(client.classify(images, labels, template="of {}"), expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        ([], [], {}, "labels is empty; expected at least one label"),
        ([], "ab", {}, "labels is of type str; expected a list, also for a single one"),
        ([], ["a", 1], {}, "labels[1]: is of type int; expected str"),
        ([], {}, {}, "labels is empty; expected at least one label"),
        ([], {"a": "b"}, {}, "labels['a'] is of type str; expected a list, also for a single one"),
        ([], {"a": ["b"], "c": []}, {}, "labels['c'] is empty; expected at least one prompt"),
        ([], {"a": ["b", 1]}, {}, "labels['a'][1]: is of type int; expected str"),
        ([], ["a"], {"template": "x"}, "template has no {}; expected a text with {} in the place of the label"),
        (
            np.zeros((1, 512), np.float32),
            ["a"],
            {},
            "images is a float32 array of shape (1, 512); expected embeddings, floating-point (n, 1024), or a list of "
            "images",
        ),
    ],
)
def test_unusable_classification_is_refused(client, images, labels, options, message):
    with pytest.raises(InvalidInput) as refused:
        client.classify(images, labels, **options)
    assert str(refused.value) == message


def test_score_answers_mixed_rows_row_by_row(client, grey, unit_vectors):
    data = [[base64_of(grey(7)), "abc"], ["", "a quick brown fox jumps over the lazy dog"], [base64_of(grey(9)), None]]
    answer = client.score({"input_data": {"columns": ["image", "text"], "index": [0, 1, 2], "data": data}})
    e3, e7, e9, e41 = unit_vectors([3, 7, 9, 41]).tolist()
    assert answer == [
        {"image_features": [e7], "text_features": e3, "scaling_factor": 4.513362407684326},
        {"text_features": e41, "scaling_factor": 4.513362407684326},
        {"image_features": [e9], "scaling_factor": 4.513362407684326},
    ]


def test_score_takes_json_text_and_files_and_honours_params_and_layout(client, triton, grey, unit_vectors, tmp_path):
    params = {"get_scaling_factor": "false", "image_standardization_image_size": 480}
    body = json.dumps({"input_data": {"columns": ["image"], "data": [[base64_of(grey(7))]]}, "params": params})
    file = tmp_path / "request.json"
    file.write_text(body)
    expected = {"image_features": unit_vectors([7]).tolist()}
    assert client.score(body, layout="object") == client.score(file, layout="object") == expected
    assert triton.calls[0].parameters == {"image_standardization_image_size": 480}


def test_score_of_no_rows_is_empty_without_a_request(client, triton):
    assert client.score({"input_data": {"columns": ["image", "text"], "data": []}}) == []
    assert triton.calls == []


def test_score_refuses_an_unknown_layout_before_sending(client, triton):
    with pytest.raises(InvalidInput, match=r"layout is 'table'; expected one of \['rows', 'card', 'object'\]"):
        client.score({"input_data": {"columns": ["text"], "data": [["a"]]}}, layout="table")
    assert triton.calls == []


def test_score_names_row_and_column_of_an_image_the_server_refuses(client, triton):
    triton.refuse = refuse(b"garbage", "not an image")
    garbage = base64.b64encode(b"garbage").decode()
    request = {"input_data": {"columns": ["image", "text"], "data": [["", "a"], ["", "b"], [garbage, ""]]}}
    with pytest.raises(InvalidInput) as refused:
        client.score(request)
    assert str(refused.value) == "row 2, column 'image': not an image"
    assert place_of(refused) == ("not an image", 2, "image")


def test_overload_is_retried_and_the_answer_is_complete(client, triton, grey, unit_vectors, no_delay):
    triton.failures = [Unavailable("queue is full") for _ in range(3)]
    assert np.array_equal(client.embed_images([grey(3)]), unit_vectors([3]))
    assert len(triton.calls) == 4


def test_failure_ends_the_other_requests_of_the_call(client, triton, grey):
    triton.failures = [ServerError("out of memory")]
    with pytest.raises(ServerError, match="out of memory"):
        client.embed_images([grey(1)] * 400)
    assert triton.in_flight == 0
    assert len(triton.calls) < 100


def test_answer_of_another_shape_is_a_server_error(client, triton, monkeypatch):
    async def infer(call, *, timeout):
        return {"text_features": np.zeros((1, 512), np.float32), "scaling_factor": np.zeros((1, 1), np.float32)}

    monkeypatch.setattr(triton, "infer", infer)
    with pytest.raises(ServerError, match=r"text_features of shape \(1, 512\); expected \(1, 1024\)"):
        client.embed_texts(["a"])


@pytest.mark.parametrize("ready", [True, False])
def test_is_ready_is_the_servers_word(client, triton, ready):
    triton.ready = ready
    assert client.is_ready() is ready


@pytest.mark.parametrize("options", [{"timeout": 0}, {"retries": -1}, {"concurrency": 0}], ids=str)
def test_option_out_of_range_is_refused(options):
    with pytest.raises(InvalidInput, match="expected timeout > 0, retries >= 0 and concurrency >= 1"):
        MedImageInsight("grpc://localhost", **options)


def test_client_is_closed_by_its_with_block(triton):
    with MedImageInsight("grpc://unused", transport=triton) as client:
        client.embed_texts(["a"])
        assert triton.closed == 0
    assert triton.closed == 1


def test_forgotten_client_is_closed_when_collected(collect, triton):
    client = MedImageInsight("grpc://unused", transport=triton)
    del client
    collect()
    with MedImageInsight("grpc://unused") as other:
        other.close()  # runs on the same loop, after what the finalizer left there
    assert triton.closed == 1


def test_threads_may_share_a_client(client, unit_vectors):
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: client.embed_texts(["x" * n]), range(1, 41)))
    assert np.array_equal(np.concatenate(answers), unit_vectors(range(1, 41)))


async def test_async_client_answers_like_the_synchronous_one(async_client, client, grey):
    images, labels = [grey(5), grey(9)], ["a" * 5, "b" * 9]
    request = {"input_data": {"columns": ["text"], "data": [["abc"]]}}
    async with async_client:
        assert await async_client.is_ready()
        assert np.array_equal(await async_client.embed_images(images), client.embed_images(images))
        assert np.array_equal(await async_client.embed_texts(labels), client.embed_texts(labels))
        assert np.array_equal(await async_client.classify(images, labels), client.classify(images, labels))
        assert await async_client.score(request) == client.score(request)


def test_both_clients_have_the_same_methods_and_options():
    def methods(cls):
        return {
            name: inspect.signature(method)
            for name, method in inspect.getmembers(cls, inspect.isfunction)
            if name == "__init__" or not name.startswith("_")
        }

    assert methods(MedImageInsight) == methods(AsyncMedImageInsight)


def test_dicom_window_is_that_of_embedded_and_of_classified_images(client, triton):
    file = file_of(dicom(RAMP, BitsStored=12, WindowCenter=100, WindowWidth=100))
    for window in ("file", "percentile", (500, 1500)):
        client.embed_images([file], dicom_window=window)
        client.classify([file], ["abc"], dicom_window=window)
        images = [value for call in triton.calls for value in values_of(call) if value != b"abc"]
        assert images[-2:] == [encode_image(file, dicom_window=window)] * 2
    client.embed_images([file, RAMP], window=(500, 1500), dicom_window="percentile")
    assert values_of(triton.calls[-1]) == [
        encode_image(file, dicom_window="percentile"),
        encode_image(RAMP, window=(500, 1500)),
    ]


def test_errors_advise_what_the_called_function_has(client):
    with pytest.raises(InvalidInput, match=r"images\[0\]: is an array of uint16; pass window=\(low, high\)"):
        client.embed_images([RAMP])
    with pytest.raises(InvalidInput, match=r"images\[0\]: is an array of uint16; scale it to uint8 first"):
        client.classify([RAMP], ["abc"])
    with pytest.raises(InvalidInput, match=r"^images\[0\]: .*dicom_window is another text"):
        client.classify([RAMP], ["abc"], dicom_window="auto")
