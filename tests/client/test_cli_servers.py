"""`medimage evaluate servers`: two Tritons in memory, of which one is slower and the other errs."""

import json

import pytest
from click.testing import CliRunner
from PIL import Image

from medimage_client.cli.group import medimage
from tests.client.fake_triton import FakeTriton, unit_vectors, values_of

LABELS = ["--label", "five5", "--label", "seven!!"]  # answered by the unit vectors 5 and 7
OPTIONS = [*LABELS, "--truth", "truth.csv", "--bootstrap", "0", "--runs", "3"]
IMAGE_MS = {8001: 40, 8002: 10}  # of a request with one image


class SlowTriton(FakeTriton):
    """Takes its time by a clock of its own; sees an image of 8 as a 5 or, the other of the two, as a 7."""

    def __init__(self, port, clock):
        super().__init__()
        self.port, self.clock = port, clock

    async def infer(self, call, *, timeout):
        outputs = await super().infer(call, timeout=timeout)
        if "image" in call.inputs:
            self.clock["s"] += IMAGE_MS[self.port] / 1e3
            eights = outputs["image_features"][:, 8] == 1
            outputs["image_features"][eights] = unit_vectors([7 if self.port == 8002 else 5])
        return outputs


@pytest.fixture
def tritons():
    clock = {"s": 0.0}
    return {port: SlowTriton(port, clock) for port in IMAGE_MS}


@pytest.fixture
def run(tritons, monkeypatch, tmp_path, grey):
    """Run the command beside four images: 5, 5, 7 and 8, which is truly a 5."""
    monkeypatch.setattr(
        "medimage_client.wire.triton.Endpoint.connect",
        lambda endpoint, *, shared_memory: tritons[int(endpoint.address[-4:])],
    )
    monkeypatch.setattr("medimage_client.cli.evaluate_servers.perf_counter", lambda: tritons[8001].clock["s"])
    monkeypatch.chdir(tmp_path)
    for name, value in zip("abcd", (5, 5, 7, 8), strict=True):
        Image.fromarray(grey(value)).save(f"{name}.png")
    (tmp_path / "truth.csv").write_text("id,label\na.png,five5\nb.png,five5\nc.png,seven!!\nd.png,five5\n")
    return lambda *args: CliRunner().invoke(medimage, ["evaluate", "servers", *map(str, args)])


SERVERS = ["--server", "fp32=grpc://localhost:8001", "--server", "int8=grpc://localhost:8002"]


def test_table_of_the_card_of_two_servers(run, tritons):
    result = run(".", *SERVERS, *OPTIONS)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "4 images, 2 labels; latency is the median of 3 requests of one image, one after the other",
        "",
        "| Model | Latency (ms) | Speed-up | Accuracy |    BACC |    mAUC | Changed answers |",
        "| ----- | -----------: | -------: | -------: | ------: | ------: | --------------: |",
        "| fp32  |         40.0 |        - |  100.00% | 100.00% | 100.00% |               - |",
        "| int8  |         10.0 |   75.00% |   75.00% |  83.33% |  83.33% |               1 |",
    ]
    for triton in tritons.values():
        sizes = [len(values_of(call)) for call in triton.calls if "image" in call.inputs]
        assert sizes == [4, 1, 1, 1]  # all of them first, which warms up


def test_json_has_the_same_numbers_and_intervals(run):
    found = json.loads(run(".", *SERVERS, *OPTIONS[:-4], "--bootstrap", 0, "--runs", 2, "--json").stdout)
    assert found["int8"]["latencies_ms"] == pytest.approx([10, 10])
    assert found["int8"]["speed_up"] == pytest.approx(0.75)
    assert found["int8"]["accuracy"] == {"value": 0.75, "low": None, "high": None}
    assert found["fp32"]["changed_answers"] == 0


def test_intervals_stand_in_brackets(run, tmp_path, grey):
    Image.fromarray(grey(7)).save("e.png")
    with (tmp_path / "truth.csv").open("a") as truth:
        truth.write("e.png,seven!!\n")
    (line,) = run(".", *SERVERS[2:], *LABELS, "--truth", "truth.csv").stdout.splitlines()[-1:]
    assert "80.00% (40.00 to 100.00)" in line  # none of three fives is right in one of 27 samples


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--server", "localhost:8001"], "'localhost:8001' is not NAME=URL, such as int8=grpc://localhost:8001"),
        (["--server", "a=grpc://x:1", "--server", "a=grpc://x:2"], "the name 'a' is given twice"),
        ([], "Missing option '--server'"),
        ([*SERVERS, "--bootstrap", "5"], "one image alone has the label 'seven!!' in the truth"),
    ],
)
def test_bad_options_end_with_one_line(run, tritons, args, message):
    result = run(".", *OPTIONS, *args)
    assert result.exit_code in (1, 2)
    assert message in result.stderr.splitlines()[-1]
    assert all(triton.calls == [] for triton in tritons.values())


def test_image_that_one_server_refuses_ends_the_comparison(run, tmp_path):
    (tmp_path / "e.png").touch()
    with (tmp_path / "truth.csv").open("a") as truth:
        truth.write("e.png,five5\n")
    result = run(".", *SERVERS, *OPTIONS)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == "Error: 1 of 5 images are left out"
