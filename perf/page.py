"""Writes the tables of docs/performance.md and README.md from perf/results/*.json.

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`; the rest of a page is written by hand. A
measured number stands in a table or beside it, between those marks, and never in the text written by hand.

Run: python -m perf.page          with --check: changes nothing, and fails if a page differs from the results
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from perf.suite import tables
from perf.suite.device import OURS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "perf" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
TABLE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)

Content = Mapping[str, Any]


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 if a page differs from the results.")
def main(check: bool) -> None:
    """Write the tables of the pages from the results."""
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = filled(old)
        if new == old:
            continue
        if check:
            raise click.ClickException(f"{page.relative_to(ROOT)} differs from perf/results; run `python -m perf.page`")
        page.write_text(new, encoding="utf-8")


def filled(text: str) -> str:
    """The page with the tables of today's results.

    Raises:
        ClickException: the page asks for a table that does not exist, or a result lacks what a table shows.
    """

    def written(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name not in TABLES:
            raise click.ClickException(f"there is no table {name!r}; expected one of {', '.join(TABLES)}")
        file, write = TABLES[name]
        try:
            table = write(read(file)).strip()
        except KeyError as missing:
            raise click.ClickException(f"{file} has no {missing} for {name}; was its measurement stopped?") from missing
        return f"{begin}\n{table}\n\n{end}"

    return TABLE.sub(written, text)


def read(file: str) -> Content:
    content: Content = json.loads((RESULTS / file).read_text(encoding="utf-8"))
    return content


def speed(run: Content) -> str:
    """README's table: one PNG to its vector through Triton, by image size and runtime, and texts, the encoder alone."""
    cases = {f"image, {size}": case["runtimes"] for size, case in run["whole_path"]["cases"].items()}
    shown = list(next(iter(cases.values())))
    cases |= {name: case["runtimes"] for name, case in run["encoders"].items() if name.endswith("tokens")}
    rows = []
    for name, runtimes in cases.items():
        baseline_ms, *_ = (timing["median_ms"] for timing in runtimes.values())
        cells = []
        for runtime in shown:
            ms = runtimes[runtime]["median_ms"]
            cells.append(f"{ms:,.0f} ({baseline_ms / ms:.1f} x)" if runtime.startswith(OURS) else f"{ms:,.0f}")
        rows.append((name, *cells))
    about = run["about"]
    return (
        tables.table(("median ms", *shown), rows, left=1)
        + f"\n\n{about['cpu']}, {about['cores']} cores; {about['weights']}; images through Triton over gRPC, texts the "
        "encoder alone. In brackets: how many times as fast as PyTorch."
    )


def card(run: Content) -> str:
    return f"{tables.about(run['about'])}.\n\n{tables.card(run['whole_path'], run['accuracy'])}"


def encoders(run: Content) -> str:
    return f"{tables.floor(run['floor'])}\n\n{tables.encoders(run['encoders'], run['floor'])}"


def whole_path(run: Content) -> str:
    return tables.whole_path(run["whole_path"])


def accuracy(run: Content) -> str:
    return tables.accuracy(run["accuracy"])


def batches(report: Content) -> str:
    rows = [
        (
            row["tower"],
            str(row["batch"]),
            str(row["repeats"]),
            f"{row['median_ms']:,.1f}",
            f"{row['median_ms'] / row['batch']:,.1f}",
            f"{row['peak_bytes'] / 1e6:,.0f}",
        )
        for row in report["batches"]
    ]
    header = ("encoder", "batch", "repeats", "median ms", "ms a row", "peak memory, MB")
    return f"{measured(report)}; {exported(report)}.\n\n" + tables.table(header, rows, left=1)


def concurrency(report: Content) -> str:
    rows = [
        (
            row["tower"],
            str(row["concurrency"]),
            str(row["requests"]),
            f"{row['per_second']:.1f}",
            *(f"{row[key]:,.0f}" for key in ("p50_ms", "p90_ms", "p99_ms")),
        )
        for row in report["serving"]["loads"]
    ]
    header = ("through Triton", "in flight", "requests", "per second", "p50 ms", "p90 ms", "p99 ms")
    return f"{measured(report)}; {exported(report)}.\n\n" + tables.table(header, rows, left=1)


