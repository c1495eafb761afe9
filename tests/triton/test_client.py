"""The Python client on a real Triton, against what NVIDIA's own client gets there, over both wires."""

import asyncio
import base64
import json
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from PIL import Image

from medimage_analysis.in_process import in_process
from medimage_analysis.served import served_model
from medimage_analysis.table import Model
from medimage_client import (
    AsyncMedImageInsight,
    InvalidInput,
    MedImageInsight,
    NotFound,
    RequestTimeout,
    SharedMemoryError,
)
from medimage_client.images.encoding import encode_image
from medimage_client.wire.shared_memory import FOLDER
from medimage_client.wire.transport import Call
from medimage_client.wire.triton import Endpoint
from medimage_client.wire.triton_workarounds import CANCELLED_CALL, DeferredTransport
from medimage_server.launcher import run_triton
from tests.client.azure_samples import IMAGE_AND_TEXT, TEXT_ONLY, TWO_BY_TWO, card_request
from tests.triton.requests import bytes_input, embed_images, embed_texts
from tests.triton.test_serving import TOLERANCE, drawn_png

# aiohttp's, of requests above 1 MiB that tritonclient hands it in one piece; Python does not show it
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")

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


async def test_version_that_switches_the_workarounds_is_the_servers(url, triton):
    connection = Endpoint.parse(url).connect(shared_memory=False)
    transport = DeferredTransport(connection)
    call = Call("medimageinsight_text", {"text": np.array([[b"a"]], np.object_)}, ("text_features",), {})
    async with asyncio.timeout(60):
        await transport.infer(call, timeout=60)
        while connection.version is None:
            await asyncio.sleep(0.01)
    await transport.close()
    version = triton.grpc.get_server_metadata().version
    assert connection.version == version
    is_old = tuple(map(int, version.split("."))) < (2, 57)
    assert CANCELLED_CALL.is_in(connection.version) == is_old


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


def film(seed, height=800, width=700):
    """A drawing in noise, larger than the square that the server makes of it; noise, so that its PNG is large too."""
    noise = np.random.default_rng(seed).integers(0, 100, (height, width), dtype=np.uint8)
    noise[seed * 20 : seed * 20 + 200, 100:400] += 120
    return noise


@pytest.mark.parametrize("params", [{}, AZURE_PARAMS], ids=["defaults", "azure-params"])
def test_images_resized_by_the_client_get_the_very_vectors(url, params):
    deep = Image.fromarray(film(1).astype(np.uint16) * 16)  # 12 bits in 16
    colour = Image.fromarray(np.dstack([film(2), film(3), film(4)]))
    jpeg = BytesIO()
    colour.save(jpeg, "JPEG")
    images = [film(0), encode_image(deep), encode_image(colour), jpeg.getvalue(), drawn_png(5)]
    with MedImageInsight(url) as client:
        plain = client.embed_images(images, **params)
        np.testing.assert_array_equal(client.embed_images(images, resize="client", **params), plain)


def large_png(seed):
    """A drawing of over 1 MiB, which goes through shared memory and yet is soon decoded: what follows a PNG's end is
    not read."""
    return drawn_png(seed) + np.random.default_rng(seed).bytes(2**20 + seed)


def regions(triton):
    return list(triton.grpc.get_system_shared_memory_status().regions)


@pytest.fixture
def no_region_is_left(triton, monkeypatch):
    monkeypatch.setattr("medimage_client.wire.shared_memory.RELEASE_TIME_S", 30)  # for a machine with much else to do
    yield
    assert regions(triton) == []
    assert not list(FOLDER.glob("medimage-client-*"))


def test_many_images_through_shared_memory_get_the_same_vectors(url, triton, no_region_is_left):
    images = [large_png(seed) if seed % 3 else drawn_png(seed) for seed in range(20)]
    with MedImageInsight(url) as plain, MedImageInsight(url, shared_memory=True) as client:
        expected = plain.embed_images(images)
        np.testing.assert_array_equal(client.embed_images(images), expected)
        used = regions(triton)
        assert 1 <= len(used) <= 4  # one a request in flight
        np.testing.assert_array_equal(client.embed_images(images), expected)
        assert len(regions(triton)) <= 4
        assert set(regions(triton)) & set(used)
        assert not list(FOLDER.glob("medimage-client-*"))  # not even while they are used


def test_clients_side_by_side_do_not_meet_in_shared_memory(url, triton, no_region_is_left):
    images = [[large_png(10 * n + i) for i in range(4)] for n in range(4)]

    async def embed_all():
        clients = [AsyncMedImageInsight(url, shared_memory=True) for _ in images]
        try:
            calls = [client.embed_images(some) for client, some in zip(clients, images, strict=True) for _ in range(2)]
            return await asyncio.gather(*calls)
        finally:
            await asyncio.gather(*(client.close() for client in clients))

    expected = [embed_images(triton.grpc, some) for some in images for _ in range(2)]
    assert_close(asyncio.run(embed_all()), expected)


