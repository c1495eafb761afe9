"""The results of the case `gpu` as Markdown tables, of as many of its pieces as were measured."""

from perf.cells import NONE, Content, floor_ms, ms, spread, table


def gpu_checks(report: Content) -> str:
    """What was checked on a GPU, and what it can do."""
    lines = [gpu_about(report)]
    if check := _piece(report, "check"):
        cosines = ", ".join(f"{what} {cosine:.6f}" for what, cosine in check["min_cosines"].items())
        same = check["same_tokens"]
        lines.append(
            f"Phantoms, least cosine with PyTorch in fp32: {cosines}. Of {same['tokens']} tokens of {same['studies']} "
            f"studies, {same['same']} are the same whether the studies are answered alone or together."
        )
    if limits := _piece(report, "floor"):
        rates = ", ".join(f"{precision} {rate / 1e3:,.1f}" for precision, rate in limits["gflop_per_s"].items())
        lines.append(f"Measured there: {rates} TFLOP/s, {limits['bytes_per_s'] / 1e9:,.0f} GB/s.")
    failed = [f"{name} failed: {found['failed']}" for name, found in report.items() if "failed" in found]
    return "\n\n".join([*lines, *failed])


def gpu_images(report: Content) -> str:
    """The image encoder by batch."""
    limits, rows, notes = _piece(report, "floor"), [], []
    for name, case in report.items():
        if not name.startswith(("image-", "autotune-")) or "failed" in case:
            continue
        notes += [f"{name}: {runtime} was not measured. {reason}" for runtime, reason in case["not_measured"].items()]
        for runtime, timing in case["runtimes"].items():
            rate = limits["gflop_per_s"].get("fp16" if "fp16" in runtime else "fp32") if limits else None
            is_counted = rate and report["machine"]["weights"].startswith("random")
            rows.append(
                (
                    name,
                    runtime,
                    ms(timing["median_ms"]),
                    spread(timing),
                    f"{1e3 * case['batch'] / timing['median_ms']:,.0f}",
                    f"{floor_ms(case['gflop'], rate) / timing['median_ms']:.0%}" if is_counted else NONE,
                    f"{timing['min_cosine']:.6f}",
                )
            )
    header = ("piece", "runtime", "median ms", "min-max ms", "images/s", "floor ÷ it", "min cosine")
    text = "The image encoder, from pixels in host memory to vectors there; cosines are with PyTorch in fp32.\n\n"
    return "\n\n".join([text.strip(), table(header, rows, left=2), *notes]) if rows else ""


def gpu_path(report: Content) -> str:
    """From a PNG to its vector."""
    if not (path := _piece(report, "path")):
        return ""
    rows = [
        (size, runtime, ms(timing["median_ms"]), spread(timing))
        for size, runtimes in path["cases"].items()
        for runtime, timing in runtimes.items()
    ]
    header = ("PNG", "runtime", "median ms", "min-max ms")
    return f"From a PNG to its vector; ours {path['through']}.\n\n{table(header, rows, left=2)}"


def gpu_reports(report: Content) -> str:
    """Decode steps of ours and of transformers', and the floor: weights and KV cache read once."""
    limits, rows, notes = _piece(report, "floor"), [], []
    for name, case in report.items():
        if not name.startswith("reports-") or "failed" in case:
            continue
        theirs = _piece(report, name.replace("reports", "generate")) or {"steps": []}
        their_s = {step["studies"]: step["median_s"] for step in theirs["steps"]}
        for step in case["steps"]:
            floor_s = (case["weight_bytes"] + step["kv_bytes"]) / limits["bytes_per_s"] if limits else None
            their_step_s = their_s.get(step["studies"])
            rows.append(
                (
                    str(step["context"]),
                    str(step["studies"]),
                    f"{1e3 * step['median_s']:.2f}",
                    f"{1e3 * step['min_s']:.2f}-{1e3 * step['max_s']:.2f}",
                    f"{step['studies'] / step['median_s']:,.0f}",
                    f"{1e3 * floor_s:.2f}" if floor_s else NONE,
                    f"{floor_s / step['median_s']:.0%}" if floor_s else NONE,
                    f"{1e3 * their_step_s:.2f}" if their_step_s else NONE,
                )
            )
        tokens = case["steps"][0]["context"] if case["steps"] else 0
        notes.append(f"A prompt of {tokens:,} tokens is read in {1e3 * case['first_token_s']:,.0f} ms.")
    header = (
        "tokens in a slot",
        "studies",
        "step ms",
        "min-max ms",
        "tokens/s",
        "floor ms",
        "floor ÷ step",
        "theirs ms",
    )
    text = "Decode steps; theirs is transformers with a static, compiled cache.\n\n"
    return "\n\n".join([text.strip(), table(header, rows, left=0), *notes]) if rows else ""


def gpu_about(report: Content) -> str:
    run = report["machine"]
    device = run["gpu"] if run["device"] == "cuda" else f"{run['cpu']}, {run['cores']} cores, in place of a GPU"
    return (
        f"{device}; torch {run['torch']}, onnxruntime {run['onnxruntime']}; {run['weights']}; commit {run['commit']}."
    )


def _piece(report: Content, name: str) -> Content | None:
    """What a piece has measured; None of one that failed, or is still to be measured."""
    found: Content | None = report.get(name)
    return None if found is None or "failed" in found else found
