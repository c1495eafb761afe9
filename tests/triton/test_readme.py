"""Examples of README.md and docs/ run as they stand there, against servers that their own commands start."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from base64 import encodebytes
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medimage_export.phantoms import CAPTIONS, phantom
from medimage_export.phantoms.chest_study import TEST_SEEDS, chest_study
from medimage_server.listening import choose_ports
from tests.client.radiographs import radiograph
from tests.examples import RUN, blocks_of, examples
from tests.paths import PHANTOM_CHECKPOINT, REPORT_CHECKPOINT, ROOT
from tests.triton.commands import ANY_PORT, started

README, CLIENT, COMMANDS = "README.md", "docs/client.md", "docs/cli.md"
EVALUATION = "docs/evaluation.md"
AS_DICOM, SR_COMMANDS = "docs/structured_reports.md", "## From the command line"
ENDPOINT, MODELS, QUICK_START = "docs/endpoint.md", "docs/models.md", "docs/quickstart.md"
WAIT_S = 120.0  # for any one command
KEY = "a-key-for-the-readme"


@pytest.fixture(scope="module")
def workplace(unexported, tmp_path_factory):
    """A folder with the files that the reader has: the repository, a checkpoint, images, a request."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(unexported, folder / "model_repository")
    (folder / "studies").mkdir()
    for i, caption in enumerate(CAPTIONS[:3]):
        Image.fromarray(phantom(caption, seed=1).image).save(folder / "studies" / f"{i}.png")
    shutil.copy(folder / "studies" / "0.png", folder / "chest.png")
    image = encodebytes((folder / "chest.png").read_bytes()).decode()
    request = {"input_data": {"columns": ["image", "text"], "index": [0], "data": [[image, CAPTIONS[0]]]}}
    (folder / "request.json").write_text(json.dumps(request))
    study = chest_study(TEST_SEEDS[0])
    for name, view in (("frontal", study.frontal), ("lateral", study.lateral)):
        Image.fromarray(view).save(folder / f"{name}.png")
        height, width = view.shape
        number = 1 if name == "frontal" else 2
        (folder / f"{name}.dcm").write_bytes(radiograph((width, height), number=number, PixelData=view.tobytes()))
    columns = ["frontal_image", "lateral_image", "indication", "technique", "comparison"]
    images = [encodebytes((folder / f"{name}.png").read_bytes()).decode() for name in ("frontal", "lateral")]
    request = {
        "input_data": {"columns": columns, "index": [0], "data": [[*images, "Pneumonia", "One view chest", "None"]]}
    }
    (folder / "study.json").write_text(json.dumps(request | {"params": {}}))
    return folder


