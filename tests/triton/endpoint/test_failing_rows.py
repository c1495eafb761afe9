"""Requests of which several rows fail at the same moment, many at once.

A row that fails ends the others of its request. Triton 2.51 crashes where a call is cancelled just as it ends, in about
one of a thousand requests like these (triton-inference-server/server, issue 8034).
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.amounts import amounts
from tests.triton.endpoint.case import base64_text, embeddings, reports
from tests.triton.endpoint.raw_http import ask, request

CALLERS = 6
NO_IMAGE = base64_text(b"\xff")


@pytest.mark.parametrize("requests", amounts(100, 1000))
def test_rows_that_fail_together_leave_triton_alive(triton, endpoint, requests):
    mixed = request(body=embeddings([[NO_IMAGE, None], [None, "heart"]] * 4))
    studies = request(body=reports([[NO_IMAGE, "dyspnea"]] * 6))
    with ThreadPoolExecutor(CALLERS) as pool:
        answers = pool.map(lambda raw: ask(endpoint.address, raw), [mixed, studies] * (requests // 2))
        assert Counter(answer.status for (answer,) in answers) == {400: requests}
    assert triton.grpc.is_server_live()
