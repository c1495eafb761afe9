"""Continuous batching on a decoder whose next token depends on everything that its slot holds."""

import queue
import threading
from contextlib import contextmanager
from dataclasses import astuple, replace
from time import monotonic
from types import SimpleNamespace

import numpy as np
import pytest

from medimage_server.errors import Cancelled, InferenceFailed, InvalidInput, Unavailable
from medimage_server.reports import scheduler as module
from medimage_server.reports.scheduler import PREPARED_AHEAD, Job, Scheduler
from medimage_server.reports.settings import LongRope

WAIT_S = 10.0  # for what takes milliseconds, so that a hang fails the test and not the machine
VOCABULARY, EOS = 50, 0


def next_token(values):
    """Of a sequence; it depends on the order, so that a mix-up of slots or places shows."""
    places = np.arange(1, len(values) + 1)
    return int(np.dot(np.asarray(values, np.int64), places) * 7 + len(values)) % VOCABULARY


def greedy(prompt, n):
    values, tokens = list(prompt), []
    while len(tokens) < n and (not tokens or tokens[-1] != EOS):
        tokens.append(next_token(values))
        values.append(tokens[-1])
    return tokens


def embed(token_ids):
    return np.array(token_ids, np.float32)[:, np.newaxis]


class FakeDecoder:
    """Slots of numbers instead of keys and values; records its calls, and waits for `gate` before each.

    Args:
        call_s: that a call takes.
    """

    def __init__(self, slots=3, max_length=100_000, *, call_s=0.0):
        self.slots, self.max_length, self.call_s = slots, max_length, call_s
        self.held = np.zeros((slots, max_length), np.int64)
        self.calls, self.positions = [], []
        self.gate = threading.Semaphore(10**9)
        self.fail = {}  # name of a call -> error

    def prefill(self, slot, embeds, *, past, position_ids):
        self._enter(("prefill", slot, past, len(embeds)), position_ids)
        self.held[slot, past : past + len(embeds)] = embeds[:, 0]
        return self.logits(slot, past + len(embeds))

    def step(self, embeds, *, lengths, position_ids):
        self._enter(("step", len(embeds)), position_ids)
        self.held[np.arange(len(embeds)), lengths - 1] = embeds[:, 0]
        return np.stack([self.logits(slot, length) for slot, length in enumerate(lengths)])

    def logits(self, slot, length):
        logits = np.zeros(VOCABULARY, np.float32)
        logits[next_token(self.held[slot, :length])] = 1
        return logits

    def _enter(self, call, position_ids):
        assert self.gate.acquire(timeout=WAIT_S)
        self.calls.append(call)
        self.positions.append(position_ids.tolist())
        threading.Event().wait(self.call_s)
        if error := self.fail.pop(call[0], None):
            raise error


class Caller:
    """A job and what it was told."""

    def __init__(self, prompt, max_new_tokens=5, *, eos=frozenset([EOS]), **job):
        self.prompt, self.max_new_tokens, self.eos = prompt, max_new_tokens, eos
        self.tokens, self.cancelled = [], False
        self._another, self._ended = threading.Event(), queue.Queue()
        self.job = Job(
            **{
                "prepare": lambda: embed(prompt),
                "prompt_length": len(prompt),
                "max_new_tokens": max_new_tokens,
                "eos_token_ids": eos,
                "on_token": self.add,
                "on_end": self._ended.put,
                "is_cancelled": lambda: self.cancelled,
                **job,
            }
        )

    def add(self, token):
        self.tokens.append(token)
        self._another.set()

    def wait_for_a_token(self):
        """The next one, if it had some already."""
        self._another.clear()
        assert self._another.wait(WAIT_S)

    def ending(self):
        return self._ended.get(timeout=WAIT_S)

    def expect_whole_answer(self):
        ending = self.ending()
        expected = greedy(self.prompt, self.max_new_tokens)
        assert ending == ("eos" if expected[-1] == EOS else "length")
        assert self.tokens == [token for token in expected if token != EOS]

    def give_up(self):
        """Cancel; what came until then must be right."""
        self.cancelled = True
        assert isinstance(self.ending(), Cancelled)
        values = list(self.prompt)
        for token in self.tokens:
            assert token == next_token(values)
            values.append(token)


