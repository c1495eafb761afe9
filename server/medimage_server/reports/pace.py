"""How long reports take here: measured of those before, to tell the next ones how long they will wait."""

from dataclasses import dataclass

NEWEST = 0.3  # share of the newest report in a mean: a machine that gets busier shows after a few


@dataclass
class ReportPace:
    """Running means, None before the first report. Read by several threads, written by the scheduler's."""

    prepare_s: float | None = None  # a token of the prompt, nearly all of which stand for images
    read_s: float | None = None  # a token of the prompt, beside the tokens of other reports
    decode_s: float | None = None  # a report

    def note(self, **seconds: float) -> None:
        """Take what a report has needed into the means of these names."""
        for name, newest in seconds.items():
            mean = getattr(self, name)
            setattr(self, name, newest if mean is None else mean + NEWEST * (newest - mean))

    def first_words_s(self, tokens: int, *, tokens_before: int, waits_for: int, slots: int) -> float | None:
        """Seconds until the first words of a report that has just arrived; None as long as too little is known.

        Its images are encoded while it waits. Prompts are read one after the other, and busy slots become free one
        after the other, evenly over the time that an answer takes.

        Args:
            tokens: of its prompt.
            tokens_before: of other prompts, which are read first.
            waits_for: answers that have to end before it has a slot.
            slots: that there are.
        """
        if self.prepare_s is None or self.read_s is None or (waits_for and self.decode_s is None):
            return None
        waiting = tokens_before * self.read_s + waits_for * (self.decode_s or 0.0) / slots
        return max(tokens * self.prepare_s, waiting) + tokens * self.read_s
