"""What a study's report says is what its views show."""

import numpy as np
import pytest
from PIL import Image

from medimage_export.phantoms.chest import IMAGE_SIDE
from medimage_export.phantoms.chest_study import (
    SENTENCES,
    STRUCTURES,
    TEST_SEEDS,
    TRAIN_SEEDS,
    VALIDATION_SEEDS,
    chest_study,
)

SIZE = 148
SEEDS = range(40)
STUDIES = {seed: chest_study(seed, size=SIZE) for seed in SEEDS}
BOXED = [
    pytest.param(seed, finding, id=f"{seed}-{finding.sentence}")
    for seed, study in STUDIES.items()
    for finding in study.findings
    if finding.boxes
]


def test_study_of_the_same_seed_is_the_same_and_of_another_or_another_visit_is_not():
    first, again, other, earlier = (chest_study(s, size=64, visit=v) for s, v in ((5, 0), (5, 0), (6, 0), (5, 1)))
    assert first.frontal.tobytes() == again.frontal.tobytes() and first.lateral.tobytes() == again.lateral.tobytes()
    assert (first.findings, first.indication) == (again.findings, again.indication)
    for different in (other, earlier):
        assert first.frontal.tobytes() != different.frontal.tobytes()


def test_visits_of_a_seed_show_one_body():
    """Two normal visits differ in exposure and grain alone."""
    visits = [chest_study(3, size=96, visit=visit) for visit in range(30)]
    normal = [study for study in visits if not any(finding.boxes for finding in study.findings)]
    assert len(normal) >= 2
    first, second = (np.asarray(Image.fromarray(study.frontal).resize((24, 24))).ravel() for study in normal[:2])
    assert np.corrcoef(first, second)[0, 1] > 0.98


def test_size_changes_resolution_alone():
    small, large = (chest_study(12, size=size) for size in (128, 512))
    assert [finding.sentence for finding in small.findings] == [finding.sentence for finding in large.findings]
    for ours, theirs in zip(small.findings, large.findings, strict=True):
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=2 / 128)


@pytest.mark.parametrize("seed", SEEDS)
def test_report_says_of_each_structure_what_is_there_or_that_nothing_is(seed):
    """The structures in their order; a normal sentence stands alone."""
    report = list(STUDIES[seed].findings)
    for normal, kinds in STRUCTURES:
        abnormal = {sentence for (kind, _), sentence in SENTENCES.items() if kind in kinds}
        if report[0].sentence == normal:
            assert report.pop(0).boxes == ()
            continue
        assert report[0].sentence in abnormal
        while report and report[0].sentence in abnormal:
            assert len(report.pop(0).boxes) == 1
    assert report == []


def test_every_sentence_comes_up_and_several_findings_do():
    reports = [chest_study(seed, size=16).findings for seed in range(300)]
    sentences = {finding.sentence for report in reports for finding in report}
    assert sentences == {*SENTENCES.values(), *(normal for normal, _ in STRUCTURES)}
    assert {sum(bool(finding.boxes) for finding in report) for report in reports} == {0, 1, 2, 3}


def test_labels_show_what_the_report_says():
    sentences = dict(enumerate(SENTENCES.values(), start=1))
    for study in STUDIES.values():
        shown = {sentences[label] for label in np.unique(study.labels) if label}
        assert shown == {finding.sentence for finding in study.findings if finding.boxes}


@pytest.mark.parametrize(("seed", "finding"), BOXED)
def test_box_encloses_the_drawn_finding(seed, finding):
    """Labels leave out faint edges, and what a smaller finding covers: the box may be larger, never smaller."""
    number = 1 + list(SENTENCES.values()).index(finding.sentence)
    rows, columns = np.nonzero(STUDIES[seed].labels == number)
    x0, y0, x1, y1 = np.round(np.array(finding.boxes[0]) * SIZE)
    assert x0 <= columns.min() and columns.max() < x1 and y0 <= rows.min() and rows.max() < y1
    assert (columns.max() - columns.min()) * (rows.max() - rows.min()) > 0.3 * (x1 - x0) * (y1 - y0)


@pytest.mark.parametrize(("seed", "finding"), BOXED)
def test_patients_left_is_the_images_right(seed, finding):
    x0, _, x1, _ = finding.boxes[0]
    side = next(side for (_, side), sentence in SENTENCES.items() if sentence == finding.sentence)
    if side:
        assert np.sign((x0 + x1) / 2 - 0.5) == IMAGE_SIDE[side]


def test_seeds_of_training_validation_and_test_are_disjoint():
    seeds = [*TRAIN_SEEDS, *VALIDATION_SEEDS, *TEST_SEEDS]
    assert len(seeds) == len(set(seeds))
