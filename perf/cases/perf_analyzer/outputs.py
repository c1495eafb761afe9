"""What perf_analyzer wrote, as rows.

An ensemble's row has its latencies, and a row for each of its parts says where they went. (Of an ensemble perf_analyzer
2.51 counts the parts' queues as "Network+Server Send/Recv", so the split of ensembles, also inner ones, is left out.)
"""

import csv
import re
from pathlib import Path

LATENCIES = {"p50_ms": "p50 latency", "p90_ms": "p90 latency", "p95_ms": "p95 latency", "p99_ms": "p99 latency"}
SPLIT = {
    "queue_ms": "Server Queue",
    "compute_input_ms": "Server Compute Input",
    "compute_infer_ms": "Server Compute Infer",
    "compute_output_ms": "Server Compute Output",
}
Row = dict[str, object]


def read_runs(runs: Path) -> list[Row]:
    """The rows of every run under a folder, which lie in MODEL/PROTOCOL/CONCURRENCY."""
    folders = [path.parent for path in runs.glob("*/*/[0-9]*/report.csv")]
    folders.sort(key=lambda folder: (*folder.parts[:-1], int(folder.name)))
    return [row for folder in folders for row in read_run(folder)]


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