@contextmanager
def running(decoder, *, embed=embed, **settings):
    scheduler = Scheduler(decoder, embed, **{"max_queue": 100, "time_limit_s": WAIT_S, "prefill_chunk": 4, **settings})
    try:
        yield scheduler
    finally:
        decoder.gate.release(10**4)
        scheduler.close()


def endless(prompt=(1, 2, 3), **job):
    """A caller whose answer goes on until it is given up; for decoders that take their time."""
    return Caller(prompt, 10**6, eos=frozenset(), **job)


def random_callers(n):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, n)
    return [Caller(rng.integers(1, VOCABULARY, length).tolist(), int(rng.integers(1, 30))) for length in lengths]


def test_many_jobs_on_few_slots_get_what_each_gets_alone():
    callers = random_callers(40)
    assert {greedy(caller.prompt, caller.max_new_tokens)[-1] == EOS for caller in callers} == {True, False}
    with running(FakeDecoder()) as scheduler:
        for caller in callers:
            scheduler.submit(caller.job)
        for caller in callers:
            caller.expect_whole_answer()


def test_answer_is_cut_where_the_slot_is_full():
    caller = Caller([1, 2, 3], 100, eos=frozenset())
    with running(FakeDecoder(max_length=10)) as scheduler:
        scheduler.submit(caller.job)
        assert caller.ending() == "length"
    assert caller.tokens == greedy([1, 2, 3], 7)


def test_of_equal_scores_the_lowest_id_is_taken():
    decoder = FakeDecoder()
    decoder.logits = lambda slot, length: np.where(np.isin(np.arange(VOCABULARY), [9, 4, 30]), 2, 1).astype(np.float32)
    caller = Caller([1], 2)
    with running(decoder) as scheduler:
        scheduler.submit(caller.job)
        assert caller.ending() == "length"
    assert caller.tokens == [4, 4]


def test_constraint_decides_and_hears_of_every_token():
    class OddOnly:
        def __init__(self):
            self.heard = []
            self.advance = self.heard.append

        def apply(self, logits):
            return np.where(np.arange(VOCABULARY) % 2, logits, -np.inf)

    constraint = OddOnly()
    caller = Caller([1, 2], 6, constraint=constraint)
    with running(FakeDecoder()) as scheduler:
        scheduler.submit(caller.job)
        caller.ending()
    assert [token % 2 for token in caller.tokens] == [1] * 6
    assert caller.tokens == constraint.heard


def test_live_answers_get_a_token_between_any_two_chunks_of_a_prompt():
    decoder, live, long = FakeDecoder(call_s=0.001), endless(), Caller([5] * 40, 1)
    with running(decoder) as scheduler:
        scheduler.submit(live.job)
        live.wait_for_a_token()
        scheduler.submit(long.job)
        long.expect_whole_answer()
        live.give_up()
    first, last = (decoder.calls.index(("prefill", 1, past, 4)) for past in (0, 36))
    assert [call[0] for call in decoder.calls[first : last + 1]] == ["prefill", "step"] * 9 + ["prefill"]


def test_waiting_prompts_are_read_one_after_the_other_in_order():
    decoder = FakeDecoder()
    decoder.gate = threading.Semaphore(0)
    callers = [Caller([5] * 10, 1), Caller([6] * 10, 1)]
    with running(decoder) as scheduler:
        for caller in callers:
            scheduler.submit(caller.job)
        decoder.gate.release(10**4)
        for caller in callers:
            caller.expect_whole_answer()
    assert [call[3] for call in decoder.calls] == [4, 4, 2] * 2
    assert [call[2] for call in decoder.calls] == [0, 4, 8] * 2


def test_freed_slots_are_filled_from_the_front_and_steps_stop_at_the_last_live_one():
    decoder = FakeDecoder(slots=3, call_s=0.001)
    first, second, third = endless([1]), endless([2]), endless([3])
    with running(decoder) as scheduler:
        for caller in (first, second, third):
            scheduler.submit(caller.job)
            caller.wait_for_a_token()
        assert ("step", 2) in decoder.calls
        first.give_up()
        third.give_up()
        fourth = Caller([4], 5)
        scheduler.submit(fourth.job)
        fourth.expect_whole_answer()
        second.give_up()
    placed = [call[1] for call in decoder.calls if call[0] == "prefill"]
    assert placed == [0, 1, 2, 0]
    assert decoder.calls[-1] == ("step", 2)


