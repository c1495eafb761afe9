"""What the report generator does, on Triton's /metrics."""

from dataclasses import astuple
from time import monotonic
from typing import Any

from medimage_server.reports.periodic import Periodic
from medimage_server.reports.scheduler import Scheduler

PERIOD_S = 1.0  # less than any scrape interval; also what tokens_per_second is a mean over

COUNTERS = {
    "medimage_report_tokens_total": "Tokens generated, end tokens included",
    "medimage_report_prefill_seconds_total": "Seconds in which the decoder read prompts",
    "medimage_report_decode_seconds_total": "Seconds in which the decoder generated tokens",
    "medimage_report_answers_total": "Reports that ended by themselves or were cut",
    "medimage_report_answers_queue_seconds_total": "Of these, seconds before the first token without work for them",
    "medimage_report_answers_prompt_seconds_total": "Of these, seconds in which images were encoded and prompts read",
    "medimage_report_answers_decode_seconds_total": "Of these, seconds from the first token to the last",
}
GAUGES = {
    "medimage_report_live_slots": "Reports that hold a slot of the decoder now",
    "medimage_report_queue_length": "Reports that were accepted and have no slot yet",
    "medimage_report_tokens_per_second": "Tokens generated over the last second, all reports together",
}


class ReportMetrics:
    """Reports a scheduler's numbers each second, until closed.

    Args:
        pb_utils: the module triton_python_backend_utils, which there is only inside Triton.
        labels: of every metric, such as the model instance.
    """

    def __init__(self, pb_utils: Any, scheduler: Scheduler, labels: dict[str, str]) -> None:
        self._scheduler = scheduler
        kinds = {name: pb_utils.MetricFamily.COUNTER for name in COUNTERS}
        kinds |= {name: pb_utils.MetricFamily.GAUGE for name in GAUGES}
        # a metric ends with its family, so both are kept
        self._families = {
            name: pb_utils.MetricFamily(name=name, description=(COUNTERS | GAUGES)[name], kind=kind)
            for name, kind in kinds.items()
        }
        self._metrics = {name: family.Metric(labels=labels) for name, family in self._families.items()}
        self._last = dict.fromkeys(COUNTERS, 0.0)
        self._last_time = monotonic()
        self._reporter = Periodic("metrics", PERIOD_S, self._report)

    def close(self) -> None:
        self._reporter.close()

    def _report(self) -> None:
        totals = dict(zip(COUNTERS, astuple(self._scheduler.counters), strict=True))
        gained = {name: total - self._last[name] for name, total in totals.items()}
        now = monotonic()
        tokens_per_second = gained["medimage_report_tokens_total"] / (now - self._last_time)
        self._last, self._last_time = totals, now
        for name, gain in gained.items():
            self._metrics[name].increment(gain)
        gauges = (self._scheduler.live_slots, self._scheduler.queue_length, tokens_per_second)
        for name, value in zip(GAUGES, gauges, strict=True):
            self._metrics[name].set(value)
