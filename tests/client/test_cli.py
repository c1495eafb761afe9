"""The `medimage` command: what it writes, what it refuses, and how it finds the commands of other packages."""

import json
import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from medimage_client import InvalidInput, TransportError
from medimage_client.cli.group import medimage
from medimage_client.images.encoding import encode_image
from tests.client.dicom_files import RAMP, dicom, file_of
from tests.client.fake_triton import values_of


@pytest.fixture
def run(triton, monkeypatch):
    """Run the command against the Triton in memory."""
    monkeypatch.setattr("medimage_client.wire.triton.Endpoint.connect", lambda endpoint, *, shared_memory: triton)

    def run(*args, **options):
        return CliRunner().invoke(medimage, [str(arg) for arg in args], **options)

    return run


@pytest.fixture
def images(tmp_path, grey):
    """A folder with images that are answered by unit vectors 5, 9 and 7, in order of name, and other files."""
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    Image.fromarray(grey(5)).save(folder / "a.png")
    Image.fromarray(grey(9)).save(folder / "b" / "one.PNG", "PNG")
    Image.fromarray(grey(7)).save(folder / "c.tiff")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_score_prints_azures_answer_from_a_file_and_from_standard_input(run, tmp_path, unit_vectors):
    body = json.dumps({"input_data": {"columns": ["text"], "data": [["abc"]]}})
    file = tmp_path / "request.json"
    file.write_text(body)
    expected = [{"text_features": unit_vectors([3])[0].tolist(), "scaling_factor": 4.513362407684326}]
    for result in (run("score", file), run("score", "-", input=body)):
        assert result.exit_code == 0
        assert json.loads(result.stdout) == expected
    assert json.loads(run("score", file, "--layout", "object").stdout)["text_features"] == unit_vectors([3]).tolist()


def test_score_of_a_bad_request_ends_with_one_line_and_code_1(run):
    result = run("score", "-", input="[]")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: the request is an empty list; expected an object with 'input_data'\n"


def test_embed_writes_npy_with_the_names_beside_it(run, images, tmp_path, unit_vectors):
    output = tmp_path / "out.npy"
    result = run("embed", images, "--text", "abc", "--text", "two\nlines", "--output", output)
    assert (result.exit_code, result.stdout) == (0, "")
    assert np.array_equal(np.load(output), unit_vectors([5, 9, 7, 3, 9]))
    names = (tmp_path / "out.names.txt").read_text().splitlines()
    assert names == [str(images / "a.png"), str(images / "b/one.PNG"), str(images / "c.tiff"), "abc", "two lines"]


@pytest.mark.parametrize(
    "command", [["embed", "--output", "out.npy"], ["classify", "--label", "a"]], ids=["embed", "classify"]
)
def test_images_travel_as_the_options_say(run, triton, tmp_path, monkeypatch, command):
    shared = []

    def connect(endpoint, *, shared_memory):
        shared.append(shared_memory)
        return triton

    monkeypatch.setattr("medimage_client.wire.triton.Endpoint.connect", connect)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((600, 700), 5, np.uint8)).save("film.bmp")
    assert run(*command, "film.bmp").exit_code == 0
    assert run(*command, "film.bmp", "--resize", "client", "--shared-memory").exit_code == 0
    plain, resized = [call for call in triton.calls if "image" in call.inputs]
    assert (plain.parameters, resized.parameters) == ({}, {"resized_by_client": True})
    assert len(values_of(resized)[0]) < len(values_of(plain)[0])
    assert shared == [False, True]


def test_embed_writes_npz_with_names_and_vectors(run, images, tmp_path, unit_vectors):
    output = tmp_path / "out.npz"
    assert run("embed", images / "c.tiff", images / "a.png", "--output", output).exit_code == 0
    with np.load(output) as arrays:
        assert arrays["names"].tolist() == [str(images / "c.tiff"), str(images / "a.png")]
        assert np.array_equal(arrays["vectors"], unit_vectors([7, 5]))


