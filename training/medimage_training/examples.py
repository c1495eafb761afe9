"""Images with their labels and texts: from Azure's TSV files, or from a table with paths.

An image TSV has no header: an id and the base64 of an image file. A text TSV has the same id and JSON, of which
`class_id`, the line of the label file, from 0, and `class_name`, the text, are read. A table, .csv or .parquet, has the
columns `image`, a path that starts at the table's folder, and `label`; `text`, if the text is another than the label;
and `patient`, which may not be in two sets. An image of a table is its own id.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medimage_client.errors import InvalidInput
from medimage_client.images.base64_text import decode_base64
from medimage_client.images.encoding import encode_image
from medimage_client.labels.predictions import read_columns, read_names
from medimage_client.schema.json_text import parse_json
from medimage_training.config import Files


@dataclass(frozen=True, slots=True)
class Example:
    """One image. Its bytes are read when they are asked for: a set may be larger than the memory."""

    id: str
    label: str  # what it is of; equal labels are positives of each other
    text: str
    place: str  # as `train.tsv, row 3`, for messages
    file: Path  # an image, or the TSV file that holds it
    span: tuple[int, int] | None = None  # first byte of the base64 in the TSV file, and how many there are
    patient: str | None = None

    def read(self) -> bytes:
        """The content of an image file; a DICOM file as PNG.

        Raises:
            InvalidInput: there is no such file, or it is not base64.
        """
        try:
            if self.span is None:
                return encode_image(self.file, advise_window=False)
            with self.file.open("rb") as tsv:
                tsv.seek(self.span[0])
                return decode_base64(tsv.read(self.span[1]))
        except InvalidInput as error:
            raise error.at(place=self.place) from None
        except ValueError:
            raise InvalidInput("the second column is not base64 of an image", place=self.place) from None
        except OSError as error:
            raise InvalidInput(f"cannot read {self.file}: {error.strerror}", place=self.place) from None


def read_labels(path: Path) -> list[str]:
    """The lines of a label file; the class id is the line's number, from 0.

    Raises:
        InvalidInput: it is not UTF-8 text, has no lines, an empty one before the last, or one twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not UTF-8 text") from None
    if not lines:
        raise InvalidInput(f"{path} has no labels; expected one a line")
    first: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            raise InvalidInput(f"{path}, row {number}: is empty; expected a label, since the row is the class id")
        if line in first:
            raise InvalidInput(f"{path}, rows {first[line]} and {number}: are the same label; keep one of them")
        first[line] = number
    return lines


def read_examples(files: Files, labels: Sequence[str] | None, what: str) -> list[Example]:
    """Every image of the files, in their order.

    Args:
        labels: of the label file, if there is one.
        what: the examples are for, as `training`, for messages.

    Raises:
        InvalidInput: names the file and the row at fault.
    """
    if files.table is not None and (files.image_tsv or files.text_tsv):
        raise InvalidInput(f"{what} has a table and TSV files; expected one of the two")
    if files.table is not None:
        return read_table(files.table, labels)
    if files.image_tsv is None or files.text_tsv is None:
        missing = "images, image_tsv" if files.image_tsv is None else "texts, text_tsv"
        raise InvalidInput(f"{what} has no {missing}; expected image_tsv and text_tsv, or a table")
    return read_tsv(files.image_tsv, files.text_tsv, labels)


def read_table(path: Path, labels: Sequence[str] | None) -> list[Example]:
    columns = read_columns(path, needed=["image", "label"])
    images, of_images = read_names(path, columns, "image"), read_names(path, columns, "label")
    texts = read_names(path, columns, "text") if "text" in columns else of_images
    patients = read_names(path, columns, "patient") if "patient" in columns else [None] * len(images)
    examples: list[Example] = []
    rows: dict[str, int] = {}
    for row, (image, label, text, patient) in enumerate(zip(images, of_images, texts, patients, strict=True), start=1):
        file, place = path.parent / image, f"{path}, row {row}"
        if str(file) in rows:
            raise InvalidInput(f"{path}, rows {rows[str(file)]} and {row}: have the same image; give each once")
        rows[str(file)] = row
        if labels is not None and label not in labels:
            raise InvalidInput(f"{place}: the label {label!r} is not in the label file; add it there")
        examples.append(Example(str(file), label, text, place, file, patient=patient))
    return examples


def read_tsv(images: Path, texts: Path, labels: Sequence[str] | None) -> list[Example]:
    captions = read_captions(texts, labels)
    spans = read_spans(images)
    without = [name for name in spans if name not in captions]
    if without:
        raise InvalidInput(
            f"{images}, row {spans[without[0]][0]}: the image has no row in {texts}, as {len(without) - 1} more have "
            "none; add their texts, or remove the images"
        )
    unused = len(captions) - len(spans)
    if unused:
        missing = next(name for name in captions if name not in spans)
        raise InvalidInput(
            f"{texts}, row {captions[missing][2]}: the text has no image in {images}, as {unused - 1} more have none; "
            "add the images, or remove the texts"
        )
    return [
        Example(name, *captions[name][:2], f"{images}, row {row}", images, span) for name, (row, span) in spans.items()
    ]


