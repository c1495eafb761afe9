"""Sixty-four callers of every kind for two minutes: each answer is that of its row alone, and nothing stays behind.

They ask for images, texts, both, several rows, and reports, whole and as they are written; some of their rows are bad,
of which each is to be named, and some of them hang up.
"""

import asyncio
import base64
import json
import random
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from time import monotonic

import aiohttp
import numpy as np
import pytest

from tests.triton.commands import KEY, ask, png, question, started, wait_until_idle
from tests.triton.processes import descendants, is_running, resident_bytes
from tests.waiting import wait_until

CALLERS = 64
SECONDS = 130.0
HUNG_S = 60.0  # far more than any answer takes, also with all callers before it
PATIENCE_S = (0.005, 0.5)  # of a caller who hangs up
N_IMAGES, N_TEXTS, N_STUDIES = 12, 40, 6
MAX_ROWS = 8
PAUSE_S = 0.1  # of a caller who was refused
# A batch of another size adds up in another order; that is 1e-7 or so, and two inputs are 1e-3 and more apart.
CLOSE = 1e-5
BAD_IMAGE = base64.b64encode(b"no image at all").decode()
MAX_GROWTH = 1.25  # of the memory of all processes, between a quarter of the load and its end
SPARE_DESCRIPTORS = 8  # of all processes: connections to be closed, and files that are open for milliseconds

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def served(repository, tmp_path_factory):
    options = ["--repository", repository, "--score-port=0", "--workers=2"]
    keys = {"MEDIMAGE_KEYS": KEY}
    with started("serve", *options, folder=tmp_path_factory.mktemp("soak"), environment=keys) as command:
        yield command


class Known:
    """What each row was answered when it was asked alone."""

    def __init__(self, port):
        self.images = [png(n) for n in range(N_IMAGES)]
        self.texts = [f"x-ray chest anteroposterior finding {n}" for n in range(N_TEXTS)]
        self.studies = [[png(100 + n), f"indication {n}"] for n in range(N_STUDIES)]
        self.vectors = {
            ("image_features", n): np.ravel(alone(port, embeddings([[image, ""]]))["image_features"])
            for n, image in enumerate(self.images)
        }
        self.vectors |= {
            ("text_features", n): np.ravel(alone(port, embeddings([["", text]]))["text_features"])
            for n, text in enumerate(self.texts)
        }
        self.reports = [alone(port, studies([study]))["output"] for study in self.studies]
        assert len(set(self.reports)) > N_STUDIES // 2  # else a report in the wrong row could pass


def embeddings(rows):
    return question(["image", "text"], rows)


def studies(rows):
    return question(["frontal_image", "indication"], rows)


def alone(port, body):
    status, _, answer = ask(port, body)
    assert status == 200, answer
    return json.loads(answer)[0]


class Callers:
    """What became of each request."""

    def __init__(self, session, url, known):
        self._session, self._url, self._known = session, url, known
        self.sent = self.hung = self.hung_up = self.rows = self.bad = self.named = 0
        self.statuses, self.kinds = Counter(), Counter()
        self.wrong, self.swapped, self.lost, self.unexpected = [], [], [], []

    async def call(self, chance, end):
        kinds = [self.embeddings, self.bad_embeddings, self.reports, self.bad_report, self.stream, self.leave]
        while monotonic() < end:
            (ask,) = chance.choices(kinds, weights=[60, 12, 8, 4, 10, 6])
            self.sent += 1
            self.kinds[ask.__name__] += 1
            try:
                async with asyncio.timeout(HUNG_S):
                    await ask(chance)
            except TimeoutError:
                self.hung += 1
            except aiohttp.ClientError as error:
                self.lost.append(repr(error))

    async def embeddings(self, chance):
        asked, rows = zip(*[self._row(chance) for _ in range(chance.randint(1, MAX_ROWS))], strict=True)
        answer = await self._post(embeddings(rows))
        if answer is None:
            return
        if len(answer) != len(asked):
            self.wrong.append(f"{len(answer)} rows for {len(asked)}")
        for names, row in zip(asked, answer, strict=False):
            self._compare(dict(names), row)

    async def bad_embeddings(self, chance):
        rows = [self._row(chance)[1] for _ in range(chance.randint(1, MAX_ROWS))]
        place = chance.randrange(len(rows))
        rows[place] = [BAD_IMAGE, ""]
        await self._post_bad(embeddings(rows), place)

    async def reports(self, chance):
        numbers = [chance.randrange(N_STUDIES) for _ in range(chance.randint(1, 3))]
        answer = await self._post(studies([self._known.studies[n] for n in numbers]))
        if answer is not None:
            self._compare_reports(numbers, [row["output"] for row in answer])

    async def bad_report(self, chance):
        rows = [self._known.studies[chance.randrange(N_STUDIES)] for _ in range(chance.randint(1, 3))]
        place = chance.randrange(len(rows))
        rows[place] = [BAD_IMAGE, ""]
        await self._post_bad(studies(rows), place)

    async def stream(self, chance):
        numbers = [chance.randrange(N_STUDIES) for _ in range(chance.randint(1, 3))]
        body = studies([self._known.studies[n] for n in numbers])
        async with self._session.post(self._url, data=body, headers={"accept": "text/event-stream"}) as response:
            events = await response.text()
        self.statuses[response.status] += 1
        if response.status != 200:
            await self._refused(response, events)
            return
        rows = [json.loads(data) for data in re.findall(r"event: row\ndata: (.*)\n", events)]
        if "event: end\n" not in events:
            self.lost.append(events[-200:])
        self._compare_reports(numbers, [row["output"] for row in sorted(rows, key=lambda row: row["row"])])

    async def leave(self, chance):
        """Hang up after a while, in which there may have been an answer."""
        accept = chance.choice(["application/json", "text/event-stream"])
        study = [self._known.studies[chance.randrange(N_STUDIES)]] * 3
        body = studies(study) if accept != "application/json" else embeddings([self._row(chance)[1]] * MAX_ROWS)
        self.hung_up += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(chance.uniform(*PATIENCE_S)):
                async with self._session.post(self._url, data=body, headers={"accept": accept}) as response:
                    await response.read()

    def _row(self, chance):
        """What is asked, and its cells; half of the rows have both."""
        image, text = chance.randrange(N_IMAGES), chance.randrange(N_TEXTS)
        names = (("image_features", image), ("text_features", text))
        has_image, has_text = chance.choice([(True, False), (False, True), (True, True), (True, True)])
        cells = [self._known.images[image] if has_image else "", self._known.texts[text] if has_text else ""]
        return [name for name, is_asked in zip(names, (has_image, has_text), strict=True) if is_asked], cells

    async def _post(self, body):
        """The rows of an answer, None of a refusal."""
        async with self._session.post(self._url, data=body) as response:
            answer = await response.read()
        self.statuses[response.status] += 1
        if response.status == 200:
            return json.loads(answer)
        await self._refused(response, answer)
        return None

    async def _refused(self, response, answer):
        if response.status != 429 or "retry-after" not in response.headers:
            self.unexpected.append((response.status, answer[:200]))
        await asyncio.sleep(PAUSE_S)

    async def _post_bad(self, body, place):
        async with self._session.post(self._url, data=body) as response:
            message = json.loads(await response.read()).get("message", "")
        self.statuses[response.status] += 1
        if response.status == 429:
            await asyncio.sleep(PAUSE_S)
            return
        self.bad += 1
        self.named += response.status in (400, 424) and f"row {place}" in message
        if f"row {place}" not in message:
            self.unexpected.append((response.status, message[:200]))

    def _compare(self, asked, row):
        self.rows += 1
        if {name for name in row if name.endswith("features")} != asked.keys():
            self.wrong.append((asked, list(row)))
            return
        for name, n in asked.items():
            vector = np.ravel(row[name])
            if np.abs(vector - self._known.vectors[name, n]).max() < CLOSE:
                continue
            others = [m for (other, m), known in self._known.vectors.items() if other == name]
            is_others = any(np.abs(vector - self._known.vectors[name, m]).max() < CLOSE for m in others)
            (self.swapped if is_others else self.wrong).append((name, n))

    def _compare_reports(self, numbers, outputs):
        self.rows += len(outputs)
        expected = [self._known.reports[n] for n in numbers]
        if outputs != expected:
            (self.swapped if set(outputs) <= set(self._known.reports) else self.wrong).append((numbers, outputs))