def test_embed_writes_parquet_with_a_name_and_a_vector_column(run, tmp_path, unit_vectors):
    pq = pytest.importorskip(
        "pyarrow.parquet", reason="no pyarrow that suits the installed NumPy", exc_type=ImportError
    )
    output = tmp_path / "out.parquet"
    assert run("embed", "--text", "a", "--text", "bc", "--output", output).exit_code == 0
    table = pq.read_table(output)
    vector_type = table.schema.field("vector").type
    assert (vector_type.list_size, str(vector_type.value_type)) == (1024, "float")
    assert table.column("name").to_pylist() == ["a", "bc"]
    assert table.column("vector").to_pylist() == unit_vectors([1, 2]).tolist()


def test_embed_sends_long_lists_in_requests_and_keeps_their_order(run, tmp_path, grey, unit_vectors, triton):
    values = [i % 256 for i in range(150)]
    paths = [tmp_path / f"{i:03}.png" for i in range(len(values))]
    for path, value in zip(paths, values, strict=True):
        path.write_bytes(encode_image(grey(value)))
    assert run("embed", tmp_path, "--output", tmp_path / "out.npy").exit_code == 0
    assert np.array_equal(np.load(tmp_path / "out.npy"), unit_vectors(values))


@pytest.fixture
def bad_files(images, triton):
    """Files among the images that the client or the server refuses."""
    (images / "b" / "dicom").write_bytes(bytes(128) + b"DICM")
    (images / "b" / "empty.png").touch()
    for name in ("garbage 1.png", "garbage 2.png"):
        (images / name).write_bytes(b"garbage")

    def refuse(call):
        if b"garbage" in values_of(call):
            raise InvalidInput("not an image", row=values_of(call).index(b"garbage"))

    triton.refuse = refuse
    return {
        images / "b/dicom": "is a DICOM file that cannot be read",
        images / "b/empty.png": "is empty",
        images / "garbage 1.png": "not an image",
        images / "garbage 2.png": "not an image",
    }


def test_embed_leaves_bad_files_out_and_reports_each(run, images, bad_files, tmp_path, unit_vectors):
    result = run("embed", images, "--text", "abc", "--output", tmp_path / "out.npz")
    assert (result.exit_code, result.stdout) == (1, "")
    *lines, summary = result.stderr.splitlines()
    for line, (path, reason) in zip(lines, bad_files.items(), strict=True):
        assert line.startswith(f"Error: {path}: {reason}")
    assert summary == "Error: 4 of 7 images are left out"
    with np.load(tmp_path / "out.npz") as arrays:
        good = [str(images / name) for name in ("a.png", "b/one.PNG", "c.tiff")]
        assert arrays["names"].tolist() == [*good, "abc"]
        assert np.array_equal(arrays["vectors"], unit_vectors([5, 9, 7, 3]))


def test_classify_leaves_bad_files_out_and_reports_each(run, images, bad_files):
    result = run("classify", images, "--label", "five5", "--json")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == len(bad_files) + 1
    assert [row["image"] for row in json.loads(result.stdout)] == [
        str(images / name) for name in ("a.png", "b/one.PNG", "c.tiff")
    ]


def test_file_of_a_folder_that_cannot_be_read_is_reported(run, images, tmp_path, unit_vectors):
    (images / "locked").symlink_to("/proc/self/mem")  # which not even root can read from its start
    result = run("embed", images, "--output", tmp_path / "out.npy")
    assert result.exit_code == 1
    line, summary = result.stderr.splitlines()
    assert line.endswith(f"cannot read {images / 'locked'}: Input/output error")
    assert summary == "Error: 1 of 4 images are left out"
    assert np.array_equal(np.load(tmp_path / "out.npy"), unit_vectors([5, 9, 7]))


