"""Continuous batching: one thread that answers many studies at a time on the slots of one decoder.

A job waits, is prepared (its images are encoded) shortly before a slot becomes free, is read into the slot in chunks,
and then gets one token with every decode step until it ends. Each turn of the thread:

1. drops what was cancelled or took too long, waiting or live;
2. starts to prepare the jobs at the front of the queue, and puts prepared ones into free slots, the lowest first, so
   that the live rows stay at the front of the batch;
3. prefills one chunk of one prompt, the oldest;
4. decodes one token for every live slot, all in one batch.

So live answers go on while a prompt is read, and prompts are read while others are answered. Whether a job was
cancelled is asked by another thread, ten times a second, for the question takes its time.
"""

import logging
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from medimage_client.schema.reports import ReportProgress, ReportTiming
from medimage_server.errors import Cancelled, InferenceFailed, Unavailable
from medimage_server.reports.constraint import Logits
from medimage_server.reports.embedding import Embeds
from medimage_server.reports.pace import ReportPace
from medimage_server.reports.periodic import Periodic
from medimage_server.reports.settings import LongRope

log = logging.getLogger(__name__)

POLL_S = 0.1  # how often jobs are asked whether they were cancelled, and waiting ones for their time limit
PREPARED_AHEAD = 4  # jobs with encoded images, but no slot yet: up to 67 MB each at MAIRA-2's size

Ending = Literal["eos", "length"] | Exception


class SlotDecoder(Protocol):
    """What the scheduler needs of medimage_server.reports.decoder.Decoder."""

    slots: int
    max_length: int

    def prefill(self, slot: int, embeds: Embeds, *, past: int, position_ids: NDArray[np.int64]) -> Logits: ...
    def step(self, embeds: Embeds, *, lengths: NDArray[np.int64], position_ids: NDArray[np.int64]) -> Logits: ...


class TokenConstraint(Protocol):
    """What the scheduler needs of medimage_server.reports.constraint.Constraint."""

    def apply(self, logits: Logits) -> Logits: ...
    def advance(self, token: int) -> None: ...


@dataclass(eq=False, kw_only=True)
class Job:
    """One answer to be generated. The callbacks run in the scheduler's threads and must be quick, but for `prepare`."""

    prepare: Callable[[], Embeds]  # -> the prompt (S, H); may take its time
    prompt_length: int  # S
    max_new_tokens: int
    eos_token_ids: frozenset[int]
    on_token: Callable[[int], None]  # each token but the last one, if that is an end token
    on_end: Callable[[Ending], None]  # once: ended by itself, cut, or the error that ended it
    is_cancelled: Callable[[], bool]
    constraint: TokenConstraint | None = None
    on_progress: Callable[[ReportProgress], None] | None = None  # before the first token
    on_timing: Callable[[ReportTiming], None] | None = None  # before the end, unless that is an error


@dataclass
class Counters:
    """What the scheduler has done since it started."""

    tokens: int = 0  # generated, end tokens included
    prefill_s: float = 0.0
    decode_s: float = 0.0
    # of the answers that ended by themselves or were cut
    answers: int = 0
    answers_queue_s: float = 0.0
    answers_prompt_s: float = 0.0
    answers_decode_s: float = 0.0


@dataclass(eq=False)
class _Answer:
    """A job on its way, owned by the scheduler's thread but for `given_up`."""

    job: Job
    deadline: float
    prompt: Future[Embeds] | None = None  # None before preparation starts
    slot: int = -1
    pending: Embeds | None = None  # being prefilled; None while it waits or decodes
    length: int = 0  # tokens that the slot holds
    shift: int = 0  # of the rows in the rope tables
    prompt_length: int = 0
    tokens: list[int] = field(default_factory=list)
    kept_prompt: Embeds | None = None  # for a new prefill behind the long-rope limit
    given_up: Exception | None = None  # why it is to end; set by the thread that asks for cancellations
    submitted: float = field(default_factory=monotonic)
    prepare_s: float = 0.0  # that the job's preparation took
    read_since: float | None = None  # when its first chunk began
    first_token: float | None = None  # when it was there

    @property
    def is_decoding(self) -> bool:
        return self.slot >= 0 and self.pending is None

    @property
    def unread(self) -> int:
        """Tokens that are to be read; also asked by other threads than the scheduler's."""
        pending = self.pending
        return 0 if pending is None else len(pending) - self.length

    def timing(self) -> ReportTiming:
        """Of an answer that has ended now, with a token at least."""
        assert self.read_since is not None and self.first_token is not None
        prompt_s = self.prepare_s + self.first_token - self.read_since
        return ReportTiming(
            queue_s=self.first_token - self.submitted - prompt_s,
            prompt_s=prompt_s,
            decode_s=monotonic() - self.first_token,
        )


