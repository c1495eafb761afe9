"""Scores of reports against values worked out by hand, and the libraries' own of the texts."""

import sys

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from medimage_client import Box, Finding, InvalidInput, MissingExtra
from medimage_client.reports.evaluation import Ratio, evaluate, intersection_over_union, match, normalised

LEFT, RIGHT = Box(0.1, 0.1, 0.4, 0.5), Box(0.6, 0.1, 0.9, 0.5)
WIDER = Box(0.1, 0.1, 0.5, 0.5)  # IoU with LEFT 0.75
HALF = Box(0.1, 0.1, 0.4, 0.3)  # IoU with LEFT 0.5


def finding(text, *boxes):
    return Finding(text, boxes)


HEART = finding("The heart is normal in size.")
OPACITY = finding("There is an opacity in the left lower lobe.", LEFT)
BILATERAL = finding("Bilateral effusions are seen.", LEFT, RIGHT)


def test_equal_reports_have_full_marks():
    scores = evaluate([[HEART, OPACITY], [BILATERAL]], [[HEART, OPACITY], [BILATERAL]])
    assert (scores.n_reports, scores.rouge_l, scores.bleu_4) == (2, 100, pytest.approx(100))
    assert scores.findings == Ratio(3, 3, 3)
    assert scores.boxes == Ratio(3, 3, 3)
    assert (scores.boxes.precision, scores.boxes.recall, scores.boxes.f1) == (100, 100, 100)


def test_texts_are_scored_as_the_libraries_do():
    references = [[HEART, OPACITY], [BILATERAL]]
    answers = [[finding("The heart is enlarged.")], [finding("Effusions on both sides are seen.", LEFT)]]
    texts = [[" ".join(f.text for f in report) for report in reports] for reports in (references, answers)]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    expected = np.mean([scorer.score(*pair)["rougeL"].fmeasure for pair in zip(*texts, strict=True)])
    scores = evaluate(references, answers)
    assert scores.rouge_l == pytest.approx(100 * expected)
    assert scores.bleu_4 == pytest.approx(BLEU().corpus_score(texts[1], [texts[0]]).score)


def test_rouge_l_of_one_report_by_hand():
    # the longest common subsequence of 6 and 4 stemmed words is "the heart is": P 3/4, R 3/6, F 0.6
    assert evaluate([[HEART]], [[finding("The heart is enlarged.")]]).rouge_l == pytest.approx(60)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([HEART, OPACITY], Ratio(2, 2, 2)),
        ([finding("the heart  is normal, in size"), OPACITY], Ratio(2, 2, 2)),
        ([HEART, HEART], Ratio(1, 2, 2)),
        ([finding("The heart is enlarged.")], Ratio(0, 1, 2)),
        ([], Ratio(0, 0, 2)),
    ],
    ids=["equal", "other-punctuation", "twice", "other-text", "nothing"],
)
def test_findings_are_right_when_equal_in_words(answer, expected):
    assert evaluate([[HEART, OPACITY]], [answer]).findings == expected


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ([OPACITY], [finding(OPACITY.text, LEFT)], Ratio(1, 1, 1)),
        ([OPACITY], [finding(OPACITY.text, WIDER)], Ratio(1, 1, 1)),
        ([OPACITY], [finding(OPACITY.text, HALF)], Ratio(1, 1, 1)),
        ([OPACITY], [finding(OPACITY.text, Box(0.1, 0.1, 0.4, 0.29))], Ratio(0, 1, 1)),
        ([OPACITY], [finding(OPACITY.text, RIGHT)], Ratio(0, 1, 1)),
        ([OPACITY], [finding(OPACITY.text, LEFT, WIDER)], Ratio(1, 2, 1)),
        ([OPACITY], [finding(OPACITY.text)], Ratio(0, 0, 1)),
        ([BILATERAL], [finding(BILATERAL.text, RIGHT)], Ratio(1, 1, 2)),
        ([BILATERAL], [finding(BILATERAL.text, RIGHT, LEFT)], Ratio(2, 2, 2)),
        ([OPACITY], [finding("An opacity is seen in the left lower lobe.", LEFT)], Ratio(1, 1, 1)),
        ([OPACITY], [finding("Something else entirely.", LEFT)], Ratio(0, 1, 1)),
        ([OPACITY], [finding(OPACITY.text, RIGHT), finding("Opacity in the left lower lobe.", LEFT)], Ratio(0, 2, 1)),
        ([HEART], [finding(HEART.text, LEFT)], Ratio(0, 1, 0)),
        ([], [OPACITY], Ratio(0, 1, 0)),
    ],
    ids=[
        "same-box", "iou-over-half", "iou-half", "iou-under-half", "elsewhere", "one-too-many", "none-answered",
        "one-of-two", "other-order", "other-words", "other-finding", "equal-text-comes-first", "no-box-wanted",
        "no-finding-wanted",
    ],
)  # fmt: skip
def test_boxes_are_right_when_they_overlap_those_of_the_same_finding(reference, answer, expected):
    assert evaluate([reference], [answer]).boxes == expected


def test_counts_are_over_all_reports():
    scores = evaluate([[OPACITY], [BILATERAL]], [[OPACITY], [finding(BILATERAL.text, WIDER, WIDER)]])
    assert scores.boxes == Ratio(2, 3, 3)
    assert (scores.boxes.precision, scores.boxes.recall) == (pytest.approx(200 / 3), pytest.approx(200 / 3))


def test_ratio_of_nothing_is_none():
    assert (Ratio(0, 0, 5).precision, Ratio(0, 5, 0).recall, Ratio(0, 0, 0).f1) == (None, None, None)
    assert (Ratio(0, 0, 5).recall, Ratio(1, 2, 6).f1) == (0, 25)


def test_intersection_over_union_against_counted_cells():
    rng = np.random.default_rng(0)
    for _ in range(100):
        corners = rng.integers(0, 20, (2, 4))
        masks, boxes = [], []
        for x0, y0, x1, y1 in corners:
            x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
            mask = np.zeros((20, 20), bool)
            mask[y0:y1, x0:x1] = True
            masks.append(mask)
            boxes.append(Box(x0 / 20, y0 / 20, x1 / 20, y1 / 20))
        union = (masks[0] | masks[1]).sum()
        expected = (masks[0] & masks[1]).sum() / union if union else 0
        assert intersection_over_union(*boxes) == pytest.approx(expected, abs=1e-9)
    assert intersection_over_union(LEFT, HALF) == 0.5


def test_match_is_one_to_one_and_takes_the_most_alike_first():
    assert match([10, 20], [19, 11, 50], lambda a, b: -abs(a - b), -5) == [(10, 11), (20, 19)]
    assert match([10, 12], [11], lambda a, b: -abs(a - b), -5) == [(10, 11)]
    assert match([], [1], lambda a, b: 1, 0) == []


def test_normal_form_of_a_text():
    assert normalised(" No  Pneumothorax, seen\n(today). ") == "no pneumothorax seen today"


@pytest.mark.parametrize(("references", "answers"), [([], []), ([[HEART]], [])])
def test_tables_of_different_length_or_none_are_refused(references, answers):
    with pytest.raises(InvalidInput, match="expected as many, at least one"):
        evaluate(references, answers)


@pytest.mark.parametrize(
    ("module", "package"), [("rouge_score.rouge_scorer", "rouge-score"), ("sacrebleu", "sacrebleu")]
)
def test_missing_library_names_the_extra(monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"needs {package}: pip install 'medimage-triton\[evaluate\]'"):
        evaluate([[HEART]], [[HEART]])
