"""How good are the reports of the phantom checkpoint, through the whole Triton path?

Writes a table of references and answers for chest studies of unseen seeds, without and with their lateral image, which
`medimage evaluate report` scores. Says something about the software, and nothing about medicine.

Result: build/perf/phantom_reports/*.jsonl, and the scores on stdout
"""

import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import get_args

import click
from PIL import Image

from medimage_client import CXRReportGen
from medimage_client.cli.evaluate import report as evaluate_report
from medimage_export.cxrreportgen.decoder_graph import Precision
from medimage_export.cxrreportgen.export import export_cxrreportgen
from medimage_export.phantoms.chest_study import TEST_SEEDS, chest_study
from medimage_export.repository import copy_unexported
from medimage_server.launcher import run_triton
from perf.measure import QUICK_RESULTS, ROOT, quick_option

OUTPUT = QUICK_RESULTS / "phantom_reports"
CONCURRENCY = 8  # studies at a time, as many as the server has slots


@click.command()
@quick_option
@click.option("--precision", type=click.Choice(get_args(Precision)), default="fp32", show_default=True)
def main(quick: bool, precision: Precision) -> None:
    """Answer unseen studies, and score the answers."""
    seeds = TEST_SEEDS[:2] if quick else TEST_SEEDS
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        repository = copy_unexported(ROOT / "model_repository", Path(scratch) / "model_repository")
        export_cxrreportgen(ROOT / "checkpoints" / "cxrreportgen-phantom", repository, precision=precision)
        with (
            run_triton(repository, log=Path(scratch) / "triton.log") as server,
            CXRReportGen(server.url) as client,
        ):
            for with_lateral in (False, True):
                started = time.perf_counter()
                with ThreadPoolExecutor(CONCURRENCY) as pool:
                    rows = list(pool.map(lambda seed, also=with_lateral: answer(client, seed, also), seeds))
                seconds = time.perf_counter() - started
                table = OUTPUT / f"{precision}-{'with' if with_lateral else 'without'}-lateral.jsonl"
                table.write_text("".join(json.dumps(row) + "\n" for row in rows))
                incomplete = sum(row["status"] != "complete" for row in rows)
                about = f"{len(rows)} studies in {seconds:.0f} s, {incomplete} not complete"
                print(f"\n{table.relative_to(ROOT)}: {about}\n")
                evaluate_report.main([str(table)], standalone_mode=False)


def answer(client: CXRReportGen, seed: int, with_lateral: bool) -> dict[str, object]:
    """One row of the table: what was drawn, and what the model answers."""
    study = chest_study(seed)
    report = client.report(
        Image.fromarray(study.frontal),
        lateral=Image.fromarray(study.lateral) if with_lateral else None,
        indication=study.indication,
        technique=study.technique,
        comparison=study.comparison,
    )
    return {
        "id": seed,
        "reference": [[finding.sentence, finding.boxes or None] for finding in study.findings],
        "output": [[finding.text, [astuple(box) for box in finding.boxes] or None] for finding in report.findings],
        "status": report.status,
    }