def test_full_queue_refuses_at_once_and_counts_what_has_no_slot():
    live, waiting = endless(), [Caller([3], 1) for _ in range(6)]
    with running(FakeDecoder(slots=1, call_s=0.001), max_queue=6) as scheduler:
        scheduler.submit(live.job)
        live.wait_for_a_token()
        for caller in waiting:
            scheduler.submit(caller.job)
        assert (scheduler.live_slots, scheduler.queue_length) == (1, 6)
        with pytest.raises(Unavailable, match=r"^6 reports are waiting already; try again later$"):
            scheduler.submit(Caller([3]).job)
        live.give_up()
        for caller in waiting:
            caller.expect_whole_answer()
        scheduler.submit(Caller([3]).job)


def test_only_the_front_of_the_queue_is_prepared_ahead():
    prepared = queue.Queue()

    def caller(number):
        def prepare():
            prepared.put(number)
            return embed([3])

        return Caller([3], 1, prepare=prepare)

    live, waiting = endless(), [caller(number) for number in range(10)]
    with running(FakeDecoder(slots=1, call_s=0.001)) as scheduler:
        scheduler.submit(live.job)
        live.wait_for_a_token()
        for caller in waiting:
            scheduler.submit(caller.job)
        ahead = [prepared.get(timeout=WAIT_S) for _ in range(PREPARED_AHEAD)]
        for _ in range(5):  # turns of the scheduler, in each of which it might go on
            live.wait_for_a_token()
        assert sorted(ahead) == list(range(PREPARED_AHEAD))
        assert prepared.empty()
        live.give_up()
        for caller in waiting:
            caller.expect_whole_answer()


@pytest.mark.parametrize("place", ["live", "prefilling", "waiting", "preparing"])
def test_cancelled_job_ends_wherever_it_is_and_the_next_is_served(place):
    decoder, hold, blocking = FakeDecoder(slots=1, call_s=0.001), threading.Event(), endless()
    prompt = [1] * (4000 if place == "prefilling" else 20)  # 4000 tokens are a second of chunks
    prepare = {"prepare": lambda: hold.wait(WAIT_S) and embed([1])} if place == "preparing" else {}
    caller, later = endless(prompt, **prepare), Caller([2, 3])
    with running(decoder) as scheduler:
        if place == "waiting":
            scheduler.submit(blocking.job)
            blocking.wait_for_a_token()
        scheduler.submit(caller.job)
        scheduler.submit(later.job)
        if place == "live":
            caller.wait_for_a_token()
        caller.give_up()
        assert bool(caller.tokens) is (place == "live")
        if place == "waiting":
            blocking.give_up()
        later.expect_whole_answer()
        hold.set()


@pytest.mark.parametrize("place", ["live", "preparing"])
def test_job_that_takes_too_long_ends_wherever_it_is(place):
    hold = threading.Event()
    prepare = {"prepare": lambda: hold.wait(WAIT_S) and embed([1])} if place == "preparing" else {}
    caller = endless(**prepare)
    with running(FakeDecoder(slots=1, call_s=0.001), time_limit_s=0.3) as scheduler:
        scheduler.submit(caller.job)
        ending = caller.ending()
        hold.set()
        assert isinstance(ending, Unavailable)
        assert str(ending) == "the report took longer than the limit of 0.3 s"
        assert bool(caller.tokens) is (place == "live")
        assert scheduler.live_slots == 0


def test_failed_prefill_ends_its_own_job_alone():
    decoder, live = FakeDecoder(call_s=0.001), endless()
    with running(decoder) as scheduler:
        scheduler.submit(live.job)
        live.wait_for_a_token()
        decoder.fail["prefill"] = RuntimeError("out of memory")
        bad, good = Caller([1, 2]), Caller([3, 4])
        scheduler.submit(bad.job)
        assert isinstance(bad.ending(), RuntimeError)
        scheduler.submit(good.job)
        good.expect_whole_answer()
        live.give_up()


