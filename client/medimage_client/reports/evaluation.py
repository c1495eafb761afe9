"""Reports compared with reference reports: the text, the findings and their boxes.

- ROUGE-L: F-measure of the longest common subsequence of stemmed words, the mean over reports (rouge-score).
- BLEU-4: of the whole corpus, with sacrebleu's default tokenisation (13a). It and ROUGE-L are 0 to 100; a report's text
  is its findings joined by spaces.
- Finding F1: a finding is right if the reference has one of the same text, apart from case, punctuation and white
  space; each is matched once. Precision and recall over all reports.
- Box completion: precision and recall of boxes, given the finding. Findings are paired one to one, equal texts first,
  then the highest ROUGE-L of at least 0.5. A box is right if it overlaps a box of its finding's partner with an
  intersection over union of at least 0.5, boxes paired one to one. Precision is over all answered boxes, recall over
  all boxes of the references; boxes of findings without a partner are wrong, or missed.

The scores of the CXRReportGen card are laid out alike, but the code behind them is not public; that of box completion
above is this project's own reading. CheXpert F1 and RadGraph F1 need models of their own and are not computed.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

from medimage_client.errors import InvalidInput, MissingExtra
from medimage_client.reports.finding import Box, Finding

Findings = Sequence[Finding]
T = TypeVar("T")

MIN_ROUGE_L = 0.5  # of two findings that say the same in other words
MIN_IOU = 0.5
NOT_A_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Ratio:
    """Right ones out of what was answered, and out of what the reference has; 0 to 100, None if there is none."""

    n_right: int
    n_answered: int
    n_reference: int

    @property
    def precision(self) -> float | None:
        return 100 * self.n_right / self.n_answered if self.n_answered else None

    @property
    def recall(self) -> float | None:
        return 100 * self.n_right / self.n_reference if self.n_reference else None

    @property
    def f1(self) -> float | None:
        n = self.n_answered + self.n_reference
        return 200 * self.n_right / n if n else None


@dataclass(frozen=True, slots=True)
class Scores:
    n_reports: int
    rouge_l: float  # 0 to 100
    bleu_4: float  # 0 to 100
    findings: Ratio
    boxes: Ratio


def evaluate(references: Sequence[Findings], answers: Sequence[Findings]) -> Scores:
    """Scores of answers, one for each reference and in the same order.

    Raises:
        InvalidInput: no reports, or not as many of both.
        MissingExtra: rouge-score or sacrebleu is not installed.
    """
    if len(references) != len(answers) or not references:
        raise InvalidInput(f"{len(references)} references and {len(answers)} answers; expected as many, at least one")
    rouge_l, bleu_4 = load_rouge_l(), load_bleu_4()
    reference_texts, answer_texts = [*map(text_of, references)], [*map(text_of, answers)]
    pairs = list(zip(references, answers, strict=True))
    return Scores(
        n_reports=len(references),
        rouge_l=100 * sum(map(rouge_l, reference_texts, answer_texts)) / len(references),
        bleu_4=bleu_4(reference_texts, answer_texts),
        findings=Ratio(
            sum(count_equal(reference, answer) for reference, answer in pairs),
            sum(map(len, answers)),
            sum(map(len, references)),
        ),
        boxes=Ratio(
            sum(count_right_boxes(reference, answer, rouge_l) for reference, answer in pairs),
            sum(map(count_boxes, answers)),
            sum(map(count_boxes, references)),
        ),
    )


def load_rouge_l() -> Callable[[str, str], float]:
    """ROUGE-L F-measure, 0 to 1, of an answer's text against the reference's."""
    try:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]  # it has no types
    except ImportError:
        raise MissingExtra("ROUGE-L", "rouge-score", "evaluate") from None
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return lambda reference, answer: float(scorer.score(reference, answer)["rougeL"].fmeasure)


def load_bleu_4() -> Callable[[Sequence[str], Sequence[str]], float]:
    """Corpus BLEU-4, 0 to 100, of answers' texts against the references'."""
    try:
        from sacrebleu import corpus_bleu
    except ImportError:
        raise MissingExtra("BLEU-4", "sacrebleu", "evaluate") from None
    return lambda references, answers: float(corpus_bleu(answers, [references]).score)


def text_of(findings: Findings) -> str:
    return " ".join(finding.text for finding in findings)


def count_boxes(findings: Findings) -> int:
    return sum(len(finding.boxes) for finding in findings)


def normalised(text: str) -> str:
    return NOT_A_WORD.sub(" ", text.casefold()).strip()


def count_equal(reference: Findings, answer: Findings) -> int:
    texts = (Counter(normalised(finding.text) for finding in findings) for findings in (reference, answer))
    return (next(texts) & next(texts)).total()


def count_right_boxes(reference: Findings, answer: Findings, rouge_l: Callable[[str, str], float]) -> int:
    """Boxes of the answer that are right."""

    def likeness(a: Finding, b: Finding) -> float:
        return 2.0 if normalised(a.text) == normalised(b.text) else rouge_l(a.text, b.text)  # equal ones come first

    partners = match(reference, answer, likeness, MIN_ROUGE_L)
    return sum(len(match(a.boxes, b.boxes, intersection_over_union, MIN_IOU)) for a, b in partners)


def match(left: Sequence[T], right: Sequence[T], likeness: Callable[[T, T], float], least: float) -> list[tuple[T, T]]:
    """Pairs of at least this likeness, one to one: the most alike first, of equals the earlier."""
    candidates = [(likeness(left[i], right[j]), i, j) for i, j in product(range(len(left)), range(len(right)))]
    free_left, free_right = set(range(len(left))), set(range(len(right)))
    pairs = []
    for value, i, j in sorted(candidates, key=lambda candidate: -candidate[0]):
        if value >= least and i in free_left and j in free_right:
            free_left.remove(i)
            free_right.remove(j)
            pairs.append((left[i], right[j]))
    return pairs


def intersection_over_union(a: Box, b: Box) -> float:
    width = min(a.x_max, b.x_max) - max(a.x_min, b.x_min)
    height = min(a.y_max, b.y_max) - max(a.y_min, b.y_min)
    intersection = max(width, 0.0) * max(height, 0.0)
    union = area(a) + area(b) - intersection
    return round(intersection / union, 9) if union > 0 else 0.0  # half is half, on the grid of the coordinates


def area(box: Box) -> float:
    return max(box.x_max - box.x_min, 0.0) * max(box.y_max - box.y_min, 0.0)
