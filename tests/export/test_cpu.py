"""What `medimage export` makes of the flags that Linux tells of a CPU."""

from types import SimpleNamespace

import pytest

from medimage_export import cpu


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("fpu avx2 avx512f", ""),
        ("avx2 avx_vnni", "this CPU has AVX-VNNI for --precision int8"),
        ("avx512_vnni avx512f", "this CPU has AVX512-VNNI for --precision int8"),
        (
            "avx512_vnni avx512_bf16",
            "this CPU has AVX512-BF16 for --precision bf16, AVX512-VNNI for --precision int8",
        ),
        (
            "amx_bf16 avx_vnni avx512_bf16 avx512_vnni",
            "this CPU has AVX512-BF16 and AMX-BF16 for --precision bf16, AVX512-VNNI and AVX-VNNI for --precision int8",
        ),
        ("avx_ne_convert avx_vnni_int8", ""),
    ],
)
def test_line_names_what_this_cpu_has(monkeypatch, flags, line):
    monkeypatch.setattr(
        cpu, "Path", lambda path: SimpleNamespace(read_text=lambda: f"processor : 0\nflags : {flags}\n")
    )
    assert cpu.faster_precisions() == line


def test_system_that_does_not_tell_has_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "Path", lambda path: tmp_path / "absent")
    assert cpu.faster_precisions() == ""