def test_failed_step_ends_the_live_jobs_and_others_go_on():
    decoder = FakeDecoder(slots=2, call_s=0.001)
    live, waiting = [endless([1]), endless([2])], Caller([3, 4])
    with running(decoder) as scheduler:
        for caller in live:
            scheduler.submit(caller.job)
            caller.wait_for_a_token()
        scheduler.submit(waiting.job)
        decoder.fail["step"] = RuntimeError("out of memory")
        assert [type(caller.ending()) for caller in live] == [RuntimeError] * 2
        waiting.expect_whole_answer()


@pytest.mark.parametrize("callback", ["prepare", "on_token", "on_end", "is_cancelled"])
def test_callback_that_fails_ends_its_own_job_alone(callback):
    def fail(*_):
        raise LookupError("gone")

    bad = Caller([1, 2], **{callback: fail}) if callback == "on_end" else endless(**{callback: fail})
    live, good = endless(), Caller([3, 4])
    with running(FakeDecoder(call_s=0.001)) as scheduler:
        for caller in (live, bad, good):
            scheduler.submit(caller.job)
        if callback != "on_end":
            assert isinstance(bad.ending(), LookupError)
        good.expect_whole_answer()
        live.give_up()


def test_scores_that_are_no_numbers_end_the_answer_with_an_error():
    decoder = FakeDecoder()
    decoder.logits = lambda slot, length: np.full(VOCABULARY, np.nan, np.float32)
    caller = Caller([1, 2])
    with running(decoder) as scheduler:
        scheduler.submit(caller.job)
        ending = caller.ending()
    assert isinstance(ending, InferenceFailed)
    assert str(ending) == "internal error: the decoder gave no finite score for any token"


def test_close_ends_all_jobs_clearly_and_takes_no_more():
    live, waiting = endless(), Caller([2])
    with running(FakeDecoder(slots=1, call_s=0.001)) as scheduler:
        scheduler.submit(live.job)
        live.wait_for_a_token()
        scheduler.submit(waiting.job)
        scheduler.close()
        for caller in (live, waiting):
            ending = caller.ending()
            assert isinstance(ending, Unavailable)
            assert str(ending) == "the server is shutting down"
        with pytest.raises(Unavailable, match="shutting down"):
            scheduler.submit(Caller([3]).job)


def test_answer_that_grows_beyond_the_long_rope_limit_is_read_again_with_the_other_rows():
    decoder, caller = FakeDecoder(slots=2), Caller([1, 2, 3], 6, eos=frozenset())
    with running(decoder, long_rope=LongRope(after=5, first_row=1000)) as scheduler:
        scheduler.submit(caller.job)
        caller.expect_whole_answer()
    assert list(zip(decoder.calls, decoder.positions, strict=True)) == [
        (("prefill", 0, 0, 3), [0, 1, 2]),
        (("step", 1), [3]),
        (("step", 1), [4]),  # five tokens in all: the last with the first rows
        (("prefill", 0, 0, 4), [1000, 1001, 1002, 1003]),
        (("prefill", 0, 4, 2), [1004, 1005]),
        (("step", 1), [1006]),
        (("step", 1), [1007]),
    ]


def test_prompt_beyond_the_long_rope_limit_takes_the_other_rows_at_once():
    decoder, caller = FakeDecoder(), Caller([1] * 6, 3, eos=frozenset())
    with running(decoder, long_rope=LongRope(after=5, first_row=1000)) as scheduler:
        scheduler.submit(caller.job)
        assert caller.ending() == "length"
    assert decoder.positions == [[1000, 1001, 1002, 1003], [1004, 1005], [1006], [1007]]


def test_counters_add_up():
    callers = random_callers(10)
    with running(FakeDecoder()) as scheduler:
        for caller in callers:
            scheduler.submit(caller.job)
        for caller in callers:
            caller.expect_whole_answer()
        assert scheduler.counters.tokens == sum(len(greedy(c.prompt, c.max_new_tokens)) for c in callers)
        assert scheduler.counters.prefill_s > 0
        assert scheduler.counters.decode_s > 0
        assert (scheduler.live_slots, scheduler.queue_length) == (0, 0)