@pytest.fixture(scope="module")
def run(workplace):
    """Run a command as the reader would: in the active environment; returns its stdout."""
    ports = choose_ports("127.0.0.1", {"http": 0, "grpc": 0, "metrics": 0, "score": 0})
    score_port = ports.pop("score")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MEDIMAGE_KEYS": KEY,
    }

    def local(command: str) -> str:
        """With the ports of this test, and the checkpoint that it has."""
        command = command.replace("localhost:8001", f"localhost:{ports['grpc']}")
        command = command.replace("localhost:8000", f"localhost:{ports['http']}")
        command = command.replace("127.0.0.1:5001", f"127.0.0.1:{score_port}")
        command = command.replace("--score-port 5001", f"--score-port {score_port}")
        command = re.sub(
            r"^(medimage (?:score|embed|classify|report|search|head train) .*)",
            rf"\1 --url grpc://localhost:{ports['grpc']}",
            command,
        )
        command = command.replace("$(openssl rand -hex 24)", KEY)
        command = command.replace("/data/medimageinsight", str(PHANTOM_CHECKPOINT))
        command = command.replace("/data/maira-2", str(REPORT_CHECKPOINT))
        serve = "medimage serve " + " ".join(f"--{name}-port {port}" for name, port in ports.items())
        return re.sub(r"medimage serve$", serve, command)  # with the endpoint, Triton has no ports

    def start(command: str, **options) -> subprocess.Popen:
        return subprocess.Popen(["bash", "-c", local(command)], cwd=workplace, env=environment, text=True, **options)

    def finish(command: str) -> str:
        process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        stdout, stderr = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, f"{command}\n{stderr}"
        return stdout

    @contextmanager
    def served(command: str, first_line: str = "ready: "):
        command = re.sub(r"^(?=medimage )", "exec ", command.strip(), flags=re.MULTILINE)
        with start(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            try:
                assert process.stdout.readline().startswith(first_line)
                yield
            finally:
                process.send_signal(signal.SIGTERM)
        assert process.returncode == 0

    finish.served = served
    finish.local = local
    return finish


@pytest.fixture(scope="module")
def served(run):
    """The server of "Your own checkpoint", started by its own commands."""
    (commands,) = examples(README, "## Your own checkpoint")
    *exports, serve = commands.splitlines()
    for export in exports:
        assert "max |err|" in run(export)
    with run.served(serve):
        yield


def test_score_gives_the_azure_answer(served, run):
    command, *_ = examples(COMMANDS, "## Embeddings and labels")[0].splitlines()
    (row,) = json.loads(run(command))
    assert [len(row["image_features"]), len(row["image_features"][0]), len(row["text_features"])] == [1, 1024, 1024]


def test_quick_start_leaves_a_vector(served, run, workplace):
    _, command = examples(QUICK_START, "## Serve the phantom checkpoints")
    run(command)
    assert np.load(workplace / "vector.npy").shape == (1, 1024)


PYTHON = {  # page, heading and number of an example, what it prints below it
    "medimageinsight": (CLIENT, "## MedImageInsight", 0),
    "report": (CLIENT, "## CXRReportGen", 0),
    "nvidia": (MODELS, "### gRPC with NVIDIA's own client", 0),
    "structured-report": (AS_DICOM, "## From Python", 0),
    "boxes": (AS_DICOM, "## Where the boxes are", 0),
    "readme-embeddings": (README, "## Python", 0),
    "readme-report": (README, "## Python", 1),
}


@pytest.mark.parametrize(("page", "heading", "number"), PYTHON.values(), ids=PYTHON)
def test_python_example_prints_what_stands_below_it(served, run, workplace, page, heading, number):
    code, printed = examples(page, heading)[2 * number : 2 * number + 2]
    (workplace / "example.py").write_text(run.local(code))
    assert run("python example.py") == printed


def test_table_grows_and_is_read(served, run, workplace):
    commands, code, printed, _ = examples("docs/tables.md", "## From a folder to a table")
    for command in commands.splitlines():
        run(command)
    (workplace / "example.py").write_text(code)
    assert run("python example.py") == printed


@pytest.mark.soak
def test_search_finds_drawings_and_texts_as_the_page_shows(served, run, workplace):
    page = "docs/search.md"
    drawings, commands, *shown = examples(page, "## A worked example")
    (workplace / "drawings.py").write_text(drawings)
    run("python drawings.py")
    embed, index, *searches = commands.splitlines()
    run(embed)
    assert run(index).endswith("search is exact\n")
    for command, printed in zip(searches, shown, strict=True):
        # distances differ in the last digits from machine to machine, and with them the order of what is unlike
        found, expected = ([line.split()[0] for line in text.splitlines()] for text in (run(command), printed))
        assert found[:4] == expected[:4]
    with Image.open(workplace / "found.png") as picture:
        assert picture.size == (1000, 460)
    code, printed = examples(page, "## From Python")
    (workplace / "example.py").write_text(code)
    assert run("python example.py") == printed


def test_options_for_large_images_give_vectors(served, run, workplace):
    (code,) = examples(CLIENT, "### Large images")
    assert "resize" in code and "shared_memory" in code
    (workplace / "example.py").write_text(run.local(code) + "    print(vectors.shape)\n")
    assert run("python example.py") == "(1, 1024)\n"


def test_other_precisions_are_exported(run, workplace, unexported):
    (command,) = examples("docs/checkpoints.md", "## MedImageInsight")
    shutil.copytree(unexported, workplace / "other_repository")
    assert "bound: cosine 0.995, " in run(f"{command.strip()} --repository other_repository")  # the bound of int8


@pytest.mark.parametrize(
    "command",
    [
        line
        for page, heading in ((COMMANDS, "## Embeddings and labels"), (COMMANDS, "## Reports"), (AS_DICOM, SR_COMMANDS))
        for block in examples(page, heading)
        for line in block.splitlines()
    ],
)
def test_command_line_example_runs(served, run, command):
    run(command)


@pytest.fixture(scope="module")
def phantoms(run, workplace):
    """The drawings of the page on evaluation, fewer of them."""
    (workplace / "examples").mkdir()
    shutil.copy(ROOT / "examples/phantom_images.py", workplace / "examples")
    (command,) = commands_of(EVALUATION, "## Images to try it with")
    assert run(f"{command} 2").startswith("42 drawings of 21 captions and 7 for reference")


def commands_of(page: str, heading: str) -> list[str]:
    """The lines of the blocks under a heading which are commands."""
    blocks = [block for block in blocks_of(page) if (block.heading, block.language) == (heading, "bash")]
    assert len(blocks) == RUN[page, heading]
    return [line for block in blocks for line in block.text.splitlines()]


@pytest.mark.soak
def test_evaluation_from_images_to_scores_outliers_and_a_map(served, phantoms, run, workplace):
    classify, evaluate = commands_of(EVALUATION, "## Label images, and score the labels")
    scores = run(classify)
    assert scores.startswith("42 images, 21 labels; ")
    assert run(evaluate) == scores
    (servers,) = commands_of(EVALUATION, "## The model card's table of your own data")
    fp32, int8 = run(servers.replace("localhost:8101", "localhost:8001")).splitlines()[-2:]  # one server is both
    accuracy = re.search(r"^accuracy +([0-9.]+)", scores, re.MULTILINE)[1]
    assert [f"{float(line.split('|')[4].split('%')[0]) / 100:.3f}" for line in (fp32, int8)] == 2 * [accuracy]
    for command in commands_of(EVALUATION, "## Embed them"):
        run(command)
    (outliers,) = commands_of(EVALUATION, "## Outliers")
    assert " of 42 are outliers, by 7 of the reference" in run(outliers)
    (draw,) = commands_of(EVALUATION, "## A map")
    assert run(draw) == "42 of 42 rows by pca: phantoms/map.png, phantoms/map.html\n"
    for name in ("confusion.png", "roc.png", "outliers.csv", "outliers_roc.png", "outliers.png", "map.png", "map.html"):
        assert (workplace / "phantoms" / name).stat().st_size > 1000, name


@pytest.mark.soak  # a dozen commands, and a server of its own
def test_heads_from_drawings_to_served_scores(served, run, workplace, tmp_path):
    page = "docs/heads.md"
    drawings, *_ = examples(page, "## Images to try it with")
    (workplace / "drawings.py").write_text(drawings.replace("range(2000, 2024)", "range(2000, 2008)"))
    run("python drawings.py")
    *commands, evaluate, predict = commands_of(page, "## Train, and compare")
    for command in commands:
        run(command)
    assert [line.split()[:2] for line in run(evaluate).splitlines()[-4:]] == [
        ["texts", "zeroshot"],
        ["linear", "linear"],
        ["nearest", "knn"],
        ["adapter", "mlp"],
    ]
    run(predict)
    assert len((workplace / "scores.csv").read_text().splitlines()) == 1 + 7 * 8
    *exports, classify = commands_of(page, "## Serve it")
    for command in exports:
        assert "max |err|" in run(command)
    code, printed, _ = [
        block.text for block in blocks_of(page) if block.heading == "## Serve it" and block.language != "bash"
    ]
    options = ["--repository", workplace / "model_repository", "--models", "cxr_findings", "--models", "cxr_texts"]
    with started("serve", *options, *ANY_PORT, folder=tmp_path, last_line="models: ") as server:
        url = f"localhost:{server.grpc_port}"
        (workplace / "example.py").write_text(code.replace("localhost:8001", url))
        assert run("python example.py") == printed
        found = json.loads(run(f"env {classify} --url grpc://{url}"))
    assert [*found] == ["cxr_findings", "cxr_texts"] and len(found["cxr_texts"]) == 7 * 8


@pytest.mark.parametrize("number", range(2), ids=["image", "text"])
def test_curl_example_is_answered(served, run, number):
    features = ("image_features", "text_features")[number]
    answer = json.loads(run(examples(MODELS, "### curl")[number]))
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    assert outputs.keys() == {features, "scaling_factor"}
    assert len(outputs[features]) == 1024


def test_curl_example_streams_a_report(served, run):
    command, _ = examples(MODELS, "### Report with curl")
    events = [json.loads(line.removeprefix("data: ")) for line in run(command).splitlines() if line]
    text = "".join(event["text_output"] for event in events)
    assert len(events) > 5
    assert events[-1]["status"] == "complete"
    assert [finding[0] for finding in json.loads(events[-1]["output"])] == re.findall(r"<obj>([^<]+)", text)


def test_curl_example_gives_a_plain_report(served, run):
    _, command = examples(MODELS, "### Report with curl")
    answer = json.loads(run(command))
    ((text, boxes),) = json.loads(answer["output"])
    assert "heart" in text and boxes is None


@pytest.fixture(scope="module")
def endpoint(served, run):
    """The endpoint in front of a Triton that runs elsewhere, started by its own command."""
    *_, command = examples(ENDPOINT, "## Start it")
    with run.served(command, first_line="score: "):
        yield


AZURE = {
    "sample": (ENDPOINT, "### The documentation's sample"),
    "requests": (README, "## Moving from Azure"),
    "client": (ENDPOINT, "### The Python client against the endpoint"),
}


@pytest.mark.parametrize(("page", "heading"), AZURE.values(), ids=AZURE)
def test_code_for_azure_runs_against_the_endpoint(endpoint, run, workplace, page, heading):
    code, printed = examples(page, heading)
    (workplace / "example.py").write_text(run.local(code))
    assert run("python example.py") == printed


def test_code_with_mlclient_runs_against_the_endpoint(endpoint, run, workplace):
    exports, code, printed = examples(ENDPOINT, "### Code with MLClient")[:3]
    (workplace / "example.py").write_text(code)
    assert run(f"{exports}python example.py") == printed


def test_curl_to_the_endpoint_is_answered(endpoint, run):
    whole, streamed = examples(ENDPOINT, "### curl to the endpoint")
    (row,) = json.loads(run(whole))
    assert row.keys() == {"image_features", "text_features", "scaling_factor"}
    events = run(streamed).strip().split("\n\n")
    assert [event.splitlines()[0] for event in events[-2:]] == ["event: row", "event: end"]


def test_command_line_takes_a_scoring_uri(endpoint, run):
    (row,) = json.loads(run(f"MEDIMAGE_API_KEY={KEY} medimage score request.json --url http://127.0.0.1:5001/score"))
    assert row.keys() == {"image_features", "text_features", "scaling_factor"}


def words(table: str) -> list[list[str]]:
    """Of what `medimage status` prints, but for the address and, in the last line, the numbers."""
    return [re.sub(r"(grpc://|unix:)\S+", "…", line).split() for line in table.splitlines()[:-1]]


def test_status_prints_the_table_of_the_example(endpoint, run):
    _, status, printed, _ = examples(ENDPOINT, "## Start it")
    assert words(run(status)) == words(printed)


@pytest.mark.soak
def test_one_command_serves_with_the_endpoint(served, run):
    """On a port of its own, beside the endpoint above."""
    port = str(choose_ports("127.0.0.1", {"score": 0})["score"])
    serve, status, printed, _ = examples(ENDPOINT, "## Start it")
    with run.served(serve.replace("5001", port)):
        assert words(run(status.replace("5001", port))) == words(printed)


def test_clean_says_what_it_removed(run):
    (command,) = examples("docs/security.md", "## What lies where, and for how long")
    assert all(line.startswith(("removed ", "nothing to remove")) for line in run(command).splitlines())


@pytest.mark.parametrize(("page", "heading"), [(README, "## Two commands"), (QUICK_START, "## Run the demo")])
def test_make_commands_exist(page, heading):
    commands, *_ = examples(page, heading)
    for line in commands.splitlines():
        dry_run = ["make", "--dry-run", "--directory", str(ROOT), line.split()[1]]
        subprocess.run(dry_run, check=True, capture_output=True)
