"""What an index finds is what NumPy finds; conditions, texts and volumes too; faults are one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medimage_analysis import indexing
from medimage_analysis.index import Index
from medimage_analysis.indexing import build
from medimage_analysis.table import Model, OtherModel, Table, to_column, to_column_with_nulls, write
from medimage_client.errors import InvalidInput
from tests.analysis.tables import MODEL, make_table

N = 600
LABELS = ("chest", "knee", "brain")


def clustered(n: int, *, seed: int = 0) -> np.ndarray:
    """Unit vectors around a few centres."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(12, 1024))[np.arange(n) % 12] + 0.7 * rng.normal(size=(n, 1024))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS = clustered(N)
TEXTS = clustered(N, seed=1)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Two shards of 600 rows; every third has a text, of which there are 40."""
    folder = tmp_path_factory.mktemp("table") / "t"
    with_text = np.arange(0, N, 3)
    texts = TEXTS[with_text % 40]
    rows = pa.table(
        {
            "id": [f"image {n}" for n in range(N)],
            "series_uid": [f"1.2.{n // 10}" for n in range(N)],
            "sop_uid": [f"1.2.3.{n}" for n in range(N)],
            "frame": pa.array(range(N), pa.int32()),
            "source": [f"{n}.png" for n in range(N)],
            "image_features": to_column(VECTORS),
            "text": [f"text {n % 40}" if n % 3 == 0 else None for n in range(N)],
            "text_features": to_column_with_nulls(texts, with_text, N),
            "label": [LABELS[n % 3] for n in range(N)],
            "age": list(range(N)),
        }
    )
    write(folder, rows.slice(0, 401), MODEL)
    write(folder, rows.slice(401), MODEL, shard=1)
    return Table.open(folder)


@pytest.fixture(scope="module")
def index(table, tmp_path_factory):
    place = tmp_path_factory.mktemp("index") / "i"
    built = build(table, place)
    assert (built.rows, built.approximations) == (N, [])
    return Index.open(place)


def nearest(query, vectors, rows):
    """Rows in the order of 1 - cosine, and those distances."""
    rows = np.asarray(rows)
    distances = 1 - vectors[rows].astype(float) @ (query / np.linalg.norm(query)).astype(float)
    order = np.argsort(distances)
    return rows[order], distances[order]


def test_exact_search_finds_what_numpy_finds(index):
    query = clustered(1, seed=7)[0] * 3  # of any length
    rows, distances = nearest(query, VECTORS, range(N))
    found = index.search(query, k=20)
    assert found["id"].to_pylist() == [f"image {n}" for n in rows[:20]]
    np.testing.assert_allclose(found["distance"].to_numpy(), distances[:20], atol=1e-6)
    assert found["sop_uid"].to_pylist() == [f"1.2.3.{n}" for n in rows[:20]]
    assert not {"image_features", "text_features", "_distance"} & set(found.column_names)


def test_a_condition_holds_for_all_that_is_found_and_the_query_is_left_out(index):
    rows, _ = nearest(VECTORS[4], VECTORS, [n for n in range(N) if n % 3 == 1 and n > 100])
    found = index.search(index.vector("image 4"), k=7, where="label = 'knee' AND age > 100")
    assert found["id"].to_pylist() == [f"image {n}" for n in rows[:7]]
    assert index.search(VECTORS[4], k=1)["id"].to_pylist() == ["image 4"]
    assert "image 4" not in index.search(VECTORS[4], k=N, without="image 4")["id"].to_pylist()
    assert len(index.search(VECTORS[4], where="label = 'nothing'")) == 0


def test_an_image_finds_texts_each_of_them_once(index):
    of_texts = sorted({n % 40 for n in range(0, N, 3)})
    texts, distances = nearest(VECTORS[0], TEXTS, of_texts)
    found = index.search(VECTORS[0], k=25, among="texts")
    assert found["text"].to_pylist() == [f"text {n}" for n in texts[:25]]
    np.testing.assert_allclose(found["distance"].to_numpy(), distances[:25], atol=1e-6)
    assert len(index.search(VECTORS[0], k=100, among="texts")) == len(of_texts)


def test_the_index_has_the_model_of_the_table(index):
    assert index.model == MODEL
    other = Model("medimageinsight", "beef" * 16, "int8", "reference", "file")
    with pytest.raises(OtherModel) as error:
        index.check_model(other, "grpc://host:8001")
    for words in ("checkpoint 000000000000, fp32", "checkpoint beefbeefbeef, int8", "grpc://host:8001", index.uri):
        assert words in str(error.value)


def test_ivf_pq_says_the_recall_that_it_has(table, tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "PART_ROWS", 100)
    built = build(table, tmp_path / "i", kind="ivf-pq")
    (made,) = built.approximations  # of the images; 200 texts are too few
    index = Index.open(tmp_path / "i")
    assert (made.among, made.parts) == ("images", 6)
    assert index.effort() == (made.probes, made.refined)
    assert index.recall() == pytest.approx(made.recall, abs=1e-4)
    assert index.effort("texts") is None
    shares = []
    for n in range(0, N, 10):
        truth = {f"image {row}" for row in nearest(VECTORS[n], VECTORS, [m for m in range(N) if m != n])[0][:10]}
        shares.append(len(truth & set(index.search(VECTORS[n], without=f"image {n}")["id"].to_pylist())) / 10)
        exact = index.search(VECTORS[n], without=f"image {n}", exact=True)["id"].to_pylist()
        assert set(exact) == truth
    assert made.recall >= 0.95 and np.mean(shares) == pytest.approx(made.recall, abs=0.05)
    few = index.search(VECTORS[0], k=30, where="age < 30")  # in whatever part they are
    assert len(few) == 30


def test_large_tables_get_ivf_pq_by_themselves(table, tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "APPROXIMATE_FROM", N)
    monkeypatch.setattr(indexing, "ITERATIONS", 2)
    assert [made.among for made in build(table, tmp_path / "i").approximations] == ["images"]
    assert build(table, tmp_path / "j", kind="exact").approximations == []


@pytest.mark.parametrize("pool", ["mean", "median", "max", "std"])
def test_volumes_are_pooled_as_numpy_does_it(table, tmp_path, pool):
    build(table, tmp_path / "i", group_by="series", pool=pool)
    index = Index.open(tmp_path / "i")
    assert (len(index), index.group_by, index.pool) == (N // 10, "series_uid", pool)
    expected = getattr(np, pool)(VECTORS.reshape(-1, 10, 1024), axis=1)
    found = {name: index.vector(name) for name in ("1.2.0", "1.2.40", "1.2.59")}  # the middle one is in both shards
    for name, vector in found.items():
        np.testing.assert_allclose(vector, expected[int(name.removeprefix("1.2."))], atol=1e-6)
    query = index.pooled(VECTORS[400:410])
    row = index.search(query, k=1).to_pylist()[0]
    assert (row["id"], row["n_images"], row["distance"]) == ("1.2.40", 10, pytest.approx(0, abs=1e-6))
    assert (row["source"], row["sop_uid"], row["frame"]) == ("405.png", "1.2.3.405", 405)  # of the middle
    assert (row["series_uid"], row["label"], row["age"]) == ("1.2.40", None, None)  # what all agree in


def test_a_volume_of_one_image_has_no_standard_deviation(tmp_path):
    table = Table.open(make_table(tmp_path / "t", [0, 10, 20], series_uid=["a", "a", "b"]))
    with pytest.raises(InvalidInput, match=r"^b: has one image, whose standard deviation is zero"):
        build(table, tmp_path / "i", group_by="series", pool="std")
    build(table, tmp_path / "i", group_by="series")
    assert len(Index.open(tmp_path / "i")) == 2


def test_what_cannot_be_grouped_is_named(table, tmp_path):
    with pytest.raises(InvalidInput, match="600 of 600 rows have no study_uid; group by a column that all rows have"):
        build(table, tmp_path / "i", group_by="study")
    with pytest.raises(InvalidInput, match="no column 'patient'; it has id, source"):
        build(table, tmp_path / "i", group_by="patient")
    with pytest.raises(InvalidInput, match=r"'image_features' is of fixed_size_list.*; expected texts or numbers"):
        build(table, tmp_path / "i", group_by="image_features")
    assert build(table, tmp_path / "i", group_by="label").rows == 3  # any column will do


def test_a_query_of_several_images_wants_an_index_of_volumes(index):
    with pytest.raises(InvalidInput, match=r"the query has 3 images, and .* is of single images; give one image, or"):
        index.pooled(VECTORS[:3])


def test_an_index_is_replaced_only_if_that_is_wanted(table, tmp_path):
    small = Table.open(make_table(tmp_path / "small", [0, 90]))
    build(table, tmp_path / "i")
    with pytest.raises(InvalidInput, match="there is an index already; --replace makes it anew"):
        build(small, tmp_path / "i")
    assert len(Index.open(tmp_path / "i")) == N
    before = size_of(tmp_path / "i")
    build(small, tmp_path / "i", replace=True)
    assert len(Index.open(tmp_path / "i")) == 2
    assert size_of(tmp_path / "i") < before / 10  # the vectors of the old one are gone


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("value", [np.nan, np.inf, 0])
def test_a_damaged_vector_is_named_and_the_index_before_stays(tmp_path, value):
    table = Table.open(make_table(tmp_path / "t", [0, 90]))
    build(table, tmp_path / "i")
    damaged = np.stack([VECTORS[0], np.full(1024, value, np.float32)])
    write(tmp_path / "u", pa.table({"id": ["good", "bad"], "image_features": to_column(damaged)}), MODEL)
    with pytest.raises(InvalidInput, match=r"u, id 'bad': its vector is zero or not finite; embed the image anew$"):
        build(Table.open(tmp_path / "u"), tmp_path / "i", replace=True)
    assert sorted(Index.open(tmp_path / "i").search(VECTORS[0])["id"].to_pylist()) == ["0", "1"]


def test_a_shard_that_is_damaged_within_is_named(tmp_path):
    make_table(tmp_path / "t", range(50))
    table, shard = Table.open(tmp_path / "t"), tmp_path / "t" / "part-00000.parquet"
    content = bytearray(shard.read_bytes())
    where = pq.ParquetFile(shard).metadata.row_group(0).column(6).data_page_offset + 60
    content[where : where + 400] = bytes(400)  # within the vectors; the footer is whole
    shard.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"part-00000.parquet: cannot be read: it is truncated or damaged; its rows"):
        build(table, tmp_path / "i")


def test_an_index_that_was_interrupted_can_be_made_again(tmp_path, monkeypatch):
    table = Table.open(make_table(tmp_path / "t", range(50)))
    n_asked = 0

    def interrupted(batch, schema, place):
        nonlocal n_asked
        n_asked += 1
        os.kill(os.getpid(), signal.SIGINT)
        raised.wait(10)  # while the main thread is told
        return batch

    raised = threading.Event()
    monkeypatch.setattr(indexing, "arranged_batch", interrupted)
    monkeypatch.setattr(indexing, "BATCH_ROWS", 10)
    monkeypatch.setattr(indexing.Event, "set", lambda event, set=threading.Event.set: (set(event), set(raised)))
    with pytest.raises(KeyboardInterrupt):
        build(table, tmp_path / "i")
    assert n_asked == 1  # LanceDB's thread asks for no more rows
    monkeypatch.undo()
    with pytest.raises(InvalidInput, match="i: no index; expected what"):
        Index.open(tmp_path / "i")
    build(table, tmp_path / "i")
    assert len(Index.open(tmp_path / "i")) == 50


@pytest.mark.parametrize(
    ("file", "remedy"), [("_versions/*.manifest", "remove"), ("data/*.lance", "remove"), ("data/*.lance", "replace")]
)
def test_a_damaged_index_is_said_with_a_remedy_that_works(tmp_path, file, remedy):
    table = Table.open(make_table(tmp_path / "t", range(50)))
    build(table, tmp_path / "i")
    (damaged,) = (tmp_path / "i" / "embeddings.lance").glob(file)
    damaged.write_bytes(damaged.read_bytes()[:-30])
    with pytest.raises(InvalidInput, match=r"i: is damaged; remove it and make it anew with `medimage index`$"):
        Index.open(tmp_path / "i").search(VECTORS[0])
    if remedy == "remove":
        shutil.rmtree(tmp_path / "i")
    build(table, tmp_path / "i", replace=remedy == "replace")
    assert len(Index.open(tmp_path / "i").search(VECTORS[0])) == 10


def test_columns_whose_names_lancedb_has_not_are_renamed(tmp_path):
    make_table(tmp_path / "t", [0, 90], **{"patient.age": [40, 50], "_distance": [1, 2], "distance": [3, 4]})
    build(Table.open(tmp_path / "t"), tmp_path / "i")
    index = Index.open(tmp_path / "i")
    found = index.search(index.vector("0"), where="patient_age > 45")
    assert found.select(["id", "patient_age", "column__distance", "column_distance"]).to_pylist() == [
        {"id": "1", "patient_age": 50, "column__distance": 2, "column_distance": 4}
    ]
    assert found["distance"].to_pylist() == pytest.approx([1])
    make_table(tmp_path / "u", [0], **{"a.b": [1], "a_b": [2]})
    with pytest.raises(InvalidInput, match="two columns would be 'a_b' in an index"):
        build(Table.open(tmp_path / "u"), tmp_path / "j")


def test_equal_ids_in_two_shards_are_named(tmp_path):
    make_table(tmp_path / "t", [0, 90])
    rows = Table.open(tmp_path / "t").read()
    write(tmp_path / "t", rows, MODEL, shard=1)
    with pytest.raises(InvalidInput, match="t: 2 ids come twice or more, the first is 0"):
        build(Table.open(tmp_path / "t"), tmp_path / "i")


def test_what_is_asked_wrongly_is_one_line(index):
    for where, words in [
        ("modality = 'CR'", "where \"modality = 'CR'\": No field named modality. Valid fields are "),
        ("label =", "where 'label =': Error parsing statement"),
        ("label > 3", "where 'label > 3': compares a column with a value of another type; those of a CSV are texts"),
        ("CAST(label AS INT) = 1", "Cast error: Cannot cast string '"),
    ]:
        with pytest.raises(InvalidInput) as error:
            index.search(VECTORS[0], where=where)
        assert words in str(error.value) and "\n" not in str(error.value) and ".rs:" not in str(error.value)
    with pytest.raises(InvalidInput, match='no id "it\'s not there"; ids are those of the table'):
        index.vector("it's not there")
    with pytest.raises(InvalidInput, match="no column 'modality'; it has id, source, "):
        index.check_column("modality")


def test_what_is_no_index_is_said_and_nothing_is_made(tmp_path, table):
    with pytest.raises(
        InvalidInput, match=r"nowhere: no index; expected what `medimage index TABLE --to .*nowhere` writes"
    ):
        Index.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a")
    for place in ("notes", "notes/a.txt"):
        with pytest.raises(InvalidInput, match="is there and is no index; choose another place"):
            build(table, tmp_path / place, replace=True)
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["a.txt"]


def test_no_permission_and_a_full_disk_are_one_line_each_and_harm_nothing(tmp_path):
    """In a process of its own, which has not root's rights over files, and may write no large ones."""
    make_table(tmp_path / "t", range(200))
    (tmp_path / "closed").mkdir(mode=0o500)
    program = f"""
import resource
from pathlib import Path
from medimage_analysis.index import Index
from medimage_analysis.indexing import build
from medimage_analysis.table import Table
from medimage_client.errors import InvalidInput

def attempt(what, *arguments):
    try:
        print(len(what(*arguments)))
    except InvalidInput as error:
        print(error)

folder = Path({str(tmp_path)!r})
attempt(lambda: build(Table.open(folder / "t"), folder / "closed" / "i"))
build(Table.open(folder / "t"), folder / "i")
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
attempt(lambda: build(Table.open(folder / "t"), folder / "i", replace=True))
attempt(lambda: build(Table.open(folder / "t"), folder / "j"))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
attempt(Index.open, folder / "i")
build(Table.open(folder / "t"), folder / "j")
attempt(Index.open, folder / "j")
(folder / "i" / "embeddings.lance").chmod(0)
attempt(Index.open, folder / "i")
(folder / "t" / "part-00000.parquet").chmod(0)
attempt(Table.open, folder / "t")
"""
    less = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    done = subprocess.run([*less, sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    (tmp_path / "i" / "embeddings.lance").chmod(0o700)
    assert done.stderr == ""
    assert done.stdout.replace(f"{tmp_path}/", "").splitlines() == [
        "closed/i: Permission denied",
        "i: File too large",
        "j: File too large",
        "200",
        "200",
        "i: Permission denied",
        "t/part-00000.parquet: cannot be read: Permission denied",
    ]


def test_a_place_that_cannot_be_is_one_line(tmp_path, table):
    (tmp_path / "file").write_text("a")
    with pytest.raises(InvalidInput, match=r"file/i: Not a directory$"):
        build(table, tmp_path / "file" / "i")


def test_a_table_without_texts_has_none_to_find(tmp_path):
    build(Table.open(make_table(tmp_path / "t", [0, 90])), tmp_path / "i")
    with pytest.raises(InvalidInput, match="has no texts; the table that it was made of has no text_features"):
        Index.open(tmp_path / "i").search(VECTORS[0], among="texts")


@pytest.fixture
def bucket(monkeypatch):
    """An empty one in a stand-in for S3, with the variables by which it is found."""
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT", f"http://{host}:{port}")
        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/vectors", method="PUT")).close()
        yield "s3://vectors"
    finally:
        server.stop()


def test_an_index_in_object_storage_answers_as_one_on_disk(bucket, table, index):
    place = f"{bucket}/archive"
    with pytest.raises(InvalidInput, match=r"^s3://vectors/archive: no index; expected what"):
        Index.open(place)
    build(table, place)
    stored = Index.open(place)
    for query in (VECTORS[4], TEXTS[2]):
        for among in ("images", "texts"):
            found, expected = (one.search(query, among=among, where="age < 500").to_pylist() for one in (stored, index))
            assert json.dumps(found) == json.dumps(expected)
    with pytest.raises(InvalidInput, match="there is an index already; --replace"):
        build(table, place)
    build(table, place, group_by="series", replace=True)
    assert len(Index.open(place)) == N // 10


def test_object_storage_that_does_not_answer_is_one_line(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InvalidInput, match=r"^s3://vectors/archive: cannot be reached: .* is AWS_ENDPOINT right"):
        Index.open("s3://vectors/archive")


def test_threads_share_an_index(index):
    answers: dict[int, list] = {}

    def ask(n: int) -> None:
        answers[n] = index.search(VECTORS[n], k=3)["id"].to_pylist()

    threads = [threading.Thread(target=ask, args=[n]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: found[0] for n, found in answers.items()} == {n: f"image {n}" for n in range(8)}