def test_failed_preparations_end_while_all_slots_are_taken_and_the_next_are_prepared():
    def refuse():
        raise InvalidInput("no image")

    live, bad, good = endless(), [Caller([1], prepare=refuse) for _ in range(2 * PREPARED_AHEAD)], Caller([2, 3])
    with running(FakeDecoder(slots=1, call_s=0.001)) as scheduler:
        scheduler.submit(live.job)
        live.wait_for_a_token()
        for caller in [*bad, good]:
            scheduler.submit(caller.job)
        assert {str(caller.ending()) for caller in bad} == {"no image"}
        assert (scheduler.live_slots, scheduler.queue_length) == (1, 1)
        live.give_up()
        good.expect_whole_answer()


def test_close_is_heard_whenever_it_comes(monkeypatch):
    """Also between the thread's look at what there is to do and its wait for more."""
    wakes, may_close, has_closed = [], threading.Event(), threading.Event()

    class ClosedBeforeCleared(threading.Event):
        def __init__(self):
            super().__init__()
            wakes.append(self)

        def clear(self):
            if may_close.is_set() and not closing.ident:
                closing.start()
                assert self.wait(WAIT_S)
            super().clear()

    def close():
        scheduler.close()
        has_closed.set()

    monkeypatch.setattr(module, "threading", SimpleNamespace(**vars(threading) | {"Event": ClosedBeforeCleared}))
    scheduler = Scheduler(FakeDecoder(), embed, max_queue=1, time_limit_s=WAIT_S, prefill_chunk=4)
    closing = threading.Thread(target=close)
    may_close.set()
    (wake,) = wakes
    wake.set()
    was_heard = has_closed.wait(WAIT_S / 5)
    wake.set()
    closing.join(WAIT_S)
    assert was_heard


def test_callers_are_asked_beside_the_decoding_and_obeyed_at_the_next_step():
    """The question takes as long as a hundred tokens here."""
    askers, heard = set(), []

    def is_cancelled():
        askers.add(threading.current_thread().name)
        before = len(caller.tokens)
        threading.Event().wait(0.1)
        heard.append((before, len(caller.tokens)))
        return len(heard) > 2

    caller = endless(is_cancelled=is_cancelled)
    with running(FakeDecoder(call_s=0.001)) as scheduler:
        scheduler.submit(caller.job)
        assert isinstance(caller.ending(), Cancelled)
    assert "scheduler" not in askers
    assert heard[2][1] > heard[2][0] + 5  # the answer went on meanwhile
    assert len(caller.tokens) <= heard[2][1] + 5


def test_failure_at_the_long_rope_limit_ends_its_own_job_alone():
    def embed_few(token_ids):
        if len(token_ids) > 2:  # more than the two live rows: the tokens that are read again
            raise MemoryError
        return embed(token_ids)

    crossing, live = Caller([1, 2, 3], 5, eos=frozenset()), endless([1] * 6)
    rope = LongRope(after=5, first_row=1000)
    with running(FakeDecoder(call_s=0.001), embed=embed_few, long_rope=rope) as scheduler:
        scheduler.submit(live.job)
        live.wait_for_a_token()
        scheduler.submit(crossing.job)
        assert isinstance(crossing.ending(), MemoryError)
        live.give_up()


def test_progress_tells_how_much_of_the_prompt_is_read_before_the_first_token():
    told, caller = [], Caller([5] * 10, 2)
    with running(FakeDecoder()) as scheduler:
        job = replace(caller.job, on_progress=lambda progress: told.append((progress, len(caller.tokens))))
        scheduler.submit(job)
        caller.expect_whole_answer()
    assert [(progress.state, progress.tokens_read, n_tokens) for progress, n_tokens in told] == [
        ("waiting", 0, 0),
        *(("reading", n, 0) for n in (0, 4, 8, 10)),
    ]
    assert {progress.tokens for progress, _ in told} == {10}
    # of the first report nothing is known before its first chunk
    assert [progress.first_words_s is None for progress, _ in told] == [True, True, False, False, False]
    assert told[-1][0].first_words_s == 0