def resize(report: Content) -> str:
    rows = []
    for film in report["resize"]:
        file, sent = film["sent_bytes"]["server"], film["sent_bytes"]["client"]
        times = [film["links"][link][side]["median_ms"] for link in film["links"] for side in ("server", "client")]
        rows.append((film["film"], f"{file / 1e6:.2f}", f"{sent / 1e6:.2f}", *(f"{ms:,.0f}" for ms in times)))
    slow = f"{report['link_bit_s'] / 1e6:.0f} Mbit/s"
    header = ("PNG", "file, MB", "sent, MB", "loopback, ms", '`resize="client"`', f"{slow}, ms", '`resize="client"`')
    return f"{measured(report)}; medians of {report['rounds']} rounds.\n\n" + tables.table(header, rows, left=1)


def shared_memory(report: Content) -> str:
    rows = [
        (
            row["images"],
            f"{row['bytes'] / 1e6:.1f}",
            *(f"{times[way]['median_ms']:,.0f}" for times in row["wires"].values() for way in times),
        )
        for row in report["shared_memory"]
    ]
    header = ("images", "MB", "gRPC, ms", "shared memory", "HTTP, ms", "shared memory")
    return f"{measured(report)}; medians of {report['rounds']} rounds.\n\n" + tables.table(header, rows, left=1)


def preprocessing(report: Content) -> str:
    rows = []
    for row in report["files"]:
        ms = {name: found["median_ms"] for name, found in row["path"].items()}
        saved = f"{1 - ms['ours'] / ms['plain']:.0%}"
        of_it = (f"{ms['decode']:.1f}", f"{ms['resize']:.1f}", f"{ms['inflate']:.1f}" if "inflate" in ms else "-")
        rows.append(
            (row["image"], f"{row['bytes'] / 1e6:.1f}", f"{ms['plain']:.1f}", f"{ms['ours']:.1f}", saved, *of_it)
        )
    header = ("image", "MB", "plain Pillow, ms", "ours, ms", "saved", "of ours: decode", "resize", "inflate alone")
    about = f"{measured(report)}; processor time of one thread, medians of {report['rounds']} rounds."
    return f"{about}\n\n{tables.table(header, rows, left=1)}"


def endpoint_overhead(report: Content) -> str:
    rows = []
    for way, times in report["ways"].items():
        added = report["added_ms"].get(way, {}).get("median_of_pairs")
        rows.append((way, f"{times['median_ms']:.1f}", "" if added is None else f"{added:.1f}"))
    stages = ", ".join(f"{name} {ms:.1f}" for name, ms in report["stage_mean_ms"].items())
    return (
        f"{measured(report)}; a PNG of {report['png_bytes'] / 1e3:.0f} kB, {report['rounds']} rounds.\n\n"
        + tables.table(("way", "median ms", "added to gRPC, ms"), rows, left=1)
        + f"\n\nWithin the endpoint, mean ms: {stages}."
    )


def endpoint_load(report: Content) -> str:
    rows = [
        (
            str(row["callers"]),
            row["way"],
            f"{row['per_second']:.1f}",
            f"{row['p50_ms']:,.0f}",
            f"{row['p99_ms']:,.0f}",
            f"{row['failures']:.0f}",
        )
        for row in report["callers"]
    ]
    return f"{measured(report)}.\n\n" + tables.table(
        ("callers", "way", "rows a second", "p50 ms", "p99 ms", "wrong or failed"), rows, left=2
    )


def saturation(report: Content) -> str:
    run = report["saturation"]
    answers = [
        (name, f"{row['requests']:,}", f"{row['failures']:,}", f"{row['p50_ms']:,.0f}", f"{row['p99_ms']:,.0f}")
        for name, row in run["answered"].items()
    ]
    memory = [(name, ", ".join(f"{mb:,.0f}" for mb in used["each_minute"])) for name, used in run["memory_mb"].items()]
    return (
        f"{measured(report)}; {run['callers']} callers, {run['max_requests']} requests taken at once, "
        f"{run['seconds']} seconds.\n\n"
        + tables.table(("answer", "requests", "wrong or failed", "p50 ms", "p99 ms"), answers, left=1)
        + "\n\n"
        + tables.table(("process", "MB, minute by minute"), memory, left=1)
    )


