"""What the CPU of this machine has for the precisions below fp32, by the names that Linux gives to its instructions."""

from pathlib import Path

# Of bf16 those that multiply: with AVX-NE-CONVERT alone the products are of fp32.
BF16_INSTRUCTIONS = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16"}
INT8_INSTRUCTIONS = {"avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI"}


def instructions() -> frozenset[str]:
    """Linux' names of all that this CPU has; empty where Linux does not say."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return frozenset()


def faster_precisions() -> str:
    """A line about the precisions that this CPU has instructions for; empty where there are none."""
    found = instructions()
    offers = []
    for precision, known in (("bf16", BF16_INSTRUCTIONS), ("int8", INT8_INSTRUCTIONS)):
        if names := [name for flag, name in known.items() if flag in found]:
            offers.append(f"{' and '.join(names)} for --precision {precision}")
    return f"this CPU has {', '.join(offers)}" if offers else ""
