"""The README's commands and examples run as they stand there, against the server that its own commands start."""

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

import pytest
from PIL import Image

from medimage_export.phantoms import CAPTIONS, phantom
from medimage_export.phantoms.chest_study import TEST_SEEDS, chest_study
from medimage_server.listening import choose_ports
from tests.paths import PHANTOM_CHECKPOINT, REPORT_CHECKPOINT, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WAIT_S = 120.0  # for any one command
KEY = "a-key-for-the-readme"


def blocks(heading: str) -> list[tuple[str, str]]:
    """(language, content) of the fenced blocks under a heading, subheadings included."""
    level = heading.split()[0]
    section = README[README.index(f"\n{heading}\n") + len(heading) + 1 :]
    section = re.split(rf"^#{{2,{len(level)}}} ", section, maxsplit=1, flags=re.MULTILINE)[0]
    found = BLOCK.findall(section)
    assert found, f"no example under {heading}"
    return found


@pytest.fixture(scope="module")
def workplace(unexported, tmp_path_factory):
    """A folder with the files that the README's reader has: the repository, a checkpoint, images, a request."""
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
    columns = ["frontal_image", "lateral_image", "indication", "technique", "comparison"]
    images = [encodebytes((folder / f"{name}.png").read_bytes()).decode() for name in ("frontal", "lateral")]
    request = {
        "input_data": {"columns": columns, "index": [0], "data": [[*images, "Pneumonia", "One view chest", "None"]]}
    }
    (folder / "study.json").write_text(json.dumps(request | {"params": {}}))
    return folder


@pytest.fixture(scope="module")
def run(workplace):
    """Run a command as the README's reader would: in the active environment; returns its stdout."""
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
            r"^(medimage (?:score|embed|classify|report) .*)", rf"\1 --url grpc://localhost:{ports['grpc']}", command
        )
        serve = "medimage serve " + " ".join(f"--{name}-port {port}" for name, port in ports.items())
        command = command.replace("/data/medimageinsight", str(PHANTOM_CHECKPOINT))
        return command.replace("/data/maira-2", str(REPORT_CHECKPOINT)).replace("medimage serve", serve)

    def start(command: str, **options) -> subprocess.Popen:
        return subprocess.Popen(["bash", "-c", local(command)], cwd=workplace, env=environment, text=True, **options)

    def finish(command: str) -> str:
        process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        stdout, stderr = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, f"{command}\n{stderr}"
        return stdout

    @contextmanager
    def served(command: str, first_line: str = "ready: "):
        with start(f"exec {command}", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
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
def commands_of_the_checkpoint(run):
    """The server of "Bring your own checkpoint", started by its own commands; gives the last one's output."""
    (_, commands), *_ = blocks("## Bring your own checkpoint")
    *exports, serve, score = commands.splitlines()
    for export in exports:
        assert "max |err|" in run(export)
    with run.served(serve):
        yield run(score)


def test_commands_give_the_azure_answer(commands_of_the_checkpoint):
    (row,) = json.loads(commands_of_the_checkpoint)
    assert [len(row["image_features"]), len(row["image_features"][0]), len(row["text_features"])] == [1, 1024, 1024]


@pytest.mark.parametrize("heading", ["### Python", "### gRPC with NVIDIA's own client", "### Report in Python"])
def test_python_example_prints_what_stands_below_it(commands_of_the_checkpoint, run, workplace, heading):
    (_, code), (_, printed), *_ = blocks(heading)
    (workplace / "example.py").write_text(run.local(code))
    assert run("python example.py") == printed


def test_options_for_large_images_give_vectors(commands_of_the_checkpoint, run, workplace):
    *_, (_, code) = blocks("### Python")
    assert "resize" in code and "shared_memory" in code
    (workplace / "example.py").write_text(run.local(code) + "    print(vectors.shape)\n")
    assert run("python example.py") == "(1, 1024)\n"


def test_other_precisions_are_exported(run, workplace, unexported):
    _, (_, command) = blocks("## Bring your own checkpoint")
    shutil.copytree(unexported, workplace / "other_repository")
    assert "bound: cosine 0.995, " in run(f"{command.strip()} --repository other_repository")  # the bound of int8


@pytest.mark.parametrize(
    "command",
    [
        line
        for heading in ("### Command line", "### Report on the command line")
        for language, block in blocks(heading)
        for line in block.splitlines()
        if language == "bash"
    ],
)
def test_command_line_example_runs(commands_of_the_checkpoint, run, command):
    run(command)


@pytest.mark.parametrize("number", range(len(blocks("### curl"))), ids=["image", "text"])
def test_curl_example_is_answered(commands_of_the_checkpoint, run, number):
    features = ("image_features", "text_features")[number]
    outputs = {output["name"]: output["data"] for output in json.loads(run(blocks("### curl")[number][1]))["outputs"]}
    assert outputs.keys() == {features, "scaling_factor"}
    assert len(outputs[features]) == 1024


def test_curl_example_streams_a_report(commands_of_the_checkpoint, run):
    events = [
        json.loads(line.removeprefix("data: "))
        for line in run(blocks("### Report with curl")[0][1]).splitlines()
        if line
    ]
    text = "".join(event["text_output"] for event in events)
    assert len(events) > 5
    assert events[-1]["status"] == "complete"
    assert [finding[0] for finding in json.loads(events[-1]["output"])] == re.findall(r"<obj>([^<]+)", text)


def test_curl_example_gives_a_plain_report(commands_of_the_checkpoint, run):
    answer = json.loads(run(blocks("### Report with curl")[1][1]))
    ((text, boxes),) = json.loads(answer["output"])
    assert "heart" in text and boxes is None


@pytest.fixture(scope="module")
def endpoint(commands_of_the_checkpoint, run):
    """The endpoint of "Move from Azure", started by its own command."""
    *_, command = [content for language, content in blocks("## Move from Azure") if "medimage endpoint" in content]
    with run.served(command.strip(), first_line="score: "):
        yield


@pytest.mark.parametrize(
    "heading", ["### The documentation's sample", "### requests", "### The Python client against the endpoint"]
)
def test_code_for_azure_runs_against_the_endpoint(endpoint, run, workplace, heading):
    (_, code), (_, printed) = blocks(heading)
    (workplace / "example.py").write_text(run.local(code))
    assert run("python example.py") == printed


def test_curl_to_the_endpoint_is_answered(endpoint, run):
    (_, whole), (_, streamed) = blocks("### curl to the endpoint")
    (row,) = json.loads(run(whole))
    assert row.keys() == {"image_features", "text_features", "scaling_factor"}
    events = run(streamed).strip().split("\n\n")
    assert [event.splitlines()[0] for event in events[-2:]] == ["event: row", "event: end"]


def test_command_line_takes_a_scoring_uri(endpoint, run):
    (row,) = json.loads(run(f"MEDIMAGE_API_KEY={KEY} medimage score request.json --url http://127.0.0.1:5001/score"))
    assert row.keys() == {"image_features", "text_features", "scaling_factor"}


def test_status_prints_the_table_of_the_example(endpoint, run):
    def words(table):  # but for the address and, in the last line, the numbers
        return [re.sub(r"(grpc://|unix:)\S+", "…", line).split() for line in table.splitlines()[:-1]]

    _, (_, command), (_, printed), *_ = blocks("## Move from Azure")
    assert words(run(command)) == words(printed)


def test_make_commands_exist():
    (_, commands), *_ = blocks("## Two commands")
    for line in commands.splitlines():
        dry_run = ["make", "--dry-run", "--directory", str(ROOT), line.split()[1]]
        subprocess.run(dry_run, check=True, capture_output=True)
