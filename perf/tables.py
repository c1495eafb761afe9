"""The results of the cases as Markdown tables, each read from the JSON of a run."""

import statistics
from collections.abc import Callable, Mapping, Sequence

from perf.cells import NONE, Content, floor_ms, ms, spread, table
from perf.gpu_tables import gpu_checks, gpu_images, gpu_path, gpu_reports

# Points by which an export may differ from PyTorch in fp32, of Accuracy, BACC and mAUC.
GOALS = {"fp16": (0.2, 0.2, 0.1), "bf16": (0.2, 0.2, 0.1), "int8": (0.5, 0.5, 0.5)}
CARD = ("**Image size**", "**Model**", "**Latency** (ms)", "**Speed-up**", "**Accuracy**", "**BACC**", "**mAUC**")
OURS = ("OnnxRuntime ", "OpenVINO as served ")  # how names of runtimes begin; other OpenVINOs are baselines
TRITON_LIMIT_MS, TRITON_LIMIT_SHARE, WHOLE_PATH_LIMIT_SHARE = 15, 0.03, 0.07  # the goals of what Triton adds


def about(report: Content) -> str:
    """Machine, versions, weights and commit of a run of the suite in a line."""
    run = report["machine"]
    device = run["gpu"] if run["device"] == "cuda" else f"{run['cpu']}, {run['cores']} cores"
    versions = f"torch {run['torch']}, onnxruntime {run['onnxruntime']}"
    return f"{device}; {versions}; {run['weights']}; commit {run['commit']}"


def floor(run: Content) -> str:
    """The matrix rates, and an image's published arithmetic at each of them."""
    rows = [
        (precision, f"{rate['gflop_per_s']:,.0f}", ms(rate["image_ms"])) for precision, rate in run["floor"].items()
    ]
    return (
        "The floor: the machine's best matrix rate at the shapes of the image encoder, and one image's published "
        "615 GFLOP at that rate. The exported graph does 581 of them.\n\n"
        + table(("precision", "GFLOP/s", "image ms"), rows, left=1)
    )


def card(run: Content) -> str:
    """PNG in, vector out, in the layout of the model card; speed-up is the reduction of the baseline's latency."""
    path, scores = run["whole_path"], run["accuracy"]
    rows = []
    for size, case in path["cases"].items():
        baseline, *others = case["runtimes"].items()
        rows.append((f"**{size}**", f"**Baseline** ({baseline[0]})", *_card_cells(baseline, None, scores)))
        rows += [("", name, *_card_cells((name, timing), baseline[1], scores)) for name, timing in others]
    return (
        f"{about(run)}.\n\nOne PNG in, its vector out, batch 1; ours {path['through']}. Speed-up is the reduction of "
        "the baseline's latency. Accuracy, BACC and mAUC are of the phantom checkpoint, measured once for each "
        f"precision on {scores['drawings']:,} drawings of 512 x 512.\n\n" + table(CARD, rows, left=2)
    )


def _card_cells(runtime: tuple[str, Content], baseline: Content | None, scores: Content) -> tuple[str, ...]:
    name, timing = runtime
    quality = scores["runtimes"][name]
    speed_up = NONE if baseline is None else f"**{reduction(baseline['median_ms'], timing['median_ms']):.2%}**"
    return (
        ms(timing["median_ms"]),
        speed_up,
        *(f"{quality[metric]:.2%}" for metric in ("accuracy", "balanced_accuracy", "macro_auc")),
    )


def reduction(baseline_ms: float, ms: float) -> float:
    """The fraction of the baseline's latency that is saved; negative where it is slower."""
    return 1 - ms / baseline_ms


def encoders(run: Content) -> str:
    """The encoders alone, with the share of the floor that each reaches where it does the work that is counted."""
    cases, rates = run["encoders"], run["floor"]
    rows, notes = [], []
    for name, case in cases.items():
        baseline_ms = next(iter(case["runtimes"].values()))["median_ms"]
        for runtime, timing in case["runtimes"].items():
            rate = rates.get(runtime.split()[-1])  # by precision; none of bf16 where it was not measured
            share = NONE
            if rate and case["gflop"] and _does_the_counted_work(name, runtime):
                share = f"{floor_ms(case['gflop'], rate['gflop_per_s']) / timing['median_ms']:.0%}"
            rows.append(
                (
                    name,
                    runtime,
                    ms(timing["median_ms"]),
                    spread(timing),
                    f"{baseline_ms / timing['median_ms']:.2f}",
                    share,
                    f"{timing['max_abs_difference']:.1e}",
                    f"{timing['min_cosine']:.6f}",
                )
            )
        notes += [f"{name}: {runtime} was not measured. {reason}" for runtime, reason in case["not_measured"].items()]
    header = ("case", "runtime", "median ms", "min-max ms", "baseline ÷ it", "floor ÷ it", "max diff", "min cosine")
    text = "Encoders alone, from pixels or token ids to vectors; differences are from the baseline's vectors.\n\n"
    return "\n\n".join([floor(run), text + table(header, rows, left=2), *notes])