def socket(report: Content) -> str:
    rows = [
        (row["request"], *(f"{row[way]['median_ms']:.2f}" for way in ("port", "socket")), f"{row['added_ms']:+.2f}")
        for row in report["requests"]
    ]
    return f"{measured(report)}; medians of {report['rounds']} rounds.\n\n" + tables.table(
        ("request", "loopback port, ms", "socket, ms", "difference"), rows, left=1
    )


def reports(report: Content) -> str:
    floor_s = report["weight_bytes"] / report["bandwidth_gb_s"] / 1e9
    single_s = {step["context"]: step["median_s"] for step in report["steps"] if step["studies"] == 1}
    rows = []
    for step in report["steps"]:
        rate = step["studies"] / step["median_s"]
        read_s = (report["weight_bytes"] + step["kv_bytes"]) / report["bandwidth_gb_s"] / 1e9
        rows.append(
            (
                str(step["context"]),
                str(step["studies"]),
                f"{step['median_s'] * 1e3:,.0f}",
                f"{step['min_s'] * 1e3:,.0f}-{step['max_s'] * 1e3:,.0f}",
                f"{rate:.2f}",
                f"{rate * single_s[step['context']]:.2f}",
                f"{floor_s / step['median_s']:.2f}",
                f"{read_s / step['median_s']:.2f}",
            )
        )
    header = ("tokens in a slot", "studies", "step ms", "min-max ms", "tokens/s", "x one study", "floor ÷ step")
    theirs, same, step_s = report["transformers"], report["same_tokens"], report["steps"][0]["median_s"]
    return (
        f"{measured(report)}. The floor, in which memory delivers {report['weight_bytes'] / 1e9:.2f} GB of weights "
        f"once at {report['bandwidth_gb_s']:.1f} GB/s, is {floor_s * 1e3:.0f} ms.\n\n"
        + tables.table((*header, "with the KV cache read"), rows, left=0)
        + f"\n\nOne image ({report['steps'][0]['context']:,} tokens of prompt): first token after "
        f"{report['first_token_s']:.0f} s, and {report['image_encoder_s']:.0f} s for the image encoder; transformers "
        f"in fp32 {theirs['first_token_s']:.0f} s. After that a token takes {step_s * 1e3:,.0f} ms, with transformers "
        f"{theirs['step_s'] * 1e3:,.0f} ms ({theirs['step_s'] / step_s:.1f} times as long). Of {same['tokens']} tokens "
        f"of {same['studies']} studies, {same['same']} are the same whether the studies are answered alone or together."
    )


def measured(report: Content) -> str:
    machine = report["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores; commit {machine['commit']}"


def exported(report: Content) -> str:
    weights, precision = report["exported"]["weights"], report["exported"]["precision"]
    return f"{precision}, {'random weights of the published size' if weights == 'random' else 'phantom checkpoint'}"


TABLES: Mapping[str, tuple[str, Callable[[Content], str]]] = {
    "speed": ("suite-cpu.json", speed),
    "speed-vnni": ("suite-cpu-vnni.json", speed),
    "card": ("suite-cpu.json", card),
    "encoders": ("suite-cpu.json", encoders),
    "encoders-vnni": ("suite-cpu-vnni.json", encoders),
    "whole-path": ("suite-cpu.json", whole_path),
    "accuracy": ("suite-cpu.json", accuracy),
    "batches": ("scaling.json", batches),
    "concurrency": ("scaling-phantom.json", concurrency),
    "resize": ("client_transport.json", resize),
    "shared-memory": ("client_transport.json", shared_memory),
    "preprocessing": ("preprocessing.json", preprocessing),
    "endpoint-overhead": ("endpoint_overhead.json", endpoint_overhead),
    "endpoint-load": ("endpoint_load.json", endpoint_load),
    "saturation": ("endpoint_load.json", saturation),
    "socket": ("socket_hop.json", socket),
    "reports": ("reports.json", reports),
}


def names_on(pages: Sequence[Path] = PAGES) -> list[str]:
    """The tables that the pages show, one after the other."""
    return [name for page in pages for _, name, _ in TABLE.findall(page.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    main()