def test_embed_finds_dicom_files_without_suffix_in_a_folder(run, tmp_path):
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    result = run("embed", tmp_path, "--output", tmp_path / "out.npy")
    assert "IM0001: is a DICOM file that cannot be read" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["embed", "--output", "out.npy"], "nothing to embed; give PATHS, --text or both"),
        (["embed", "--text", "a", "--output", "out.csv"], "out.csv is not one of .npy, .npz, .parquet"),
        (["embed", "--text", "a", "--output", "nowhere/out.npy"], "folder nowhere does not exist"),
        (["embed", "--text", "a"], "give --output FILE or --to TABLE, one of them"),
        (["embed", "--text", "a", "--output", "a.npy", "--shard", "1/2"], "--shard is for --to TABLE"),
        (["embed", "--text", "a", "--output", "a.npy", "--url", "a", "--url", "b"], "a second --url is for --to TABLE"),
        (["embed", "--text", "a", "--to", "table"], "--to takes PATHS; texts are those of a table's column `text`"),
        (["embed", ".", "--to", "table", "--shard", "3/2"], "'3/2' is not N/M with N from 1 to M"),
        (["embed", "missing.png", "--output", "out.npy"], "Path 'missing.png' does not exist."),
        (["embed", ".", "--output", "out.npy"], "no images in .; expected .bmp, "),
        (["classify", "notes.txt"], "no labels; give --label or --labels"),
        (["classify", "notes.txt", "--label", "a", "--template", "x"], "has no {}, the place of the label"),
        (["score", "missing.json"], "'missing.json': No such file or directory"),
        (["score", "notes.txt", "--layout", "table"], "'table' is not one of 'rows', 'card', 'object'."),
        (["score", "notes.txt", "--timeout", "0"], "0.0 is not in the range x>0."),
        (["nonsense"], "No such command 'nonsense'."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_use_ends_with_code_2(run, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    result = run(*args)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]


def test_missing_pyarrow_names_the_extra_before_any_work(run, triton, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run("embed", "--text", "a", "--output", tmp_path / "out.parquet")
    assert result.exit_code == 1
    assert result.stderr == "Error: writing Parquet needs pyarrow: pip install 'medimage-triton[parquet]'\n"
    assert triton.calls == []


def test_classify_prints_a_table_with_the_best_label_marked(run, images, tmp_path, monkeypatch):
    monkeypatch.chdir(images)
    labels = tmp_path / "labels.txt"
    labels.write_text("seven!!\n\n  nine nine  \n")
    result = run("classify", "a.png", "b/one.PNG", "c.tiff", "--label", "five5", "--labels", labels)
    assert result.stdout.splitlines() == [
        "image        five5  seven!!  nine nine",
        "a.png      1.0000*  0.0000     0.0000",
        "b/one.PNG  0.0000   0.0000     1.0000*",
        "c.tiff     0.0000   1.0000*    0.0000",
    ]


def test_classify_prints_json_with_every_label_and_multilabel_rates_each_by_itself(run, images):
    options = ["--label", "five5", "--label", "other one", "--multilabel", "--json"]
    (row,) = json.loads(run("classify", images / "a.png", *options).stdout)
    assert row["image"] == str(images / "a.png")
    assert row["scores"] == {"five5": 1.0, "other one": 0.5}  # sigmoid of 91.2 and of 0


def test_unreachable_server_ends_with_one_line_and_code_1(run, triton, no_delay):
    triton.failures = [TransportError("cannot reach the server: refused") for _ in range(5)]
    result = run("embed", "--text", "a", "--output", "out.npy")
    assert result.exit_code == 1
    assert result.stderr == "Error: cannot reach the server: refused\n"


def test_help_lists_the_commands_of_other_packages_without_importing_what_is_large():
    program = "import sys; from medimage_client.cli import main; sys.argv = ['medimage', '--help']\n"
    program += "large = {'torch', 'pyarrow', 'lancedb', 'sklearn', 'scipy', 'matplotlib', 'bokeh', 'umap'}\n"
    program += "try: main()\nfinally: print(large & sys.modules.keys() != set())"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    commands = [line.split()[0] for line in output.partition("Commands:\n")[2].splitlines() if line.startswith("  ")]
    here, elsewhere = (
        ["classify", "embed", "evaluate", "report", "score", "status", "studies"],
        [
            *("clean", "demo", "doctor", "endpoint", "export", "finetune", "head", "index", "init", "map", "outliers"),
            *("search", "serve", "triton-env"),
        ],
    )
    assert commands == sorted(here + elsewhere)
    assert output.splitlines()[-1] == "False"


@pytest.fixture
def without_export(monkeypatch):
    """`medimage export` as it is where its package cannot be imported."""
    entry_point = EntryPoint("export", "medimage_export.missing:export", "medimage.commands")
    monkeypatch.setattr("medimage_client.cli.plugins.commands_of_other_packages", lambda group: {"export": entry_point})


def test_command_whose_extra_is_missing_is_listed_and_names_the_extra(run, without_export):
    assert "export" in run("--help").stdout
    result = run("export", "medimageinsight", "--checkpoint", "x", "--help")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: medimage export needs medimage_export.missing: pip install 'medimage-triton[export]'\n"
    )


def test_command_of_evaluate_whose_extra_is_missing_names_the_extra(run, monkeypatch):
    entry_point = EntryPoint("classification", "medimage_analysis.missing:command", "medimage.evaluate")
    found = {"medimage.evaluate": {"classification": entry_point}}
    monkeypatch.setattr("medimage_client.cli.plugins.commands_of_other_packages", lambda group: found.get(group, {}))
    assert {"classification", "report"} <= set(run("evaluate", "--help").stdout.split())
    result = run("evaluate", "classification", "predictions.csv")
    assert result.exit_code == 1
    assert "Error: medimage evaluate classification needs medimage_analysis" in result.stderr
    assert result.stderr.endswith(": pip install 'medimage-triton[analysis]'\n")


@pytest.mark.parametrize("missing", ["torch", "onnx"])
def test_export_without_its_extra_ends_with_one_line_and_code_1(missing):
    program = f"import sys; sys.modules['{missing}'] = None; from medimage_client.cli import main; main()"
    command = [sys.executable, "-c", program, "export", "medimageinsight", "--random-weights"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 1
    assert finished.stderr == f"Error: medimage export needs {missing}: pip install 'medimage-triton[export]'\n"


def test_missing_click_names_the_extra():
    program = "import sys; sys.modules['click'] = None; from medimage_client.cli import main; main()"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 1
    assert finished.stderr == "Error: the command line needs click: pip install 'medimage-triton[cli]'\n"


@pytest.mark.parametrize(
    ("option", "window"),
    [("file", "file"), ("percentile", "percentile"), ("500,1500", (500, 1500)), ("-5.5,9", (-5.5, 9))],
)
def test_dicom_window_of_the_command_line_is_the_clients(run, triton, tmp_path, option, window):
    film = tmp_path / "film.dcm"
    film.write_bytes(file_of(dicom(RAMP, BitsStored=12, WindowCenter=100, WindowWidth=100)))
    assert run("embed", film, "--dicom-window", option, "--output", tmp_path / "out.npy").exit_code == 0
    assert run("classify", film, "--dicom-window", option, "--label", "abc").exit_code == 0
    images = [value for call in triton.calls for value in values_of(call) if value != b"abc"]
    assert images == [encode_image(film, dicom_window=window)] * 2


@pytest.mark.parametrize("option", ["auto", "1", "2,1", "1,2,3", "a,b", "nan,1"])
def test_dicom_window_that_is_none_is_refused(run, images, tmp_path, option):
    result = run("embed", images, "--dicom-window", option, "--output", tmp_path / "out.npy")
    assert result.exit_code == 2
    assert f"'{option}' is not file, percentile or LOW,HIGH" in result.stderr
