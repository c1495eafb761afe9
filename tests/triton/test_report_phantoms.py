"""The report checkpoint that ships, asked through client, Triton, image encoder and scheduler about unseen studies."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from medimage_client import Box, CXRReportGen, Finding
from medimage_client.reports.evaluation import evaluate
from medimage_export.phantoms.chest_study import TEST_SEEDS, chest_study
from tests.amounts import amounts

STUDIES_AT_ONCE = 8


@pytest.mark.parametrize("n_studies", amounts(12, 40))
@pytest.mark.parametrize("with_lateral", [False, True])
def test_reports_say_what_was_drawn_and_where(triton, with_lateral, n_studies):
    studies = [chest_study(seed) for seed in TEST_SEEDS[:n_studies]]
    with CXRReportGen(triton.server.url) as client:

        def ask(study):
            return client.report(
                Image.fromarray(study.frontal),
                lateral=Image.fromarray(study.lateral) if with_lateral else None,
                indication=study.indication,
                technique=study.technique,
                comparison=study.comparison,
            )

        with ThreadPoolExecutor(STUDIES_AT_ONCE) as pool:
            reports = list(pool.map(ask, studies))

    drawn = [
        [Finding(finding.sentence, tuple(Box(*box) for box in finding.boxes)) for finding in study.findings]
        for study in studies
    ]
    scores = evaluate(drawn, [report.findings for report in reports])
    assert [report.status for report in reports] == ["complete"] * n_studies
    assert scores.findings.f1 >= 90
    assert scores.boxes.recall >= 80
    assert scores.boxes.precision >= 70
    # Sentences that say that nothing is there would be enough for a good F1 of all
    positive = evaluate(
        [[finding for finding in findings if finding.boxes] for findings in drawn],
        [[finding for finding in report.findings if finding.boxes] for report in reports],
    )
    assert positive.findings.f1 >= 80