class Use:
    """Memory and descriptors of the processes of a command, by kind."""

    def __init__(self, command):
        (triton,), workers = [command.triton], command.workers
        kinds = {"serve": [command.process.pid], "workers": workers, "Triton": [triton, *descendants(triton)]}
        self.megabytes = {kind: sum(map(resident, pids)) >> 20 for kind, pids in kinds.items()}
        self.descriptors = {kind: sum(map(open_descriptors, pids)) for kind, pids in kinds.items()}

    def __str__(self):
        return f"MB {self.megabytes}, descriptors {self.descriptors}"


def resident(pid):
    return resident_bytes(pid) if is_running(pid) else 0


def open_descriptors(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir())) if is_running(pid) else 0


async def load(command, known):
    """Callers, and what the service used at a quarter of the time, at the peak and at the end of it."""
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(headers=headers, connector=connector, timeout=timeout) as session:
        callers = Callers(session, f"http://127.0.0.1:{command.score_port}/score", known)
        end = monotonic() + SECONDS
        calls = asyncio.gather(*(callers.call(random.Random(n), end) for n in range(CALLERS)))
        uses = []
        while not calls.done():
            uses.append(await asyncio.to_thread(Use, command))
            await asyncio.wait([calls], timeout=SECONDS / 20)
        await calls
    return callers, uses


async def test_mixed_callers_get_the_answers_of_their_rows_and_leave_nothing(served):
    known = await asyncio.to_thread(Known, served.score_port)
    processes = {served.triton, *served.workers, *descendants(served.triton)}
    before = Use(served)
    callers, uses = await load(served, known)
    await asyncio.to_thread(wait_until_idle, served.score_port, within=60.0)

    def has_closed():
        return sum(Use(served).descriptors.values()) <= sum(before.descriptors.values()) + SPARE_DESCRIPTORS

    with suppress(AssertionError):
        await asyncio.to_thread(wait_until, has_closed, within=60.0)
    after = Use(served)
    peak = {kind: max(use.megabytes[kind] for use in uses) for kind in before.megabytes}
    most = {kind: max(use.descriptors[kind] for use in uses) for kind in before.descriptors}
    print(f"\n{callers.sent} requests {dict(callers.kinds)}, {callers.rows} rows compared")
    print(f"wrong {len(callers.wrong)}, swapped {len(callers.swapped)}, lost {len(callers.lost)}, hung {callers.hung}")
    print(f"bad rows named {callers.named} of {callers.bad}; hung up {callers.hung_up}; {dict(callers.statuses)}")
    print(f"before: {before}\npeak: MB {peak}, descriptors {most}\nafter: {after}")

    assert (callers.wrong, callers.swapped, callers.lost, callers.unexpected, callers.hung) == ([], [], [], [], 0)
    assert callers.named == callers.bad > 0
    assert callers.rows > 1000
    assert {served.triton, *served.workers, *descendants(served.triton)} == processes
    assert has_closed()
    warm = sum(uses[len(uses) // 4].megabytes.values())
    assert sum(after.megabytes.values()) < MAX_GROWTH * warm
