"""Tables are read back as they were written, by us and by the libraries that people read Parquet with."""

import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medimage_analysis.table import (
    COLUMNS,
    Model,
    OtherModel,
    Table,
    check_same_model,
    to_column,
    to_column_with_nulls,
    vectors_of,
    write,
)
from medimage_client import MedImageError

MODEL = Model("medimageinsight", "c0ffee" * 10 + "abcd", "fp32", "reference", "file")


def rows(n: int, *, start: int = 0, **extra: list) -> pa.Table:
    vectors = np.random.default_rng(start).normal(size=(n, 1024)).astype(np.float32)
    names = [f"image-{i}.png" for i in range(start, start + n)]
    return pa.table({"id": names, "source": names, "image_features": to_column(vectors), **extra})


@pytest.fixture
def table(tmp_path):
    write(tmp_path / "vectors", rows(3), MODEL)
    write(tmp_path / "vectors", rows(2, start=3), MODEL, shard=1)
    return tmp_path / "vectors"


def test_a_table_has_its_rows_in_order_and_its_model(table):
    opened = Table.open(table)
    assert opened.model == MODEL
    assert opened.schema.names == COLUMNS.names
    assert opened.read(["id"])["id"].to_pylist() == [f"image-{i}.png" for i in range(5)]
    written = [vectors_of(rows(3)["image_features"]), vectors_of(rows(2, start=3)["image_features"])]
    np.testing.assert_array_equal(opened.vectors(), np.concatenate(written))
    assert opened.vectors().dtype == np.float32


def test_extra_columns_follow_and_absent_ones_are_null(tmp_path):
    write(tmp_path / "t", rows(2, label=["a", None], age=[1, 2]), MODEL)
    read = Table.open(tmp_path / "t").read()
    assert read.column_names == [*COLUMNS.names, "label", "age"]
    assert read["label"].to_pylist() == ["a", None] and read["age"].type == pa.int64()
    assert read["text_features"].null_count == read["study_uid"].null_count == 2


def test_the_folder_holds_shards_alone(table):
    assert sorted(path.name for path in table.iterdir()) == ["part-00000.parquet", "part-00001.parquet"]
    assert [path.name for path in table.parent.iterdir()] == ["vectors"]


def test_an_empty_table_has_no_vectors(tmp_path):
    write(tmp_path / "t", rows(0), MODEL)
    assert Table.open(tmp_path / "t").vectors().shape == (0, 1024)


def test_rows_without_a_text_have_no_vector_of_it(tmp_path):
    vectors = np.eye(2, 1024, dtype=np.float32)
    column = to_column_with_nulls(vectors, [2, 0], 4)
    write(tmp_path / "t", rows(4, text=["b", None, "a", None], text_features=column), MODEL)
    table = Table.open(tmp_path / "t")
    read = table.read()["text_features"]
    assert read.is_null().to_pylist() == [False, True, False, True]
    assert np.argmax(read[2].as_py()) == 0 and np.argmax(read[0].as_py()) == 1
    with pytest.raises(MedImageError, match="2 of 4 rows have no text_features"):
        table.vectors("text_features")
    write(tmp_path / "u", rows(2, text=["b", "a"], text_features=to_column(vectors)), MODEL)
    np.testing.assert_array_equal(Table.open(tmp_path / "u").vectors("text_features"), vectors)


def test_vectors_of_two_models_are_not_mixed(table):
    other = Model("medimageinsight", "beef" * 16, "int8", "reference", "file")
    write(table, rows(1, start=9), other, shard=2)
    with pytest.raises(OtherModel) as error:
        Table.open(table)
    assert "checkpoint c0ffeec0ffee, fp32" in str(error.value) and "checkpoint beefbeefbeef, int8" in str(error.value)
    assert "part-00000.parquet" in str(error.value) and "part-00002.parquet" in str(error.value)
    check_same_model({"a": MODEL, "b": Model(*(getattr(MODEL, name) for name in Model.__slots__))})


def test_a_truncated_shard_is_named(table):
    shard = table / "part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(
        MedImageError, match=r"part-00001\.parquet: cannot be read: it is truncated.*can only be embedded"
    ):
        Table.open(table)
    table.with_name(f"{table.name}.run").mkdir()  # of the run that can make it again
    with pytest.raises(MedImageError, match=r"part-00001\.parquet: cannot be read: it is truncated.*remove it and"):
        Table.open(table)


def test_shards_with_other_columns_are_named(table):
    write(table, rows(1, start=9, label=["x"]), MODEL, shard=2)
    with pytest.raises(MedImageError, match=r"part-00002.parquet: has columns label \(string\); .*00000.* has no more"):
        Table.open(table)


def test_what_is_no_table_is_said(tmp_path):
    with pytest.raises(MedImageError, match=r"no table; expected a folder with part-00000\.parquet"):
        Table.open(tmp_path / "nowhere")
    (tmp_path / "t").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t" / "part-00000.parquet")
    with pytest.raises(MedImageError, match="is no shard of an embedding table"):
        Table.open(tmp_path / "t")


def test_columns_that_are_not_there_are_named_with_those_that_are(table):
    with pytest.raises(MedImageError, match="no column 'label'; it has id, source"):
        Table.open(table).read(["label"])
    with pytest.raises(MedImageError, match="column 'text' is of string; it has no vectors"):
        Table.open(table).vectors("text")


def test_equal_ids_and_columns_of_another_type_are_refused(tmp_path):
    with pytest.raises(MedImageError, match=r"1 ids come twice or more, the first is image-0\.png"):
        write(tmp_path / "t", pa.concat_tables([rows(1), rows(1)]), MODEL)
    with pytest.raises(MedImageError, match="rows do not fit the columns of a table"):
        write(tmp_path / "t", rows(1, frame=["first"]), MODEL)
    with pytest.raises(MedImageError, match="rows of a table need 'image_features', each of them"):
        write(tmp_path / "t", pa.table({"id": ["a"]}), MODEL)
    assert not (tmp_path / "t").exists() or not list((tmp_path / "t").iterdir())


def test_pyarrow_reads_the_folder_as_it_is(table):
    read = pq.read_table(table)
    assert read.num_rows == 5 and read.schema.field("image_features").type == pa.list_(pa.float32(), 1024)


def test_pandas_duckdb_and_polars_read_the_folder_as_it_is(table):
    names, first = [f"image-{i}.png" for i in range(5)], vectors_of(rows(3)["image_features"])[0]
    frame = pandas.read_parquet(table)
    assert frame["id"].tolist() == names
    np.testing.assert_array_equal(frame["image_features"][0], first)
    with duckdb.connect() as connection:
        found = connection.execute(f"select id, image_features, text_features from '{table}/*.parquet'").fetchall()
    assert [name for name, _, _ in found] == names and found[0][2] is None
    np.testing.assert_array_equal(np.array(found[0][1], np.float32), first)
    frame = polars.read_parquet(table)
    assert frame["id"].to_list() == names and frame["text_features"].null_count() == 5
    np.testing.assert_array_equal(frame["image_features"].to_numpy()[0], first)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # of its own defaults
def test_ray_reads_the_folder_as_it_is(table):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        found = ray.data.read_parquet(str(table)).take_all()
    finally:
        ray.shutdown()
    assert sorted(row["id"] for row in found) == [f"image-{i}.png" for i in range(5)]
    assert len(found[0]["image_features"]) == 1024
