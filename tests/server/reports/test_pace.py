"""When the first words of a report are to be expected, worked out by hand."""

import pytest

from medimage_server.reports.pace import NEWEST, ReportPace

# 2 s to encode the images of 1,000 tokens, 10 s to read them, 20 s to answer
MEASURED = ReportPace(prepare_s=0.002, read_s=0.01, decode_s=20.0)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({}, 2 + 10),
        ({"tokens_before": 100}, 2 + 10),  # read while its images are encoded
        ({"tokens_before": 1500}, 15 + 10),
        ({"waits_for": 1}, 5 + 10),  # of four slots one becomes free in 20 / 4 s
        ({"waits_for": 3, "tokens_before": 2000}, 20 + 15 + 10),
    ],
    ids=["alone", "behind a short prompt", "behind long prompts", "behind a full house", "behind a queue"],
)
def test_first_words_come_after_what_is_before_them(others, expected):
    others = {"tokens_before": 0, "waits_for": 0, **others}
    assert MEASURED.first_words_s(1000, slots=4, **others) == pytest.approx(expected)


@pytest.mark.parametrize("pace", [ReportPace(), ReportPace(prepare_s=1.0), ReportPace(read_s=1.0)])
def test_nothing_is_told_before_it_was_measured(pace):
    assert pace.first_words_s(1000, tokens_before=0, waits_for=0, slots=4) is None


def test_wait_for_a_slot_is_told_after_the_first_answer():
    pace = ReportPace(prepare_s=0.002, read_s=0.01)
    assert pace.first_words_s(1000, tokens_before=0, waits_for=1, slots=4) is None
    pace.note(decode_s=20.0)
    assert pace.first_words_s(1000, tokens_before=0, waits_for=1, slots=4) == pytest.approx(15)


def test_newest_report_counts_most():
    pace = ReportPace()
    pace.note(read_s=1.0)
    pace.note(read_s=3.0)
    assert (pace.read_s, pace.prepare_s) == (1.0 + NEWEST * 2.0, None)