def test_answer_that_is_read_again_at_the_long_rope_limit_tells_no_more_progress():
    told, caller = [], Caller([1, 2, 3], 6, eos=frozenset())
    with running(FakeDecoder(), long_rope=LongRope(after=5, first_row=1000)) as scheduler:
        scheduler.submit(replace(caller.job, on_progress=told.append))
        caller.expect_whole_answer()
    assert [(progress.state, progress.tokens_read) for progress in told] == [
        ("waiting", 0),
        ("reading", 0),
        ("reading", 3),
    ]


def test_first_words_come_about_when_they_are_told():
    """Of a job behind one that is answered and one that waits, on one slot, after some that were measured."""
    decoder = FakeDecoder(slots=1, call_s=0.01)
    told, first_words = [], []
    with running(decoder) as scheduler:
        for _ in range(2):
            measured = Caller([5] * 40, 20, eos=frozenset())
            scheduler.submit(measured.job)
            assert measured.ending() == "length"
        before = [Caller([6] * 40, 20, eos=frozenset()) for _ in range(2)]
        for caller in before:
            scheduler.submit(caller.job)
        before[0].wait_for_a_token()
        last = Caller([7] * 40, 20, eos=frozenset())
        add = last.job.on_token
        submitted = monotonic()
        last.job.on_token = lambda token: (first_words.append(monotonic() - submitted), add(token))
        last.job.on_progress = told.append
        scheduler.submit(last.job)
        assert last.ending() == "length"
    # 19 steps of the first, prompt and answer of the second, and its own prompt: 0.1 + 0.2 s each
    assert 0.6 * first_words[0] < told[0].first_words_s < 1.7 * first_words[0]
    assert [progress.state for progress in told] == ["waiting", *["reading"] * 11]


def test_times_of_an_answer_are_what_a_watch_tells():
    """The images take 0.1 s, the prompt three calls of 0.05 s, the answer four more, after 0.3 s of another one's."""
    timings, live = [], endless()
    caller = Caller([5] * 10, 5, eos=frozenset(), prepare=lambda: threading.Event().wait(0.1) or embed([5] * 10))
    with running(FakeDecoder(slots=1, call_s=0.05)) as scheduler:
        scheduler.submit(live.job)
        live.wait_for_a_token()
        started = monotonic()
        scheduler.submit(replace(caller.job, on_timing=timings.append))
        threading.Event().wait(0.3)
        live.give_up()
        assert caller.ending() == "length"
        seconds = monotonic() - started
        assert scheduler.counters.answers == 1  # the other one was given up
    (timing,) = timings
    assert 0.9 * seconds < timing.queue_s + timing.prompt_s + timing.decode_s <= seconds
    assert timing.queue_s > 0.15  # 0.3 s, but for the images
    assert timing.prompt_s >= 0.1 + 3 * 0.05
    assert timing.decode_s >= 4 * 0.05
    counters = scheduler.counters
    assert (counters.answers_queue_s, counters.answers_prompt_s, counters.answers_decode_s) == astuple(timing)


def test_caller_who_cannot_be_told_ends_its_own_job_alone():
    def fail(progress):
        if progress.tokens_read:
            raise LookupError("gone")

    bad, good = endless([1] * 10), Caller([3, 4])
    with running(FakeDecoder()) as scheduler:
        scheduler.submit(replace(bad.job, on_progress=fail))
        scheduler.submit(good.job)
        assert isinstance(bad.ending(), LookupError)
        good.expect_whole_answer()


def test_caller_who_is_slow_to_be_told_holds_up_nobody_else():
    told, go_on = threading.Event(), threading.Event()

    def wait(progress):
        told.set()
        assert go_on.wait(WAIT_S)

    slow, other = Caller([1, 2]), Caller([3, 4])
    with running(FakeDecoder()) as scheduler:
        submitting = threading.Thread(target=scheduler.submit, args=[replace(slow.job, on_progress=wait)])
        submitting.start()
        assert told.wait(WAIT_S)
        scheduler.submit(other.job)
        other.expect_whole_answer()
        go_on.set()
        slow.expect_whole_answer()
        submitting.join()
