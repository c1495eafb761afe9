"""Bring together what perf_analyzer wrote: one CSV file of all runs, and one page of tables.

An ensemble's row has its latencies, and a row for each of its parts says where they went. (Of an ensemble perf_analyzer
2.51 counts the parts' queues as "Network+Server Send/Recv", so the split of ensembles, also inner ones, is left out.)

Run: by perf_analyzer.sh        Result: perf_analyzer.csv and perf_analyzer.md
"""

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import click

from perf.machine import machine

LATENCIES = {"p50_ms": "p50 latency", "p90_ms": "p90 latency", "p95_ms": "p95 latency", "p99_ms": "p99 latency"}
SPLIT = {
    "queue_ms": "Server Queue",
    "compute_input_ms": "Server Compute Input",
    "compute_infer_ms": "Server Compute Infer",
    "compute_output_ms": "Server Compute Output",
}
COLUMNS = ("model", "protocol", "concurrency", "part", "requests", "per_second", *LATENCIES, "mean_batch", *SPLIT)
Row = dict[str, object]


@click.command()
@click.argument("runs", type=click.Path(path_type=Path, exists=True))
@click.option("--output", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--other-server", is_flag=True, help="Of a server that perf_analyzer.sh did not start: may cache texts.")
def main(runs: Path, output: Path, other_server: bool) -> None:
    """Summarise the reports under RUNS, which lie in MODEL/PROTOCOL/CONCURRENCY."""
    folders = sorted(
        (path.parent for path in runs.glob("*/*/[0-9]*/report.csv")), key=lambda f: (*f.parts[:-1], int(f.name))
    )
    rows = [row for folder in folders for row in read_run(folder)]
    with (output / "perf_analyzer.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    page = "\n".join(tables(rows, machine(), other_server=other_server))
    (output / "perf_analyzer.md").write_text(page + "\n")
    print(page)


def read_run(folder: Path) -> list[Row]:
    """A row of the model, with its latencies, and for an ensemble one of each of its parts."""
    run = {"model": folder.parts[-3], "protocol": folder.parts[-2], "concurrency": int(folder.name)}
    printed = (folder / "printed.txt").read_text()
    batches = mean_batches(printed)
    report = read_csv(folder / "report.csv")
    parts = {path.name.rpartition("_v")[0]: read_csv(path) for path in sorted(folder.glob("*_v*.report.csv"))}
    own = {
        **run,
        "part": run["model"],
        "requests": int(re.search(r"Request count: (\d+)", printed)[1]),
        "per_second": float(report["Inferences/Second"]),
        **milliseconds(report, LATENCIES),
    }
    if not parts:
        return [{**own, "mean_batch": batches[""], **milliseconds(report, SPLIT)}]
    return [
        own,
        *(
            {
                **run,
                "part": part,
                "per_second": float(values["Inferences/Second"]),
                "mean_batch": batches[part],
                **milliseconds(values, SPLIT),
            }
            for part, values in parts.items()
            if part in batches  # not of an inner ensemble
        ),
    ]


def read_csv(path: Path) -> dict[str, str]:
    """The one row of a report."""
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    return row


def milliseconds(report: dict[str, str], columns: dict[str, str]) -> Row:
    """perf_analyzer counts microseconds."""
    return {ours: float(report[theirs]) / 1000 for ours, theirs in columns.items()}


def mean_batches(printed: str) -> dict[str, float]:
    """Rows per execution by part that is no ensemble, under "" for the model itself, of what perf_analyzer prints."""
    part, inferences, batches = "", 0, {}
    for line in printed.splitlines():
        if line.strip() == "Composing models:" and part:  # what was counted above is an ensemble
            del batches[part]
        match re.fullmatch(r"\s*(?:(\w+), version: \d+|(Inference|Execution) count: (\d+))\s*", line):
            case None:
                pass
            case found if found[1]:
                part = found[1]
            case found if found[2] == "Inference":
                inferences = int(found[3])
            case found:
                batches[part] = inferences / max(int(found[3]), 1)
    return batches


def tables(rows: Sequence[Row], about: dict[str, object], *, other_server: bool) -> Iterator[str]:
    """Lines of Markdown: for each model its latencies, and where they went."""
    yield f"perf_analyzer, measured on {about['cpu']}, {about['cores']} cores, commit {about['commit']}; times in ms."
    yield "Of few requests, the p99 is the slowest. Queue and compute are means of the server's own clock."
    if other_server:
        yield "The server was given by --url. If it caches text vectors, as `medimage serve` does by default, the texts"
        yield "were answered from its cache, because perf_analyzer sends the same ones again and again."
    for model, group in groupby(rows, key=lambda row: row["model"]):
        of_model = list(group)
        yield f"\n**{model}**\n"
        yield "| protocol | concurrency | requests | per second | p50 | p90 | p95 | p99 |"
        yield "|---|---:|---:|---:|---:|---:|---:|---:|"
        for row in of_model:
            if row["part"] == model:
                values = " | ".join(f"{row[name]:.1f}" for name in ("per_second", *LATENCIES))
                yield f"| {row['protocol']} | {row['concurrency']} | {row['requests']} | {values} |"
        yield "\n| protocol | concurrency | part | mean batch | queue | compute input | infer | output |"
        yield "|---|---:|---|---:|---:|---:|---:|---:|"
        for row in of_model:
            if "queue_ms" in row:
                values = " | ".join(f"{row[name]:.1f}" for name in ("mean_batch", *SPLIT))
                yield f"| {row['protocol']} | {row['concurrency']} | {row['part']} | {values} |"


if __name__ == "__main__":
    main()
