"""`medimage report`, `medimage score` of reports, and `medimage evaluate report`."""

import base64
import csv
import json
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from medimage_client import Unavailable
from medimage_client.cli.group import medimage
from medimage_client.images.encoding import encode_image
from tests.client.dicom_files import RAMP, dicom, file_of
from tests.client.fake_reports import OUTPUT, PROGRESS_TOLD, FakeReports, sent


@pytest.fixture
def reports():
    return FakeReports()


@pytest.fixture
def run(reports, monkeypatch):
    """Run the command against the Triton in memory."""
    monkeypatch.setattr("medimage_client.wire.triton.Endpoint.connect", lambda endpoint, *, shared_memory: reports)
    return lambda *args, **options: CliRunner().invoke(medimage, [str(arg) for arg in args], **options)


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50), dtype=np.uint8)).save(path)
    return path


def test_report_prints_findings_with_their_boxes(run, reports, film):
    result = run("report", film, "--indication", "Cough")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "1. Heart is normal.\n2. Opacity. [0.015, 0.025, 0.035, 0.045]\n"
    assert sent(reports.calls[0])["indication"] == "Cough"


def test_report_says_when_to_expect_the_first_words(run, reports, film):
    reports.progress = PROGRESS_TOLD
    result = run("report", film)
    assert (result.exit_code, result.stderr) == (0, "First words in about 37 s.\n")
    assert result.stdout.startswith("1. Heart is normal.\n")
    assert reports.calls[0].parameters == {"progress": True}
    as_json = run("report", film, "--json")
    assert (json.loads(as_json.stdout)["status"], as_json.stderr) == ("complete", result.stderr)


def test_first_words_that_come_at_once_are_not_announced(run, reports, film):
    reports.progress = [replace(progress, first_words_s=0.4) for progress in PROGRESS_TOLD]
    assert run("report", film).stderr == ""


def test_terminal_shows_how_far_the_prompt_is_read(run, reports, film, monkeypatch):
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda stream: True, raising=False)
    reports.progress = PROGRESS_TOLD
    result = run("report", film)
    bars = re.findall(r"Prompt  \[[#-]+\] +(\d+)%", result.stderr)
    assert bars[0] == "0" and bars[-1] == "100"
    assert "33" in bars  # 512 of 1,520 tokens
    assert result.stderr.startswith("First words in about 37 s.\n")
    assert result.stdout == "1. Heart is normal.\n2. Opacity. [0.015, 0.025, 0.035, 0.045]\n"


def test_report_prints_a_finding_before_the_next_is_written(run, reports, film, capsys):
    reports.hang = True
    threading.Timer(0.5, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    result = run("report", film)
    assert result.stdout == "1. Heart is normal.\n"
    assert result.exit_code == 1  # Aborted!
    assert reports.closed_early == 1


def test_report_sends_all_that_it_is_given(run, reports, film, tmp_path, grey):
    for name in ("lateral", "prior"):
        (tmp_path / name).write_bytes(encode_image(grey(len(name))))
    options = {"technique": "One view", "comparison": "None", "prior-report": "Clear.", "mode": "phrase", "phrase": "a"}
    images = ["--lateral", tmp_path / "lateral", "--prior", tmp_path / "prior"]
    texts = [part for name, value in options.items() for part in (f"--{name}", value)]
    assert run("report", film, *images, *texts, "--max-new-tokens", "9").exit_code == 0
    assert sent(reports.calls[0]) == {
        "frontal_image": film.read_bytes(),
        "lateral_image": encode_image(grey(7)),
        "prior_image": encode_image(grey(5)),
        "max_new_tokens": 9,
        **{name.replace("-", "_"): value for name, value in options.items()},
    }


def test_plain_text_is_printed_as_it_comes(run, reports, film):
    reports.pieces, reports.output = ["Lungs are", " clear.", ""], '[["Lungs are clear.", null]]'
    assert run("report", film, "--mode", "findings").stdout == "Lungs are clear.\n"
    assert run("report", film).stdout == "1. Lungs are clear.\n"


@pytest.mark.parametrize("status", ["truncated", "malformed"])
def test_report_that_is_not_complete_is_told_on_standard_error(run, reports, film, status):
    reports.status = status
    result = run("report", film)
    assert result.exit_code == 0
    assert result.stdout.startswith("1. Heart is normal.\n")
    assert result.stderr.startswith(f"The report is {status}: ")
    as_json = run("report", film, "--json")
    assert (json.loads(as_json.stdout)["status"], as_json.stderr) == (status, "")


def test_json_is_one_object_of_azures_form(run, film):
    result = run("report", film, "--json")
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout) == {"output": json.loads(OUTPUT), "status": "complete"}


