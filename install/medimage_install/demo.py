"""`medimage demo`: phantom checkpoints -> ONNX -> a real Triton -> Azure request, zero-shot table and report.

Leaves in its folder: phantoms.png, report.png, triton.log, and the model repository that it served.
"""

import base64
import json
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
from PIL import Image, ImageDraw

from medimage_client import CXRReportGen, MedImageInsight
from medimage_export.errors import ExportError
from medimage_export.initial_repository import init_repository
from medimage_export.phantoms import CAPTIONS, phantom
from medimage_export.phantoms.chest_study import chest_study
from medimage_install.places import phantom_checkpoint
from medimage_server import triton_environment
from medimage_server.errors import LaunchError
from medimage_server.launcher import run_triton

SEED = 1_000_000  # far from the seeds of training
STUDY_SEED = 1_000_004  # a chest with three findings
TILE_PX = 240


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("medimage-demo"),
    show_default=True,
    help="Folder to write into. One of an earlier demo is replaced.",
)
def demo(output: Path) -> None:
    """Export the checkpoints that are trained on drawings, serve them on a real Triton, and query them.

    It needs no GPU, no container and no weights, and touches no other model repository. The drawings have no medical
    meaning, and neither have the answers.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ctrl-C: leaves run_triton's block, which ends Triton
    repository, mark = output / "model_repository", output / ".medimage-demo"
    if output.is_dir() and any(output.iterdir()) and not mark.is_file():  # a checkout has a model_repository, too
        raise click.UsageError(f"{output} holds something else than an earlier demo; name another folder with --output")
    try:
        triton_environment.prepare(lambda line: click.echo(line, err=True))
        for earlier in (repository, output / "studies"):
            shutil.rmtree(earlier, ignore_errors=True)
        init_repository(repository)
        mark.touch()
        run(output, repository)
    except (ExportError, LaunchError, OSError) as error:
        raise click.ClickException(str(error)) from error


def run(output: Path, repository: Path) -> None:
    from medimage_export.cxrreportgen.export import export_cxrreportgen
    from medimage_export.medimageinsight.export import export_medimageinsight

    files = draw_studies(output / "studies")

    print("1. Export the phantom checkpoints; PyTorch and ONNX Runtime side by side:\n")
    export_medimageinsight(phantom_checkpoint("medimageinsight"), repository)
    export_cxrreportgen(phantom_checkpoint("cxrreportgen"), repository)

    print("\n2. Start Triton on free ports ...", end=" ", flush=True)
    started = time.monotonic()
    with run_triton(repository, log=output / "triton.log") as server:
        print(f"ready after {time.monotonic() - started:.1f} s (gRPC {server.grpc_port}, HTTP {server.http_port})")
        url = server.url
        with MedImageInsight(url) as client:
            azure_request(client, files[0])
            labels = zero_shot(client, files)
            timings(client, files)
        with CXRReportGen(url) as client:
            report(client).save(output / "report.png")
    picture = output / "phantoms.png"
    contact_sheet(files, labels).save(picture)
    print(f"\nTriton stopped. Inputs with their predicted labels: {picture}")
    print(f"The X-ray with the boxes of its report: {output / 'report.png'}")


def draw_studies(folder: Path) -> list[Path]:
    """One image file per caption, of a seed that training has not seen."""
    folder.mkdir(parents=True)
    files = []
    for caption in CAPTIONS:
        files.append(folder / f"{caption.replace(' ', '_')}.png")
        Image.fromarray(phantom(caption, seed=SEED).image).save(files[-1])
    return files


def azure_request(client: MedImageInsight, file: Path) -> None:
    """The sample request of the MedImageInsight-onnx model card, with a file of ours."""
    request = {
        "input_data": {
            "columns": ["image", "text"],
            "index": [0],
            "data": [
                [base64.encodebytes(file.read_bytes()).decode("utf-8"), "x-ray chest anteroposterior Cardiomegaly"]
            ],
        },
        "params": {"get_scaling_factor": True},
    }
    print(f"\n3. The Azure request of the model card with {file.name}; the answer, vectors shortened:\n")
    rows = client.score(request)
    assert isinstance(rows, list)  # as the row layout has it
    row = rows[0]
    shortened = {
        "image_features": [[*row["image_features"][0][:3], "..."]],
        "text_features": [*row["text_features"][:3], "..."],
        "scaling_factor": row["scaling_factor"],
    }
    print(json.dumps([shortened]))


def zero_shot(client: MedImageInsight, files: list[Path]) -> list[str]:
    """Print the best caption for each file; return them."""
    scores = client.classify(files, labels=CAPTIONS)
    best = scores.argmax(axis=1)
    print(f"\n4. Zero-shot, one unseen drawing of each of the {len(CAPTIONS)} captions:\n")
    width = max(map(len, CAPTIONS)) + 2
    print(f"{'drawn':<{width}}{'predicted':<{width}}{'score':>5}")
    for row, column in enumerate(best):
        wrong = "" if row == column else "   <- wrong"
        print(f"{CAPTIONS[row]:<{width}}{CAPTIONS[column]:<{width}}{scores[row, column]:>5.2f}{wrong}")
    print(f"\n{sum(best == range(len(files)))} of {len(files)} right")
    return [CAPTIONS[column] for column in best]


def timings(client: MedImageInsight, files: list[Path]) -> None:
    """Medians of one image, one text and many images at once, file or text to vector through Triton."""
    print("\n5. Timings, encoded file or text to vector over gRPC:\n")
    calls: list[tuple[str, Callable[[], object], int]] = [
        ("one image", lambda: client.embed_images(files[:1]), 10),
        ("one text", lambda: client.embed_texts(CAPTIONS[:1]), 10),
        (f"{len(files)} images", lambda: client.embed_images(files), 3),
    ]
    for name, call, runs in calls:
        times_ms = []
        for _ in range(runs):
            started = time.perf_counter()
            call()
            times_ms.append(1e3 * (time.perf_counter() - started))
        print(f"{name:<12} median {statistics.median(times_ms):7.1f} ms of {runs} runs")


def report(client: CXRReportGen) -> Image.Image:
    """Stream the report of one unseen study; returns the picture with its boxes."""
    study = chest_study(STUDY_SEED)
    frontal, lateral = Image.fromarray(study.frontal), Image.fromarray(study.lateral)
    print("\n6. The report of an unseen chest study, as it streams:\n")
    started = time.perf_counter()
    first_ms, pieces = 0.0, 0
    with client.stream(frontal, lateral=lateral, indication=study.indication, technique=study.technique) as stream:
        for piece in stream:
            first_ms = first_ms or 1e3 * (time.perf_counter() - started)
            pieces += 1
            print(piece.replace("</obj>", "</obj>\n"), end="", flush=True)
    total_ms = 1e3 * (time.perf_counter() - started)
    print(f"\nfirst piece after {first_ms:.0f} ms, all {pieces} after {total_ms:.0f} ms; {stream.report.status}\n")
    print(f"{'drawn':<40}answered")
    answered = {finding.text for finding in stream.report.findings}
    for drawn in study.findings:
        print(f"{drawn.sentence:<40}{'yes' if drawn.sentence in answered else 'no'}")
    for text in answered - {drawn.sentence for drawn in study.findings}:
        print(f"{'':<40}{text}   <- not drawn")
    return stream.report.draw(frontal)


def contact_sheet(files: list[Path], labels: list[str], columns: int = 6) -> Image.Image:
    """The drawings in a grid, each under the label that the model gave it: green if right, red if wrong."""
    rows = -(-len(files) // columns)
    caption_px = 34
    sheet = Image.new("RGB", (columns * TILE_PX, rows * (TILE_PX + caption_px)), "black")
    draw = ImageDraw.Draw(sheet)
    for i, (file, label) in enumerate(zip(files, labels, strict=True)):
        x, y = i % columns * TILE_PX, i // columns * (TILE_PX + caption_px)
        with Image.open(file) as image:
            sheet.paste(image.convert("RGB").resize((TILE_PX, TILE_PX)), (x, y + caption_px))
        words = label.split()
        text = "\n".join([" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])])
        draw.multiline_text((x + 4, y + 3), text, fill="lightgreen" if label == CAPTIONS[i] else "salmon", font_size=12)
    return sheet
