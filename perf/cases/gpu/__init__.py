"""Is a GPU used rightly, and how far from its limits are image encoder and reports, beside PyTorch on the same GPU?

In pieces of a few minutes, in the order of PIECES: first what can be wrong, then what is slow. Each is written into the
results when it is done, and a later run goes on behind it; perf/GPU.md is the plan. Speed is that of the published
sizes with random weights, right in size and without meaning. Without a GPU, --quick runs it all on the CPU with the
phantom checkpoints, to see that it runs.

Run: python -m perf gpu        Result: perf/results/gpu.json
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import click
import torch

from perf import tables
from perf.cases.gpu import checks, images, reports
from perf.cases.gpu.setting import Setting
from perf.cases.suite.sessions import check_present
from perf.measure import Report, quick_option


class Piece(NamedTuple):
    """What is measured at once."""

    minutes: float  # that it may take; more, and the run before it ends
    measure: Callable[[Setting], Mapping[str, object]]


PIECES: Mapping[str, Piece] = {
    "check": Piece(3, checks.check),
    "floor": Piece(1, checks.floor),
    **{f"image-{batch}": Piece(4, partial(images.side_by_side, batch=batch)) for batch in images.BATCHES},
    "path": Piece(4, images.whole_path),
    "decoder": Piece(6, reports.write),
    **{f"reports-{context}": Piece(3, partial(reports.ours, context=context)) for context in reports.CONTEXTS},
    **{f"generate-{context}": Piece(6, partial(reports.theirs, context=context)) for context in reports.CONTEXTS},
    **{f"autotune-{batch}": Piece(8, partial(images.autotuned, batch=batch)) for batch in images.BATCHES},
}


@click.command()
@quick_option
@click.option("--minutes", default=9.0, show_default=True, help="Begin no piece that would end later.")
@click.argument("pieces", nargs=-1, type=click.Choice(list(PIECES)))
def main(quick: bool, minutes: float, pieces: tuple[str, ...]) -> None:
    """Measure PIECES, or all that the results of this machine and commit do not have yet.

    A piece that fails leaves its error there, and the others are measured; name it to try it again. After a failed
    check nothing else is measured.
    """
    started = time.monotonic()
    setting = Setting.of(quick)
    check_present(setting.device)
    report = Report("gpu", quick=quick)
    report.resume()
    report.put(machine={"device": setting.device.torch, "weights": setting.weights})
    left = pieces or [name for name in PIECES if name not in report.content]
    for position, name in enumerate(left):
        if not quick and position and time.monotonic() - started + 60 * PIECES[name].minutes > 60 * minutes:
            print(f"left for another run: {', '.join(left[position:])}")
            break
        found = measured(PIECES[name], setting)
        report.content.pop(name, None)  # what it was before: mappings are merged
        report.put(**{name: found})
        print(f"{name}: {found.get('failed', 'measured')}")
        if name == "check" and "failed" in found:
            break
    print(tables.of("gpu", report.content))
    if failed := [name for name in left if "failed" in report.content.get(name, {})]:
        raise click.ClickException(f"failed: {', '.join(failed)}")


def measured(piece: Piece, setting: Setting) -> Mapping[str, object]:
    """What a piece finds, or how it failed: of what fails on a GPU there is no list."""
    try:
        return piece.measure(setting)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
    finally:
        if setting.device.torch == "cuda":
            torch.cuda.empty_cache()