def test_bad_image_in_shared_memory_is_named_and_the_client_goes_on(url, triton, no_region_is_left):
    with MedImageInsight(url, shared_memory=True) as client:
        with pytest.raises(InvalidInput, match=r"^images\[1\]: "):
            client.embed_images([large_png(0), b"\x89PNG\r\n\x1a\n cut short" + bytes(2**20), large_png(2)])
        assert_close(client.embed_images([large_png(1)]), embed_images(triton.grpc, [large_png(1)]))


def test_request_in_shared_memory_that_times_out_spoils_no_later_one(url, triton, no_region_is_left):
    slow = [encode_image(film(seed, 2000, 2000)) for seed in range(4)]  # the server takes its time to read them
    with MedImageInsight(url, shared_memory=True) as client:
        with pytest.raises(RequestTimeout):
            client.embed_images(slow, timeout=0.1)
        images = [large_png(seed) for seed in range(8)]
        assert_close(client.embed_images(images), embed_images(triton.grpc, images))


def test_cancelled_call_leaves_no_shared_memory(url, triton, no_region_is_left):
    async def cancel():
        async with AsyncMedImageInsight(url, shared_memory=True) as client:
            call = asyncio.create_task(client.embed_images([large_png(seed) for seed in range(16)]))
            async with asyncio.timeout(20):
                while not await asyncio.to_thread(regions, triton):
                    await asyncio.sleep(0)
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call

    asyncio.run(cancel())


def test_server_that_cannot_see_the_memory_refuses_it_in_one_line(
    url, triton, monkeypatch, tmp_path, no_region_is_left
):
    monkeypatch.setattr("medimage_client.wire.shared_memory.FOLDER", Path(tmp_path))  # as if on another machine
    with MedImageInsight(url, shared_memory=True) as client, pytest.raises(SharedMemoryError) as refused:
        client.embed_images([large_png(0)])
    assert str(refused.value).startswith(
        "the server does not take shared memory (Unable to open shared memory region: '/medimage-client-"
    )
    assert list(tmp_path.iterdir()) == []


def test_restarted_server_gets_the_memory_anew(repository, tmp_path):
    def serve(**ports):
        return run_triton(repository, models=["medimageinsight_image"], log=tmp_path / "log", **ports)

    images = [large_png(seed) for seed in range(16)]
    with serve() as server:
        ports = {f"{name}_port": getattr(server, f"{name}_port") for name in ("grpc", "http", "metrics")}
        clients = [
            MedImageInsight(f"{scheme}://127.0.0.1:{ports[f'{scheme}_port']}", shared_memory=True)
            for scheme in ("grpc", "http")
        ]
        expected = [client.embed_images(images) for client in clients]
        server.kill()  # told to end, it would wait half a minute for the open connection over HTTP
    with serve(**ports), grpc.InferenceServerClient(f"127.0.0.1:{ports['grpc_port']}") as raw:
        for client, vectors in zip(clients, expected, strict=True):
            with client:
                np.testing.assert_array_equal(client.embed_images(images), vectors)
                assert raw.get_system_shared_memory_status().regions


async def test_a_triton_tells_which_model_it_serves(url, repository):
    source = json.loads((repository / "medimageinsight/1/manifest.json").read_text())["checkpoint"]
    assert await served_model(url, "file") == Model("medimageinsight", source["sha256"], "fp32", "azure", "file")
    assert await served_model(url, (-160, 240)) != await served_model(url, "file")
    transport = Endpoint.parse(url).connect(shared_memory=False)
    with pytest.raises(NotFound):
        await transport.parameters("no_such_model")
    await transport.close()


async def test_the_model_in_a_process_gives_the_vectors_of_triton(url, repository):
    """And refuses what Triton refuses."""
    images = [drawn_png(seed) for seed in range(3)]
    server = in_process(repository, "file")
    assert await server.model() == await served_model(url, "file")
    async with AsyncMedImageInsight(url) as client:
        expected = await client.embed_images(images), await client.embed_texts(TEXTS)
        with pytest.raises(InvalidInput) as error:
            await client.embed_images([images[0], b"no image"])
    found = await server.client.embed_images(images), await server.client.embed_texts(TEXTS)
    for vectors, others in zip(found, expected, strict=True):
        np.testing.assert_allclose(vectors, others, atol=TOLERANCE)
    with pytest.raises(InvalidInput) as same:
        await server.client.embed_images([images[0], b"no image"])
    assert (str(same.value), same.value.row) == (str(error.value), 1)


def test_a_repository_without_an_export_is_refused(unexported):
    with pytest.raises(
        InvalidInput, match="does not tell which model it serves; run `medimage export medimageinsight`"
    ):
        in_process(unexported, "file")