def read_spans(path: Path) -> dict[str, tuple[int, tuple[int, int]]]:
    """Of each id its row, from 1, and where the base64 of its image lies."""
    found: dict[str, tuple[int, tuple[int, int]]] = {}
    for row, start, line in rows_of(path):
        name, separator, content = line.rstrip(b"\r\n").partition(b"\t")
        if not separator:
            raise InvalidInput(f"{path}, row {row}: has one column; expected an id, a tab and base64 of an image")
        id = read_id(name, path, row)
        if id in found:
            raise InvalidInput(f"{path}, rows {found[id][0]} and {row}: have the same id {id!r}; give each image once")
        found[id] = row, (start + len(name) + 1, len(content))
    return found


def read_captions(path: Path, labels: Sequence[str] | None) -> dict[str, tuple[str, str, int]]:
    """Of each id its label, its text and its row."""
    found: dict[str, tuple[str, str, int]] = {}
    for row, _, line in rows_of(path):
        place = f"{path}, row {row}"
        name, separator, content = line.rstrip(b"\r\n").partition(b"\t")
        if not separator:
            raise InvalidInput(f"{place}: has one column; expected an id, a tab and JSON")
        id = read_id(name, path, row)
        if id in found:
            raise InvalidInput(f"{path}, rows {found[id][2]} and {row}: have the same id {id!r}; give each text once")
        try:
            said = parse_json(unquoted(content))
        except InvalidInput as error:
            raise error.at(place=place) from None
        text, number = (said.get("class_name"), said.get("class_id")) if isinstance(said, dict) else (None, None)
        if not isinstance(text, str) or not text or type(number) is not int:
            raise InvalidInput(f'{place}: expected JSON as {{"class_id": 0, "class_name": "x-ray chest …"}}')
        found[id] = label_of(number, text, labels, place), text, row
    return found


def label_of(number: int, text: str, labels: Sequence[str] | None, place: str) -> str:
    """The label file's line; a text that is another of its lines shows that the file does not belong to it."""
    if labels is None:
        return text
    if not 0 <= number < len(labels):
        raise InvalidInput(f"{place}: class_id is {number}; the label file has the ids 0 to {len(labels) - 1}")
    if text != labels[number] and text in labels:
        raise InvalidInput(
            f"{place}: class_id is {number}, which the label file calls {labels[number]!r}, and class_name is "
            f"{text!r}, its id {labels.index(text)}; expected the id of the line, from 0"
        )
    return labels[number]


def rows_of(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Of each line its row, from 1, its first byte and itself, one after the other."""
    try:
        with path.open("rb") as lines:
            start, row = 0, 0
            for line in lines:
                row += 1
                if line.strip():
                    yield row, start, line
                start += len(line)
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from None
    if not row:
        raise InvalidInput(f"{path} is empty; expected a row for each image")


def read_id(cell: bytes, path: Path, row: int) -> str:
    try:
        return unquoted(cell).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidInput(f"{path}, row {row}: the id is not UTF-8 text") from None


def unquoted(cell: bytes) -> bytes:
    """Without the quotes that CSV writers put around a cell that has some itself."""
    if not (cell.startswith(b'"') and cell.endswith(b'"') and len(cell) > 1):
        return cell
    return next(csv.reader([cell.decode("utf-8", "surrogateescape")]))[0].encode("utf-8", "surrogateescape")


def warnings_of(examples: Sequence[Example], labels: Sequence[str] | None) -> list[str]:
    """What is odd about a training set, a line each: labels without an image, and those with one alone."""
    counts = Counter(example.label for example in examples)
    lines = []
    unseen = [label for label in labels or () if label not in counts]
    if unseen:
        lines.append(
            f"{len(unseen)} of {len(labels or ())} labels have no training image, the first is {unseen[0]!r}: they "
            "stay as the checkpoint knows them; remove them from the label file, or add images"
        )
    single = [label for label, count in counts.items() if count == 1]
    if single:
        lines.append(
            f"{len(single)} of {len(counts)} labels have one training image, the first is {single[0]!r}: one image "
            "teaches little; add more"
        )
    return lines


def check_apart(training: Sequence[Example], other: Sequence[Example], name: str) -> None:
    """Refuse an evaluation of what was trained on.

    Raises:
        InvalidInput: an image or a patient is in both sets.
    """
    for what, of in (("image", "id"), ("patient", "patient")):
        seen = {getattr(example, of): example.place for example in training if getattr(example, of) is not None}
        shared = [example for example in other if getattr(example, of) in seen]
        if shared:
            raise InvalidInput(
                f"{shared[0].place}: its {what} is in the training set, too ({seen[getattr(shared[0], of)]}), as are "
                f"{len(shared) - 1} more of {name}: scores would be too high; keep each {what} in one set"
            )
