"""The text that CXRReportGen and MAIRA-2 write, read whole or as it comes.

    output := plain text, with none of the four markers
            | obj+                                    with nothing between them
    obj    := "<obj>" text box* "</obj>"
    box    := "<box><x{i}><y{j}><x{k}><y{l}></box>"   x_min, y_min, x_max, y_max; 0 to 99

A coordinate is the middle of one of 100 bins: (index + 0.5) / 100, a fraction of the square that the model saw.

Reading follows MAIRA-2's own processor (`convert_output_to_plaintext_or_grounded_sequence`) to the letter, also where
it is lenient: what surrounds four good coordinates inside a box is ignored, and a box may be inside out. Of a text that
the processor refuses, every complete obj is kept, and it is said that there was something else.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

Box4 = tuple[float, float, float, float]  # x_min, y_min, x_max, y_max
ParsedFinding = tuple[str, list[Box4] | None]  # its text, and its boxes where it has any

OBJ_START, OBJ_END = "<obj>", "</obj>"
BOX_START, BOX_END = "<box>", "</box>"
MARKERS = (OBJ_START, OBJ_END, BOX_START, BOX_END)
COORDINATES = re.compile(r"<x(\d+?)><y(\d+?)><x(\d+?)><y(\d+?)>")
BINS = 100


@dataclass(frozen=True)
class Parsed:
    findings: list[ParsedFinding] = field(repr=False)
    malformed: bool  # something had to be dropped, or was not of the grammar


def parse_tolerant(text: str) -> Parsed:
    """The complete findings of any text; never raises. A plain text is one finding without boxes, an empty one none.

    `malformed` is true exactly for what MAIRA-2's own processor refuses.
    """
    parser = FindingParser()
    findings = parser.feed(text)
    findings += parser.finish()
    return Parsed(findings, malformed=parser.problem is not None)


def to_output(findings: Sequence[ParsedFinding]) -> str:
    """The JSON text of the `output` tensor: `[[text, null | [[x_min, y_min, x_max, y_max], …]], …]`."""
    return json.dumps(findings, ensure_ascii=False)


class FindingParser:
    """Tolerant reading of a text that comes in pieces, cut anywhere."""

    def __init__(self) -> None:
        self.is_grounded = False  # a marker was seen
        self.problem: str | None = None  # the first thing that is not of the grammar
        self._n_findings = 0
        self._rest = ""  # what no finding was made of yet

    def feed(self, piece: str) -> list[ParsedFinding]:
        """The findings that this piece completes."""
        self._rest += piece
        findings = []
        while (start := self._rest.find(OBJ_START)) >= 0 and (end := self._rest.find(OBJ_END, start)) >= 0:
            before, content = self._rest[:start], self._rest[start + len(OBJ_START) : end]
            self._rest = self._rest[end + len(OBJ_END) :]
            if before if self._n_findings else before.strip():  # white space alone may come before the first
                self._note("text before it")
            self.is_grounded = True
            findings.append(self._read_finding(content))
            self._n_findings += 1
        return findings

    def finish(self) -> list[ParsedFinding]:
        """The findings that are known only at the end of the text: the one that a plain text is."""
        rest, self._rest = self._rest.strip(), ""
        self.is_grounded |= any(marker in rest for marker in MARKERS)
        if not rest:
            return []
        if not self.is_grounded:
            return [(rest, None)]
        self._note("unfinished" if rest.startswith(OBJ_START) else "text in its place")
        return []

    def _read_finding(self, content: str) -> ParsedFinding:
        """The content of an obj, without what is not of the grammar."""
        start = content.find(BOX_START)
        if start >= 0:
            return content[:start].strip(), self._read_boxes(content[start:]) or None
        if BOX_END not in content:
            return content.lstrip(), None
        self._note(f"{BOX_END} without {BOX_START}")
        return content.partition(BOX_END)[0].strip(), None

    def _read_boxes(self, rest: str) -> list[Box4]:
        boxes = []
        while rest:
            before, start, rest = rest.partition(BOX_START)
            if before:
                self._note("text after a box")
            if not start:
                break
            content, end, rest = rest.partition(BOX_END)
            box = read_box(content)
            if not end:
                self._note("unfinished box")
            elif box is None:
                self._note("box without four coordinates of 0 to 99")
            else:
                boxes.append(box)
        return boxes

    def _note(self, problem: str) -> None:
        self.problem = self.problem or f"finding {self._n_findings + 1}: {problem}"


def read_box(content: str) -> Box4 | None:
    """What stands between `<box>` and `</box>`; None if that is no box."""
    match = COORDINATES.search(content)
    if match is None:
        return None
    try:
        x_min, y_min, x_max, y_max = ((int(index) + 0.5) / BINS for index in match.groups())
    except (ValueError, OverflowError):  # of more digits than Python reads, or than a float holds
        return None
    box = x_min, y_min, x_max, y_max
    return box if max(box) <= 1 else None
