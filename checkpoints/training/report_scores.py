"""How well reports of the phantom model agree with what was drawn."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from checkpoints.training.report_decoder import StudyFeatures, embed, prompt_ids
from checkpoints.training.report_texts import COORDINATES, END, TOKENS, report_prompt
from medimage_export.cxrreportgen.image_encoder import Projector
from medimage_export.phantoms.chest_study import DrawnFinding
from medimage_export.phantoms.shapes import Box

MAX_NEW_TOKENS = 200
SAME_BOX = 0.5  # intersection over union from which on two boxes are the same
OBJ = re.compile(r"<obj>([^<]*)((?:<box>(?:<[xy]\d+>){4}</box>)*)</obj>")
BOX = re.compile(r"<x(\d+)><y(\d+)><x(\d+)><y(\d+)>")


@dataclass(frozen=True)
class Scores:
    """All counted over all studies together; a box is right if a drawn one of the same sentence is the same box."""

    f1: float  # of sentences, letter by letter
    positive_f1: float  # the same of findings that have a box
    box_recall: float
    box_precision: float

    def __str__(self) -> str:
        return (
            f"F1 {self.f1:.3f}, of positive findings {self.positive_f1:.3f}; "
            f"box recall {self.box_recall:.3f}, precision {self.box_precision:.3f}"
        )


@torch.no_grad()
def write_reports(
    projector: Projector,
    decoder: PreTrainedModel,
    tokenizer: Tokenizer,
    examples: StudyFeatures,
    *,
    with_lateral: bool,
) -> list[str]:
    """Grounded reports, decoded greedily with a KV cache; studies with equally long prompts go together."""
    tokens_per_image = examples.frontal.shape[1]
    prompts = [
        prompt_ids(tokenizer, report_prompt(study, with_lateral=with_lateral), tokens_per_image)
        for study in examples.studies
    ]
    by_length: dict[int, list[int]] = {}
    for row, ids in enumerate(prompts):
        by_length.setdefault(len(ids), []).append(row)
    reports = [""] * len(prompts)
    views = [examples.frontal, examples.lateral] if with_lateral else [examples.frontal]
    image, end = tokenizer.token_to_id(TOKENS.image), tokenizer.token_to_id(END)
    for rows in by_length.values():
        ids = torch.tensor([prompts[row] for row in rows])
        embeds = embed(projector, decoder, ids, [view[rows] for view in views], image)
        written = decoder.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        ).tolist()
        for row, answer in zip(rows, written, strict=True):
            reports[row] = tokenizer.decode(answer[: answer.index(end)] if end in answer else answer)
    return reports


def read_report(report: str) -> list[DrawnFinding]:
    """The complete findings of a grounded report."""
    return [
        DrawnFinding(sentence, tuple(tuple((int(i) + 0.5) / COORDINATES for i in box) for box in BOX.findall(boxes)))
        for sentence, boxes in OBJ.findall(report)
    ]


def score(written: Sequence[Sequence[DrawnFinding]], drawn: Sequence[Sequence[DrawnFinding]]) -> Scores:
    pairs = list(zip(written, drawn, strict=True))
    boxes_right = sum(_same_boxes(ours, theirs) for ours, theirs in pairs)
    n_written, n_drawn = (sum(len(f.boxes) for row in side for f in row) for side in (written, drawn))
    return Scores(
        f1=_f1([(_sentences(ours), _sentences(theirs)) for ours, theirs in pairs]),
        positive_f1=_f1([(_sentences(ours, boxed=True), _sentences(theirs, boxed=True)) for ours, theirs in pairs]),
        box_recall=boxes_right / max(n_drawn, 1),
        box_precision=boxes_right / max(n_written, 1),
    )


def intersection_over_union(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0.0) * max(height, 0.0)
    area_a, area_b = ((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b))
    return overlap / (area_a + area_b - overlap)


def _sentences(findings: Sequence[DrawnFinding], *, boxed: bool = False) -> Counter[str]:
    return Counter(finding.sentence for finding in findings if finding.boxes or not boxed)


def _f1(pairs: Sequence[tuple[Counter[str], Counter[str]]]) -> float:
    right = sum((ours & theirs).total() for ours, theirs in pairs)
    return 2 * right / max(sum(ours.total() + theirs.total() for ours, theirs in pairs), 1)


def _same_boxes(written: Sequence[DrawnFinding], drawn: Sequence[DrawnFinding]) -> int:
    """Each drawn box counts once."""
    right = 0
    for sentence, boxes in drawn:
        guesses = [box for finding in written if finding.sentence == sentence for box in finding.boxes]
        for box in boxes:
            match = next((guess for guess in guesses if intersection_over_union(guess, box) >= SAME_BOX), None)
            if match is not None:
                guesses.remove(match)
                right += 1
    return right
