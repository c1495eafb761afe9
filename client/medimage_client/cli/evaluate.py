"""`medimage evaluate`: scores of answers against references, here of reports; other packages add commands."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from medimage_client.cli.plugins import CommandGroup
from medimage_client.reports.evaluation import Scores
from medimage_client.reports.evaluation import evaluate as evaluate_findings
from medimage_client.reports.finding import Finding, findings_of
from medimage_client.schema.json_text import decode_json

COLUMNS = ("reference", "output")


@click.group(cls=CommandGroup, entry_point_group="medimage.evaluate")
def evaluate() -> None:
    """Score answers of a model against references."""


@evaluate.command()
@click.argument("table", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="TABLE.jsonl|TABLE.csv")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def report(table: Path, as_json: bool) -> None:
    """Score chest X-ray reports as the CXRReportGen card does.

    TABLE has the columns `reference` and `output`, both the findings [[text, null or boxes], …] as JSON, as the server
    answers them; in JSON Lines also the JSON value itself. A column `id` names a row in errors.

    Findings Generation is ROUGE-L and BLEU-4 of the texts (0 to 100); Grounded Reporting adds box completion, precision
    and recall of the boxes of matched findings at an intersection over union of 0.5, and F1 of findings that are equal
    to the word. The card's columns CheXpert F1 and RadGraph F1 are left out: they need models of their own.
    """
    references, answers = [], []
    for name, row in read_rows(table):
        reference, output = (read_cell(row, column, name) for column in COLUMNS)
        references.append(reference)
        answers.append(output)
    scores = evaluate_findings(references, answers)
    click.echo(json.dumps(as_object(scores), indent=2) if as_json else render(scores))


def read_rows(table: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row with its name in errors."""
    reader = {".jsonl": read_jsonl, ".csv": read_csv}.get(table.suffix.lower())
    if reader is None:
        raise click.BadParameter(f"{table} is not one of .jsonl, .csv", param_hint="TABLE")
    try:
        for place, row in reader(table):
            yield f"{place} ({row['id']})" if row.get("id") not in (None, "") else place, row
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{table} is not UTF-8 text") from error


def read_jsonl(table: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with table.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = decode_json(line.encode())
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise click.ClickException(f"line {number}: is not a JSON object")
            yield f"line {number}", row


def read_csv(table: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with table.open(encoding="utf-8-sig", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), start=1):
            yield f"row {number}", row


def read_cell(row: Mapping[str, Any], column: str, name: str) -> Sequence[Finding]:
    cell = row.get(column)
    if cell is None:
        raise click.ClickException(f"{name}: has no {column!r}")
    try:
        return findings_of(decode_json(cell.encode()) if isinstance(cell, str) else cell)
    except (ValueError, TypeError):
        raise click.ClickException(
            f"{name}, column {column!r}: is not the JSON of findings; expected [[text, null or a list of boxes], …]"
        ) from None


def render(scores: Scores) -> str:
    """The two tables of the card, without the columns that need models."""
    n_boxes = f"{scores.boxes.n_reference} boxes in the references, {scores.boxes.n_answered} answered"
    boxes = f"{number(scores.boxes.precision)}/{number(scores.boxes.recall)}"
    return "\n".join(
        [
            f"Findings Generation, {scores.n_reports} reports",
            "| ROUGE-L | BLEU-4 |",
            "|---------|--------|",
            f"| {number(scores.rouge_l):<7} | {number(scores.bleu_4):<6} |",
            "",
            f"Grounded Reporting, {n_boxes}",
            "| ROUGE-L | Box-Completion (Precision/Recall) | Finding F1 |",
            "|---------|-----------------------------------|------------|",
            f"| {number(scores.rouge_l):<7} | {boxes:<33} | {number(scores.findings.f1):<10} |",
        ]
    )


def number(score: float | None) -> str:
    return "-" if score is None else f"{score:.1f}"


def as_object(scores: Scores) -> dict[str, float | int | None]:
    return {
        "n_reports": scores.n_reports,
        "rouge_l": scores.rouge_l,
        "bleu_4": scores.bleu_4,
        "finding_precision": scores.findings.precision,
        "finding_recall": scores.findings.recall,
        "finding_f1": scores.findings.f1,
        "box_precision": scores.boxes.precision,
        "box_recall": scores.boxes.recall,
    }
