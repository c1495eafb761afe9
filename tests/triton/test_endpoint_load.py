"""The endpoint with four times as many callers as it takes: each answer is right, and who gets none is told.

Every row of every answer is compared with what the same input gave by itself before.
"""

import asyncio
import json
import random
from collections import Counter
from http import HTTPStatus

import aiohttp
import numpy as np
import pytest

from tests.amounts import amounts
from tests.triton.commands import KEY, ask, metric, metrics_page, png, started, wait_until_idle
from tests.triton.processes import resident_bytes

MAX_REQUESTS = 8
CALLERS = 4 * MAX_REQUESTS
N_IMAGES, N_TEXTS = 12, 40
MAX_ROWS = 12  # of a request
PAUSE_S = 0.1  # of a caller who was refused: shorter than it was told, so that the load stays
# A batch of another size adds up in another order; that is 1e-7 or so, and two inputs are 1e-3 and more apart.
CLOSE = 1e-5
# Bodies have 40 kB and answers 200 kB, in the mean, for 8 requests at once: 2 MB, and some for the allocator; 1 MB was
# seen. Bodies of the two thousand who are refused would be 80 MB, if they stayed.
MAX_GROWTH_BYTES = 16 * 2**20


@pytest.fixture(scope="module")
def command(triton, tmp_path_factory):
    options = [f"--triton={triton.server.url}", "--deployment=medimageinsight", "--score-port=0"]
    page = f"--triton-metrics=http://127.0.0.1:{triton.server.metrics_port}/metrics"
    limits = [f"--max-requests={MAX_REQUESTS}", page]
    keys = {"MEDIMAGE_KEYS": KEY}
    folder = tmp_path_factory.mktemp("load")
    with started("endpoint", *options, *limits, folder=folder, environment=keys) as command:
        yield command


@pytest.fixture(scope="module")
def known(command):
    """The vectors of each image and text, asked one by one."""
    inputs = {("image_features", n): [png(n), ""] for n in range(N_IMAGES)}
    inputs |= {("text_features", n): ["", f"x-ray chest anteroposterior finding {n}"] for n in range(N_TEXTS)}
    vectors = {}
    for (name, n), row in inputs.items():
        status, _, answer = ask(command.score_port, body([row]))
        assert status == HTTPStatus.OK
        vectors[name, n] = np.ravel(json.loads(answer)[0][name])
    for name, n in (("image_features", N_IMAGES), ("text_features", N_TEXTS)):
        rows = np.array([vectors[name, i] for i in range(n)])
        apart = np.abs(rows[:, None] - rows[None]).max(axis=2) + np.eye(n)
        assert apart.min() > 50 * CLOSE  # else a vector in the wrong row could pass
    return inputs, vectors


def body(rows):
    return json.dumps({"input_data": {"columns": ["image", "text"], "data": rows}}).encode()


class Callers:
    """What they were answered."""

    def __init__(self, known):
        self.inputs, self.vectors = known
        self.sent = 0
        self.statuses = Counter()
        self.rows = 0
        self.wrong = []

    async def call(self, session, url, chance, rows):
        """Until all together have so many."""
        while self.rows < rows:
            asked = [self._row(chance) for _ in range(chance.randint(1, MAX_ROWS))]
            self.sent += 1
            async with session.post(url, data=body([[image, text] for _, image, text in asked])) as response:
                answer = await response.read()
            self.statuses[response.status] += 1
            if response.status == HTTPStatus.OK:
                self._check([names for names, _, _ in asked], json.loads(answer))
                continue
            assert response.status == HTTPStatus.TOO_MANY_REQUESTS, answer
            assert 1 <= int(response.headers["retry-after"]) <= 30
            assert "which is the limit; try again" in json.loads(answer)["message"]
            await asyncio.sleep(PAUSE_S)

    def _row(self, chance):
        """Names of what is asked, and the cells; half of the rows have both."""
        image = ("image_features", chance.randrange(N_IMAGES))
        text = ("text_features", chance.randrange(N_TEXTS))
        names = chance.choice([(image,), (text,), (image, text), (image, text)])
        image_cell = self.inputs[image][0] if image in names else ""
        text_cell = self.inputs[text][1] if text in names else ""
        return names, image_cell, text_cell

    def _check(self, asked, answer):
        assert len(answer) == len(asked)
        for names, row in zip(asked, answer, strict=True):
            self.rows += 1
            assert {name for name in row if name.endswith("features")} == {name for name, _ in names}
            for name, n in names:
                error = np.abs(np.ravel(row[name]) - self.vectors[name, n]).max()
                if not error < CLOSE:
                    self.wrong.append((name, n, error))


@pytest.mark.parametrize("rows", amounts(200, 1500))
async def test_saturated_endpoint_answers_every_row_right_and_refuses_the_rest(command, known, rows):
    port = command.score_port
    url = f"http://127.0.0.1:{port}/score"
    callers = Callers(known)
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    (worker,) = command.workers
    async with aiohttp.ClientSession(
        headers=headers, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60.0)
    ) as session:

        async def load(rows):
            await asyncio.gather(*(callers.call(session, url, random.Random(n), rows) for n in range(CALLERS)))

        before = await asyncio.to_thread(metrics_page, port)
        await load(rows // 3)
        warm_bytes = resident_bytes(worker)
        await load(rows)
        growth_bytes = resident_bytes(worker) - warm_bytes
    after = await asyncio.to_thread(metrics_page, port)

    assert callers.wrong == []
    assert set(callers.statuses) == {HTTPStatus.OK, HTTPStatus.TOO_MANY_REQUESTS}
    assert callers.statuses.total() == callers.sent
    counted = metric(after, "medimage_endpoint_requests_total") - metric(before, "medimage_endpoint_requests_total")
    assert counted - 1 == callers.sent  # the page of metrics counts the one before it
    assert growth_bytes < MAX_GROWTH_BYTES
    await asyncio.to_thread(wait_until_idle, port)