class Scheduler:
    """Runs jobs on a decoder until closed.

    Args:
        decoder: used by the scheduler's thread alone.
        embed: n token ids -> (n, H).
        max_queue: jobs that are accepted and not yet in a slot.
        time_limit_s: of a job, from its submission.
        prefill_chunk: tokens of a prompt that are read between two decode steps.
        long_rope: the second set of rope rows, where the model has one.
    """

    def __init__(
        self,
        decoder: SlotDecoder,
        embed: Callable[[Sequence[int]], Embeds],
        *,
        max_queue: int,
        time_limit_s: float,
        prefill_chunk: int,
        long_rope: LongRope | None = None,
    ) -> None:
        self._decoder, self._embed = decoder, embed
        self._max_queue, self._time_limit_s, self._chunk = max_queue, time_limit_s, prefill_chunk
        self._long_rope = long_rope
        self.counters = Counters()
        self._pace = ReportPace()
        self._queue: list[_Answer] = []  # accepted, not in a slot; under the lock
        self._slots: list[_Answer | None] = [None] * decoder.slots
        self._prefilling: list[_Answer] = []  # in order of admission
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._preparers = ThreadPoolExecutor(PREPARED_AHEAD, thread_name_prefix="prepare")
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()
        self._watcher = Periodic("cancellations", POLL_S, self._ask_for_cancellations)

    @property
    def live_slots(self) -> int:
        return sum(answer is not None for answer in self._slots)

    @property
    def queue_length(self) -> int:
        return len(self._queue)

    def submit(self, job: Job) -> None:
        """Take a job, and return at once.

        Raises:
            Unavailable: too many jobs wait already, or the scheduler is closed.
        """
        answer = _Answer(job, monotonic() + self._time_limit_s)
        if job.on_progress:
            with self._lock:
                self._check_room()
                waiting = self._waiting(job)
            job.on_progress(waiting)  # not under the lock, for which the thread of all answers would wait
        with self._lock:
            self._check_room()
            self._queue.append(answer)
        self._wake.set()

    def _check_room(self) -> None:
        """Raise Unavailable unless a job can be taken."""
        if self._closing:
            raise Unavailable("the server is shutting down")
        if len(self._queue) >= self._max_queue:
            raise Unavailable(f"{self._max_queue} reports are waiting already; try again later")

    def _waiting(self, job: Job) -> ReportProgress:
        """Of a job behind all that there are."""
        waits_for = max(0, len(self._queue) + 1 - self._slots.count(None))
        before = sum(answer.job.prompt_length for answer in self._queue)
        before += sum(answer.unread for answer in list(self._prefilling))
        first_words_s = self._pace.first_words_s(
            job.prompt_length, tokens_before=before, waits_for=waits_for, slots=len(self._slots)
        )
        return ReportProgress(state="waiting", tokens_read=0, tokens=job.prompt_length, first_words_s=first_words_s)

    def close(self) -> None:
        """End all jobs with an error, and the thread."""
        with self._lock:
            self._closing = True
        self._wake.set()
        self._thread.join()
        self._watcher.close()
        self._preparers.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while True:
            self._wake.clear()  # before anything is looked at, so that what comes later wakes the thread again
            if self._closing:
                break
            try:
                is_busy = self._turn()
            except Exception as error:  # a fault of ours; whoever comes next is served
                where = "".join(traceback.format_tb(error.__traceback__))
                log.error("the report scheduler failed: %s\n%s", type(error).__name__, where)
                self._end_all(error)
                continue
            if not is_busy:
                self._wake.wait(POLL_S if self._queue else None)
        self._end_all(Unavailable("the server is shutting down"))

    def _turn(self) -> bool:
        """Whether there was anything to run."""
        self._drop_given_up()
        self._start_preparing()
        self._admit()
        was_prefilled = self._prefill_chunk()
        return self._decode_step() or was_prefilled

    def _drop_given_up(self) -> None:
        now = monotonic()
        for answer in [*self._queue, *filter(None, self._slots)]:
            if now > answer.deadline:
                limit = Unavailable(f"the report took longer than the limit of {self._time_limit_s:g} s")
                self._end(answer, limit)
            elif answer.given_up:
                self._end(answer, answer.given_up)

    def _ask_for_cancellations(self) -> None:
        for answer in [*self._queue, *filter(None, self._slots)]:
            try:
                if answer.job.is_cancelled():
                    answer.given_up = Cancelled("the request was cancelled")
            except Exception as error:
                answer.given_up = error
            if answer.given_up:
                self._wake.set()

    def _start_preparing(self) -> None:
        for answer in self._queue[:PREPARED_AHEAD]:
            if answer.prompt is None:
                answer.prompt = self._preparers.submit(self._prepare, answer)
                answer.prompt.add_done_callback(lambda _: self._wake.set())

    @staticmethod
    def _prepare(answer: _Answer) -> Embeds:
        started = monotonic()
        prompt = answer.job.prepare()
        answer.prepare_s = monotonic() - started
        return prompt

    def _admit(self) -> None:
        for answer in [answer for answer in self._queue if answer.prompt and answer.prompt.done()]:
            assert answer.prompt is not None
            if error := answer.prompt.exception():
                stopped = InferenceFailed("internal error: preparation was stopped")
                self._end(answer, error if isinstance(error, Exception) else stopped)
            elif None in self._slots:
                self._place(answer, answer.prompt.result())

    def _place(self, answer: _Answer, prompt: Embeds) -> None:
        with self._lock:
            self._queue.remove(answer)
        answer.slot = self._slots.index(None)
        self._slots[answer.slot] = answer
        answer.prompt = None  # its memory is needed no longer than the prefill takes
        answer.prompt_length = len(prompt)
        if self._may_become_long(answer):
            answer.kept_prompt = prompt
        self._start_prefill(answer, prompt)
        self._tell_reading(answer)

    def _tell_reading(self, answer: _Answer) -> None:
        """How far it is read; a caller who cannot be told ends its own answer."""
        if answer.job.on_progress is None or answer.first_token is not None:
            return
        s_per_token = self._pace.read_s
        if answer.length and answer.read_since is not None:
            s_per_token = (monotonic() - answer.read_since) / answer.length
        try:
            answer.job.on_progress(
                ReportProgress(
                    state="reading",
                    tokens_read=answer.length,
                    tokens=answer.prompt_length,
                    # with the prompts that are read before it: it is the first of all as soon as it is read itself
                    first_words_s=None if s_per_token is None else s_per_token * self._unread_up_to(answer),
                )
            )
        except Exception as error:
            answer.given_up = error

    def _unread_up_to(self, last: _Answer) -> int:
        return sum(answer.unread for answer in self._prefilling[: self._prefilling.index(last) + 1])

    def _may_become_long(self, answer: _Answer) -> bool:
        if self._long_rope is None:
            return False
        most = answer.prompt_length + answer.job.max_new_tokens
        return answer.prompt_length <= self._long_rope.after < most

    def _start_prefill(self, answer: _Answer, embeds: Embeds) -> None:
        is_long = self._long_rope is not None and len(embeds) > self._long_rope.after
        answer.shift = self._long_rope.first_row if self._long_rope and is_long else 0
        answer.pending, answer.length = embeds, 0
        self._prefilling.append(answer)

    def _prefill_chunk(self) -> bool:
        if not self._prefilling:
            return False
        answer = self._prefilling[0]
        assert answer.pending is not None
        chunk = answer.pending[answer.length : answer.length + self._chunk]
        positions = np.arange(answer.length, answer.length + len(chunk), dtype=np.int64) + answer.shift
        started = monotonic()
        if answer.read_since is None:
            answer.read_since = started
        try:
            logits = self._decoder.prefill(answer.slot, chunk, past=answer.length, position_ids=positions)
        except Exception as error:
            self._end(answer, error)
            return True
        self.counters.prefill_s += monotonic() - started
        answer.length += len(chunk)
        self._tell_reading(answer)
        if answer.length == len(answer.pending):
            self._prefilling.remove(answer)
            answer.pending = None
            self._choose_token(answer, logits)
        return True

    def _decode_step(self) -> bool:
        decoding = [answer for answer in self._slots if answer and answer.is_decoding]
        if not decoding:
            return False
        n = decoding[-1].slot + 1
        lengths, positions = np.ones(n, np.int64), np.zeros(n, np.int64)
        for answer in filter(None, self._slots[:n]):
            # Also of a slot that is being prefilled: its next chunk overwrites what this step writes there.
            lengths[answer.slot] = answer.length + 1
            positions[answer.slot] = answer.length + answer.shift
        started = monotonic()
        try:
            rows = self._embed([answer.tokens[-1] for answer in decoding])
            embeds = np.zeros((n, rows.shape[1]), rows.dtype)
            embeds[[answer.slot for answer in decoding]] = rows
            logits = self._decoder.step(embeds, lengths=lengths, position_ids=positions)
        except Exception as error:
            for answer in decoding:
                self._end(answer, error)
            return True
        self.counters.decode_s += monotonic() - started
        for answer in decoding:
            answer.length += 1
            self._choose_token(answer, logits[answer.slot])
        return True

    def _choose_token(self, answer: _Answer, logits: Logits) -> None:
        """Greedy: the same study gives the same report. Whatever fails here ends this answer alone."""
        if answer.first_token is None:
            self._note_first_token(answer)
        try:
            ending = self._extend(answer, logits)
            if ending is None and self._crosses_long_rope(answer):
                # As transformers' generate() does for Phi-3: all tokens change their factors, so all are read again.
                assert answer.kept_prompt is not None
                self._start_prefill(answer, np.concatenate([answer.kept_prompt, self._embed(answer.tokens)]))
                answer.kept_prompt = None
        except Exception as error:
            ending = error
        if ending is not None:
            self._end(answer, ending)

    def _note_first_token(self, answer: _Answer) -> None:
        assert answer.read_since is not None
        answer.first_token = monotonic()
        read_s = answer.first_token - answer.read_since
        self._pace.note(prepare_s=answer.prepare_s / answer.prompt_length, read_s=read_s / answer.prompt_length)

    def _extend(self, answer: _Answer, logits: Logits) -> Ending | None:
        job = answer.job
        allowed = job.constraint.apply(logits) if job.constraint else logits
        token = int(allowed.argmax())  # the lowest of equals, as torch.argmax
        if not np.isfinite(allowed[token]):
            raise InferenceFailed("internal error: the decoder gave no finite score for any token")
        self.counters.tokens += 1
        answer.tokens.append(token)
        if token in job.eos_token_ids:
            return "eos"
        if job.constraint:
            job.constraint.advance(token)
        job.on_token(token)
        total = answer.prompt_length + len(answer.tokens)
        is_full = len(answer.tokens) >= job.max_new_tokens or total >= self._decoder.max_length
        return "length" if is_full else None

    def _crosses_long_rope(self, answer: _Answer) -> bool:
        total = answer.prompt_length + len(answer.tokens)
        return self._long_rope is not None and answer.shift == 0 and total > self._long_rope.after

    def _end(self, answer: _Answer, ending: Ending) -> None:
        """Free what the answer holds, and tell its job."""
        with self._lock:
            if answer in self._queue:
                self._queue.remove(answer)
        if answer in self._prefilling:
            self._prefilling.remove(answer)
        if answer.slot >= 0:
            self._slots[answer.slot] = None
        if answer.prompt:
            answer.prompt.cancel()
        try:
            if not isinstance(ending, Exception):
                self._tell_timing(answer)
            answer.job.on_end(ending)
        except Exception as error:
            log.error("the end of a report could not be told: %s", type(error).__name__)

    def _tell_timing(self, answer: _Answer) -> None:
        timing, counters = answer.timing(), self.counters
        self._pace.note(decode_s=timing.decode_s)
        counters.answers += 1
        counters.answers_queue_s += timing.queue_s
        counters.answers_prompt_s += timing.prompt_s
        counters.answers_decode_s += timing.decode_s
        if answer.job.on_timing:
            answer.job.on_timing(timing)

    def _end_all(self, error: Exception) -> None:
        for answer in [*self._queue, *filter(None, self._slots)]:
            self._end(answer, error)