def test_picture_is_the_film_with_the_legend(run, film, tmp_path):
    picture = tmp_path / "out.png"
    assert run("report", film, "--picture", picture).exit_code == 0
    with Image.open(picture) as image:
        assert (image.mode, image.width) == ("RGB", 480)
        assert image.height > 480 * 60 / 50


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--picture", "out.txt"], "out.txt has no suffix of a picture; expected .png, .jpg or the like"),
        (["--picture", "nowhere/out.png"], "folder nowhere does not exist"),
        (["--mode", "boxes"], "'boxes' is not one of 'grounded', 'findings', 'phrase'."),
        (["--max-new-tokens", "0"], "0 is not in the range x>=1."),
        (["--lateral", "missing.png"], "File 'missing.png' does not exist."),
    ],
)
def test_bad_use_ends_with_code_2_before_any_work(run, reports, film, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    result = run("report", film, *args)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert reports.calls == []


def test_failures_end_with_one_line_and_code_1(run, reports, film, no_delay):
    result = run("report", film, "--phrase", "a")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: phrase is given and mode is 'grounded'")
    reports.failures = [Unavailable("queue is full")] * 5
    result = run("report", film)
    assert (result.exit_code, result.stderr) == (1, "Error: queue is full\n")


# ---- Azure's JSON


@pytest.fixture
def request_json(film, tmp_path):
    rows = [[base64.encodebytes(film.read_bytes()).decode(), text] for text in ("one", "two")]
    path = tmp_path / "request.json"
    path.write_text(json.dumps({"input_data": {"columns": ["frontal_image", "indication"], "data": rows}}))
    return path


def test_score_of_report_columns_asks_for_reports(run, reports, request_json):
    reports.output = None
    expected = [{"output": '[["one", null]]'}, {"output": '[["two", null]]'}]
    assert json.loads(run("score", request_json).stdout) == expected
    assert json.loads(run("score", "-", input=request_json.read_bytes()).stdout) == expected
    assert reports.timeouts[0] > 119 and reports.timeouts[0] > 599


def test_score_takes_its_time_limit(run, reports, request_json):
    assert run("score", request_json, "--timeout", "7").exit_code == 0
    assert all(6 < timeout <= 7 for timeout in reports.timeouts)


def test_score_of_reports_has_one_layout(run, reports, request_json):
    result = run("score", request_json, "--layout", "card")
    assert result.exit_code == 2
    assert "card is for MedImageInsight; a report has rows" in result.stderr
    assert reports.calls == []


# ---- evaluation

REFERENCE = [["The heart is normal in size.", None], ["Opacity.", [[0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]]]]
ANSWER = [["The heart is enlarged.", None], ["opacity", [[0.1, 0.1, 0.5, 0.5]]]]
TABLES = """\
Findings Generation, 2 reports
| ROUGE-L | BLEU-4 |
|---------|--------|
| 83.3    | {bleu:.1f}   |

Grounded Reporting, 4 boxes in the references, 3 answered
| ROUGE-L | Box-Completion (Precision/Recall) | Finding F1 |
|---------|-----------------------------------|------------|
| 83.3    | 100.0/75.0                        | 75.0       |
"""


@pytest.fixture(params=["jsonl-values", "jsonl-texts", "csv"])
def table(request, tmp_path):
    rows = [
        {"id": "a", "reference": REFERENCE, "output": REFERENCE},
        {"id": "b", "reference": REFERENCE, "output": ANSWER},
    ]
    if request.param != "jsonl-values":
        rows = [row | {name: json.dumps(row[name]) for name in ("reference", "output")} for row in rows]
    path = tmp_path / f"table.{request.param.partition('-')[0]}"
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    return path


def test_evaluate_prints_the_two_tables_of_the_card(run, table):
    from sacrebleu import corpus_bleu

    texts = [" ".join(text for text, _ in report) for report in (REFERENCE, REFERENCE, ANSWER)]
    bleu = corpus_bleu([texts[0], texts[2]], [[texts[0], texts[1]]]).score
    result = run("evaluate", "report", table)
    assert (result.exit_code, result.stderr) == (0, "")
    # texts of 7 and 5 words share 4, in order: F 8/12, and the mean with 1 is 83.3
    assert result.stdout == TABLES.format(bleu=bleu)
    scores = json.loads(run("evaluate", "report", table, "--json").stdout)
    assert (scores["n_reports"], scores["finding_f1"], scores["box_recall"]) == (2, 75, 75)
    assert scores["bleu_4"] == pytest.approx(bleu)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.txt", "", "t.txt is not one of .jsonl, .csv"),
        ("t.jsonl", "", "0 references and 0 answers; expected as many, at least one"),
        ("t.jsonl", "\nJane\n", "line 2: is not a JSON object"),
        ("t.jsonl", '{"id": 7, "reference": []}', "line 1 (7): has no 'output'"),
        ("t.jsonl", '{"reference": [], "output": "Jane"}', "line 1, column 'output': is not the JSON of findings"),
        ("t.csv", 'reference,output\n[],"[[1, null]]"\n', "row 1, column 'output': is not the JSON of findings"),
        ("t.csv", "id,output\na,[]\n", "row 1 (a): has no 'reference'"),
    ],
)
def test_evaluate_of_a_bad_table_ends_with_one_line(run, tmp_path, monkeypatch, name, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    result = run("evaluate", "report", name)
    assert result.exit_code in (1, 2)
    assert message in result.stderr.splitlines()[-1]
    assert "Jane" not in result.stderr


def test_evaluate_help_says_what_is_left_out(run):
    help_text = " ".join(run("evaluate", "report", "--help").stdout.split())
    assert "CheXpert F1 and RadGraph F1 are left out" in help_text


def test_missing_libraries_name_the_extra(tmp_path):
    table = tmp_path / "t.jsonl"
    table.write_text('{"reference": [], "output": []}\n')
    program = "import sys; sys.modules['rouge_score'] = None; from medimage_client.cli import main; main()"
    command = [sys.executable, "-c", program, "evaluate", "report", str(table)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 1
    assert finished.stderr == "Error: ROUGE-L needs rouge-score: pip install 'medimage-triton[evaluate]'\n"


def test_dicom_window_is_that_of_the_report_and_of_its_picture(run, reports, tmp_path):
    film, picture = tmp_path / "film.dcm", tmp_path / "report.png"
    film.write_bytes(file_of(dicom(RAMP, BitsStored=12, WindowCenter=100, WindowWidth=100)))
    assert run("report", film, "--dicom-window", "percentile", "--picture", picture).exit_code == 0
    assert sent(reports.calls[0])["frontal_image"] == encode_image(film, dicom_window="percentile")
    assert len(np.unique(np.asarray(Image.open(picture).convert("L"))[5:100, 300:])) > 20  # of its own window two


def test_prior_report_without_its_image_is_refused(run, reports, film):
    result = run("report", film, "--prior-report", "Clear.")
    assert (result.exit_code, reports.calls) == (1, [])
    assert result.stderr.startswith("Error: prior_report: is given without prior")