def _does_the_counted_work(case: str, runtime: str) -> bool:
    """Texts are counted without their padding, which the exports cut; the baselines compute all 77 tokens."""
    return runtime.startswith(OURS) or not case.endswith("tokens")


def whole_path(run: Content) -> str:
    """The spread behind the card's table, and the time in which the PNG alone is decoded."""
    path = run["whole_path"]
    rows = []
    for size, case in path["cases"].items():
        baseline_ms = next(iter(case["runtimes"].values()))["median_ms"]
        rows.append((size, "Pillow, decoding alone", ms(case["decode"]["median_ms"]), spread(case["decode"]), "", ""))
        rows += [
            (
                size,
                runtime,
                ms(timing["median_ms"]),
                spread(timing),
                f"{baseline_ms / timing['median_ms']:.2f}",
                f"{timing['min_cosine']:.6f}",
            )
            for runtime, timing in case["runtimes"].items()
        ]
    header = ("image size", "runtime", "median ms", "min-max ms", "baseline ÷ it", "min cosine")
    return f"The whole path, preprocessing profile `{path['profile']}`.\n\n" + table(header, rows, left=2)


def accuracy(run: Content) -> str:
    """Each precision's quality, its difference from the first one in percentage points, and whether that is allowed."""
    scores = run["accuracy"]
    metrics = ("accuracy", "balanced_accuracy", "macro_auc")
    reference = next(iter(scores["runtimes"].values()))
    rows = [
        (
            name,
            *(f"{quality[m]:.2%} ({_points(quality[m], reference[m]):+.2f})" for m in metrics),
            _goal(name, [_points(quality[m], reference[m]) for m in metrics]),
            str(quality["changed_answers"]),
            f"{quality['min_cosine']:.6f}",
        )
        for name, quality in scores["runtimes"].items()
    ]
    goals = "; ".join(f"{precision} {', '.join(map(str, points))}" for precision, points in GOALS.items())
    header = (
        "phantom checkpoint",
        "Accuracy (points)",
        "BACC (points)",
        "mAUC (points)",
        "goal",
        "changed answers",
        "min cosine",
    )
    return (
        f"{scores['drawings']:,} unseen drawings, {scores['normal']} of each exam without a finding and "
        f"{scores['finding']} with each finding; in brackets the points that it differs from the first row. "
        f"Goals of an export, in points of Accuracy, BACC and mAUC: {goals}.\n\n" + table(header, rows, left=1)
    )


def _points(fraction: float, reference: float) -> float:
    return round(100 * (fraction - reference), 6)  # 0.2 points are 0.2, and not a little more


def _goal(runtime: str, points: Sequence[float]) -> str:
    """Whether an export meets the goal of its precision; of fp32, and of what is not ours, nothing is asked."""
    precision = runtime.split()[-1]
    if not runtime.startswith(OURS) or precision not in GOALS:
        return NONE
    return _met(all(abs(moved) <= goal for moved, goal in zip(points, GOALS[precision], strict=True)))


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
    about = run["machine"]
    return (
        table(("median ms", *shown), rows, left=1)
        + f"\n\n{about['cpu']}, {about['cores']} cores; {about['weights']}; images through Triton over gRPC, texts the "
        "encoder alone. In brackets: how many times as fast as PyTorch."
    )


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
    return f"{measured(report)}; {exported(report)}.\n\n" + table(header, rows, left=1)


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
    return f"{measured(report)}; {exported(report)}.\n\n" + table(header, rows, left=1)


