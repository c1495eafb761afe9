"""The endpoint against its own OpenAPI document: what schemathesis generates is answered as the document says.

Half of the requests follow the document, the other half break it in one place each. The same ones in every run.
"""

import json
import subprocess
import sys

import pytest

from tests.amounts import amounts
from tests.triton.endpoint.raw_http import KEY

END_S = 120.0
# What the document cannot say, such as that a row has as many cells as there are columns, is refused with 400 too, so
# that `positive_data_acceptance` does not hold. That good requests are accepted is what the phase of examples shows.
EXCLUDED = "positive_data_acceptance"


@pytest.fixture(scope="module", params=amounts(3, 30))
def run(request, endpoint, tmp_path_factory):
    """The report of a run of schemathesis, and what it printed; with so many examples of each operation and phase,
    beside those of the document."""
    folder = tmp_path_factory.mktemp("schemathesis")  # where it leaves its files
    host, port = endpoint.address
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"http://{host}:{port}/openapi.json"),
        *("--header", f"Authorization: Bearer {KEY}"),
        *("--phases", "examples,coverage,fuzzing", "--exclude-checks", EXCLUDED),
        *("--generation-deterministic", "--max-examples", str(request.param), "--continue-on-failure"),
        *("--request-timeout", "30", "--report-json-path", str(folder / "report.json"), "--no-color"),
    ]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=END_S)
    return json.loads((folder / "report.json").read_text()), ended.stdout + ended.stderr


def test_answers_are_those_of_the_document(run):
    report, output = run
    assert report["exit_code"] == 0, output
    assert report["complete"]
    assert (report["failures"], report["errors"]) == ([], [])


def test_every_operation_was_asked_and_often(run):
    report, output = run
    assert report["operations"]["tested"] == report["operations"]["total"] >= 11, output
    assert [phase["status"] for phase in report["phases"].values()][:3] == ["success"] * 3
    assert report["test_cases"]["generated"] >= 500


def test_errors_of_the_endpoint_hold_nothing_but_their_place(run, endpoint):
    assert "ERROR" not in endpoint.errors.read_text()
