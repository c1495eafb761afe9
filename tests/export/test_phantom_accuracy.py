"""Zero-shot accuracy of each precision beside fp32's, on drawings that the phantom checkpoint has not seen.

The set has a long tail, so that balanced accuracy says something of its own: of each of the 8 exams 15 drawings without
a finding, and 10 with each of the 13 findings. Of these 250 one is 0.40 points of accuracy, and at most 0.48 of
balanced accuracy: int8 may lose one. fp16, whose roundings are slow on a CPU, has two of each caption: 42, of which one
is 2.4 points, so that its goals mean that no answer changes.
"""

import pytest

from medimage_export.medimageinsight.checkpoint import find_checkpoint, load_model
from medimage_export.medimageinsight.export import export_medimageinsight
from medimage_export.repository import copy_unexported
from perf.cases.suite.accuracy import drawings, encoders, evaluate
from perf.cases.suite.device import CPU
from perf.tables import GOALS
from tests.paths import PHANTOM_CHECKPOINT, REPOSITORY

METRICS = ("accuracy", "balanced_accuracy", "macro_auc")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """The checkpoint exported in each precision, with the parity check of each."""
    folders = {}
    for precision in ("fp32", "fp16", "int8"):
        folders[precision] = copy_unexported(REPOSITORY, tmp_path_factory.mktemp(precision) / "repository")
        export_medimageinsight(PHANTOM_CHECKPOINT, folders[precision], precision=precision)
    return folders


def scores(repositories, precision, test_set):
    """What `evaluate` finds for the exports in fp32 and in that precision."""
    model = load_model(find_checkpoint(PHANTOM_CHECKPOINT))
    candidates = encoders(model, {name: repositories[name] for name in ("fp32", precision)}, CPU)
    exports = {name: candidates[f"OnnxRuntime {name}"] for name in ("fp32", precision)}
    found = evaluate(exports, test_set, repositories["fp32"], float(model.logit_scale))
    return found["fp32"], found[precision]


@pytest.mark.parametrize(("precision", "normal", "finding", "count"), [("int8", 15, 10, 250), ("fp16", 2, 2, 42)])
def test_a_precision_meets_its_goals(repositories, precision, normal, finding, count):
    test_set = drawings(normal, finding)
    assert len(test_set) == count
    fp32, found = scores(repositories, precision, test_set)
    assert fp32["accuracy"] > 0.9  # there is something to lose
    for metric, goal in zip(METRICS, GOALS[precision], strict=True):
        assert 100 * abs(found[metric] - fp32[metric]) <= goal, (metric, fp32, found)
    assert found["min_cosine"] < 1 - 1e-9  # it is not fp32 under another name