def resize(report: Content) -> str:
    rows = []
    for film in report["resize"]:
        file, sent = film["sent_bytes"]["server"], film["sent_bytes"]["client"]
        times = [film["links"][link][side]["median_ms"] for link in film["links"] for side in ("server", "client")]
        rows.append((film["film"], f"{file / 1e6:.2f}", f"{sent / 1e6:.2f}", *(f"{ms:,.0f}" for ms in times)))
    slow = f"{report['link_bit_s'] / 1e6:.0f} Mbit/s"
    header = ("PNG", "file, MB", "sent, MB", "loopback, ms", '`resize="client"`', f"{slow}, ms", '`resize="client"`')
    return f"{measured(report)}; medians of {report['rounds']} rounds.\n\n" + table(header, rows, left=1)


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
    return f"{measured(report)}; medians of {report['rounds']} rounds.\n\n" + table(header, rows, left=1)


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
    return f"{about}\n\n{table(header, rows, left=1)}"


def endpoint_overhead(report: Content) -> str:
    rows = []
    for way, times in report["ways"].items():
        added = report["added_ms"].get(way, {}).get("median_of_pairs")
        rows.append((way, f"{times['median_ms']:.1f}", "" if added is None else f"{added:.1f}"))
    stages = ", ".join(f"{name} {ms:.1f}" for name, ms in report["stage_mean_ms"].items())
    return (
        f"{measured(report)}; a PNG of {report['png_bytes'] / 1e3:.0f} kB, {report['rounds']} rounds.\n\n"
        + table(("way", "median ms", "added to gRPC, ms"), rows, left=1)
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
    return f"{measured(report)}.\n\n" + table(
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
        + table(("answer", "requests", "wrong or failed", "p50 ms", "p99 ms"), answers, left=1)
        + "\n\n"
        + table(("process", "MB, minute by minute"), memory, left=1)
    )


def capacity(run: Content) -> str:
    """What a pod answers: images of 512 x 512 a second, one at a time, and the core seconds of each."""
    cores = run["machine"]["cores"]
    runtimes = run["whole_path"]["cases"]["512 x 512"]["runtimes"]
    rows = [
        (name, f"{1e3 / timing['median_ms']:.2f}", f"{cores * timing['median_ms'] / 1e3:.1f}")
        for name, timing in runtimes.items()
        if name.startswith(OURS)
    ]
    return f"{about(run)}.\n\n" + table(("as served", "images a second", "core seconds an image"), rows, left=1)


def several_tritons(report: Content) -> str:
    alone = report["numbers"][0]["per_second"]
    rows = [
        (
            str(row["tritons"]),
            f"{row['per_second']:.1f} ({row['per_second'] / alone:.2f} x)",
            f"{row['p50_ms']:,.0f}",
            f"{row['p99_ms']:,.0f}",
            f"{row['failed']:,} of {row['requests']:,}",
        )
        for row in report["numbers"]
    ]
    return (
        f"{measured(report)}; {report['callers']} callers of one image each, phantom checkpoint, each Triton on one of "
        f"{report['cores']} cores, which endpoint and callers share.\n\n"
        + table(("Tritons", "requests a second", "p50 ms", "p99 ms", "failed"), rows, left=1)
    )


def changed_tritons(report: Content) -> str:
    rows = [
        (
            row["what"],
            f"{row['seconds']:.1f}",
            f"{row['failed']:,} of {row['requests']:,}",
            f"{row['p50_ms']:,.0f}",
            f"{row['p99_ms']:,.0f}",
            f"{row['max_ms']:,.0f}",
        )
        for row in report["changes"]
    ]
    return f"{measured(report)}; {report['callers']} callers.\n\n" + table(
        ("change under load", "seconds", "failed", "p50 ms", "p99 ms", "longest ms"), rows, left=1
    )


def socket_hop(report: Content) -> str:
    rows = [
        (row["request"], *(f"{row[way]['median_ms']:.2f}" for way in ("port", "socket")), f"{row['added_ms']:+.2f}")
        for row in report["requests"]
    ]
    return f"{measured(report)}; medians of {report['rounds']} rounds.\n\n" + table(
        ("request", "loopback port, ms", "socket, ms", "difference"), rows, left=1
    )


def bulk(report: Content) -> str:
    medians = {name: statistics.median(rates) for name, rates in report["per_second"].items()}
    best = max(rate for name, rate in medians.items() if name != "bulk run")
    rows = [
        (name, f"{medians[name]:.1f}", f"{min(rates):.1f}-{max(rates):.1f}", f"{medians[name] / best:.0%}")
        for name, rates in report["per_second"].items()
    ]
    return (
        f"{measured(report)}; {report['rounds']} rounds of {report['images']} images, shards of "
        f"{report['shard_size']}.\n\n"
        + table(("images in flight", "images/s, median", "range", "of perf_analyzer's best"), rows, left=1)
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
        + table((*header, "with the KV cache read"), rows, left=0)
        + f"\n\nOne image ({report['steps'][0]['context']:,} tokens of prompt): first token after "
        f"{report['first_token_s']:.0f} s, and {report['image_encoder_s']:.0f} s for the image encoder; transformers "
        f"in fp32 {theirs['first_token_s']:.0f} s. After that a token takes {step_s * 1e3:,.0f} ms, with transformers "
        f"{theirs['step_s'] * 1e3:,.0f} ms ({theirs['step_s'] / step_s:.1f} times as long). Of {same['tokens']} tokens "
        f"of {same['studies']} studies, {same['same']} are the same whether the studies are answered alone or together."
        + report_baselines(report)
    )


def report_baselines(report: Content) -> str:
    """The decoder beside others, of runs that have measured several."""
    if "baselines" not in report:
        return ""
    ours = {"first_token_s": report["first_token_s"], "step_s": report["steps"][0]["median_s"]}
    decoders = {"ours, int4": ours, "transformers fp32": report["transformers"], **report["baselines"]}
    rows = [
        (name, f"{found['first_token_s']:.1f}", f"{found['step_s'] * 1e3:,.0f}") for name, found in decoders.items()
    ]
    return "\n\n" + table(("decoder", "prompt, s", "a step, ms"), rows, left=1)


def starts(report: Content) -> str:
    """How long a Triton takes to start, and its memory."""
    served = report["serving"]
    rows = [
        (label, f"{statistics.median(start[name] for start in served['starts']):.3f}")
        for name, label in (
            ("ready_s", "`medimage serve` to ready, weights in the page cache"),
            ("first_image_s", "first image"),
            ("later_image_s", "later image"),
            ("first_text_s", "first text"),
            ("later_text_s", "later text"),
        )
    ]
    rest, after = served["memory_at_rest"], served["memory_after_load"]
    memory = [
        (label, *(f"{of[kind] / 1e6:,.0f}" for kind in ("rss", "pss")))
        for label, of in (("at rest, ready", rest), ("after this load", after))
    ]
    return (
        table((f"start, median of {len(served['starts'])}", "seconds"), rows, left=1)
        + "\n\n"
        + table(("memory of all Triton processes", "MB resident", "MB, shared pages once"), memory, left=1)
        + f"\n\nAt the highest: {after['peak'] / 1e6:,.0f} MB resident."
    )


def decoders(report: Content) -> str:
    names = list(dict.fromkeys(name for row in report["files"] for name in row["decode"]))
    rows = [
        (
            row["image"],
            *(f"{row['decode'][name]['median_ms']:.1f}" if name in row["decode"] else NONE for name in names),
        )
        for row in report["files"]
    ]
    return table(("decode alone, ms", *names), rows, left=1)


def resizers(report: Content) -> str:
    rows = [
        (f"{row['image']}: {name}", f"{found['median_ms']:.1f}", str(row["max_difference"][name]))
        for row in report["resize"]
        for name, found in row["resize"].items()
    ]
    header = ("resize of a large grey image to 512 x 512", "ms", "largest difference from Pillow, grey levels")
    return table(header, rows, left=1)


def triton_overhead(report: Content) -> str:
    alone = [
        (
            row["tower"],
            str(row["rounds"]),
            *(f"{row[key]:.1f}" for key in ("session_ms", "triton_ms", "overhead_ms")),
            _met(row["overhead_ms"] <= TRITON_LIMIT_MS),
        )
        for row in report["one"]
    ]
    busy = []
    for row in report["busy"]:
        limit = WHOLE_PATH_LIMIT_SHARE if row["what"] == "PNG to vector" else TRITON_LIMIT_SHARE
        rates = [f"{rate:.2f}" for rate in row["rows_per_second"].values()]
        goal = f"{limit:.0%}, {_met(row['lost_share'] <= limit)}"
        busy.append((row["what"], str(row["concurrency"]), *rates, f"{row['lost_share']:.1%}", goal))
    header = (
        "encoder, one at a time",
        "rounds",
        "session ms",
        "Triton ms",
        "overhead ms",
        f"goal: {TRITON_LIMIT_MS} ms",
    )
    busy_header = ("busy, rows a second", "in flight", "session, one row", "session, so many", "Triton", "lost", "goal")
    return (
        f"{measured(report)}; {exported(report)}.\n\n"
        + table(header, alone, left=1)
        + "\n\n"
        + table(busy_header, busy, left=1)
    )


def perf_analyzer(report: Content) -> str:
    """Latencies of the models, as their callers see them."""
    rows = [
        (
            row["model"],
            row["protocol"],
            str(row["concurrency"]),
            str(row["requests"]),
            *(f"{row[key]:,.1f}" for key in ("per_second", "p50_ms", "p90_ms", "p95_ms", "p99_ms")),
        )
        for row in report["runs"]
        if row["part"] == row["model"]
    ]
    header = ("model", "protocol", "in flight", "requests", "per second", "p50 ms", "p90 ms", "p95 ms", "p99 ms")
    cached = (
        "\n\nThe server was given by --url. If it caches text vectors, as `medimage serve` does by default, the texts "
        "were answered from its cache, because perf_analyzer sends the same ones again and again."
    )
    return (
        f"{measured(report)}. Of few requests, the p99 is the slowest.{cached if report['other_server'] else ''}\n\n"
        + table(header, rows, left=2)
    )


def perf_analyzer_parts(report: Content) -> str:
    """Where the latencies went."""
    rows = [
        (
            *((row["model"], row["protocol"], str(row["concurrency"]), row["part"], f"{row['mean_batch']:.1f}")),
            *(f"{row[f'{key}_ms']:,.1f}" for key in ("queue", "compute_input", "compute_infer", "compute_output")),
        )
        for row in report["runs"]
        if "queue_ms" in row
    ]
    header = ("model", "protocol", "in flight", "part", "mean batch", "queue ms", "input ms", "infer ms", "output ms")
    return "Means of the server's own clock.\n\n" + table(header, rows, left=2)


def search(report: Content) -> str:
    """Search indexes by size and kind."""
    rows = [
        (
            f"{run['vectors']:,}",
            run["kind"],
            f"{run['build']['cpu_s']:.0f}",
            f"{run['bytes'] / 1e9:.2f}",
            *((f"{run['probes']} of {run['parts']}", f"{run['refined']} k") if "probes" in run else ("all", "all")),
            f"{run['recall']:.3f}",
            *(ms(run[what][unit]) for what in ("search", "with_condition") for unit in ("cpu_ms", "ms")),
            f"{1e3 * report['machine']['cores'] / run['search']['cpu_ms']:.1f}",
        )
        for run in report["runs"]
    ]
    header = (
        *("vectors", "kind", "build CPU s", "GB", "parts", "ranked", "recall@10", "search CPU ms", "by the clock"),
        *("with a condition CPU ms", "by the clock", "searches/s of all cores"),
    )
    return (
        f"{measured(report)}. The 10 nearest of made vectors. CPU is processor time, of all threads; the machine had "
        "other work as well, which the clock shows. The rate is the cores over the processor time.\n\n"
        + table(header, rows, left=2)
    )


def measured(report: Content) -> str:
    machine = report["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores; commit {machine['commit']}"


def exported(report: Content) -> str:
    weights, precision = report["exported"]["weights"], report["exported"]["precision"]
    return f"{precision}, {'random weights of the published size' if weights == 'random' else 'phantom checkpoint'}"


def _met(is_met: bool) -> str:
    return "met" if is_met else "missed"


def of(case: str, report: Content) -> str:
    """Every table of a case."""
    return "\n\n".join(filter(None, (write(report) for write in CASES[case])))


CASES: Mapping[str, Sequence[Callable[[Content], str]]] = {
    "suite": (speed, card, encoders, whole_path, accuracy, capacity),
    "scaling": (batches, concurrency, starts),
    "triton_overhead": (triton_overhead,),
    "preprocessing": (preprocessing, decoders, resizers),
    "client_transport": (resize, shared_memory),
    "endpoint_overhead": (endpoint_overhead,),
    "endpoint_load": (endpoint_load, saturation),
    "several_tritons": (several_tritons, changed_tritons),
    "socket_hop": (socket_hop,),
    "perf_analyzer": (perf_analyzer, perf_analyzer_parts),
    "bulk": (bulk,),
    "reports": (reports,),
    "search": (search,),
    "gpu": (gpu_checks, gpu_images, gpu_path, gpu_reports),
}
TABLES = {write.__name__: write for tables in CASES.values() for write in tables}
