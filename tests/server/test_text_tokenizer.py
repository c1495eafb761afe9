"""Text tokenising against the goldens of the reference and a slow tokenizer of the tests' own."""

import json
import random
from pathlib import Path
from unicodedata import ucd_3_2_0

import numpy as np
import pytest

from medimage_export.medimageinsight.tokenizer import build_tokenizer
from medimage_server.errors import InvalidInput
from medimage_server.text_tokenizer import TextTokenizer
from tests.amounts import amounts
from tests.server.slow_clip_tokenizer import END, START, SlowClipTokenizer, byte_symbols

CONTEXT_LENGTH = 77

WORDS = ["x", "ray", "chest", "pneumonia", "pneumothorax", "effusion", "no", "finding", "cardiomegaly", "œdème"]
PHRASES = [
    *("x-ray chest anteroposterior Pneumonia", "Pleural_Thickening", "T2/FLAIR 5.3 cm", "patient's", "don't", "I'LL"),
    *("\u2018smart\u2019 “quotes”", "café", "cafe\u0301", "µm", "≥", "ΟΔΟΣ", "İstanbul", "Straße", "胸部X线", "😀"),
    *("ﬁbrosis", "½", "Ⅳ", "'\u017f", "...", "!?!", "--", "_", "'"),
    *("&amp;", "&lt;b&gt;", "&eacute;", "<", "schÃ¶n", "â€œ", START, END, " <|EndOfText|> "),
    *(" ", "\t", "\n", "\r\n", "\x0b", "\x00", "\x85", "\u00a0", "\u200b", "\u2028", "\u3000", "\ufeff", "\ufffd"),
]
# of Unicode 3.2, on which Python and Rust agree whatever their versions
ASSIGNED = [chr(code) for code in range(0x20000) if ucd_3_2_0.category(chr(code)) not in ("Cn", "Cs", "Co")]
# Python's regex counts this combining mark as a letter when it ignores case, the Rust tokenizer's does not
ASSIGNED.remove("\u0345")


def generated_texts(count: int) -> list[str]:
    rng = random.Random(0)

    def piece() -> str:
        kind = rng.random()
        return rng.choice(PHRASES) if kind < 0.7 else rng.choice(WORDS) if kind < 0.85 else rng.choice(ASSIGNED)

    return [rng.choice(("", " ")).join(piece() for _ in range(rng.choice((1, 3, 10, 60)))) for _ in range(count)]


def write_vocabulary(folder: Path) -> None:
    """Byte symbols, and for each of WORDS the merges that build it from left to right."""
    symbols = byte_symbols()
    tokens = {symbol: None for symbol in symbols + [symbol + "</w>" for symbol in symbols]}
    merges = []
    for word in WORDS:
        *heads, tail = [symbols[byte] for byte in word.encode("utf-8")]
        parts = [*heads, tail + "</w>"]
        for end in range(1, len(parts)):
            merges.append(f"{''.join(parts[:end])} {parts[end]}")
            tokens["".join(parts[: end + 1])] = None
    ids = {token: id for id, token in enumerate([*tokens, START, END])}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n", encoding="utf-8")


@pytest.fixture(scope="module", params=["made-for-the-test", "published"])
def folder(request, tmp_path_factory):
    """A CLIP tokenizer folder: vocab.json and merges.txt."""
    if request.param == "published":
        return request.getfixturevalue("shared_data") / "clip_tokenizer"
    folder = tmp_path_factory.mktemp("vocabulary")
    write_vocabulary(folder)
    return folder


@pytest.fixture(scope="module")
def tokenize(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "tokenizer.json"
    build_tokenizer(folder, CONTEXT_LENGTH).save(str(path))
    return TextTokenizer.from_file(path)


@pytest.mark.parametrize("n_texts", amounts(1000, 3000))
def test_generated_texts_get_the_ids_of_the_slow_tokenizer(folder, tokenize, n_texts):
    texts = generated_texts(n_texts)
    slow = SlowClipTokenizer(folder)
    input_ids, attention_mask = tokenize([text.encode("utf-8") for text in texts])
    for text, ids, mask in zip(texts, input_ids, attention_mask, strict=True):
        expected = slow(text)
        assert ids[: len(expected)].tolist() == expected, ascii(text)
        assert (ids[len(expected) :] == slow.ids[END]).all()
        assert mask.tolist() == [1] * len(expected) + [0] * (CONTEXT_LENGTH - len(expected))


def test_published_vocabulary_gives_the_recorded_ids(shared_data, tmp_path):
    path = tmp_path / "tokenizer.json"
    build_tokenizer(shared_data / "clip_tokenizer", CONTEXT_LENGTH).save(str(path))
    goldens = json.loads((shared_data / "clip_tokenizer_goldens.json").read_text(encoding="utf-8"))
    input_ids, attention_mask = TextTokenizer.from_file(path)([text.encode("utf-8") for text in goldens])
    for golden, ids, mask in zip(goldens.values(), input_ids, attention_mask, strict=True):
        assert ids.tolist() == golden["ids"] + [golden["pad"]] * (CONTEXT_LENGTH - golden["n"])
        assert mask.sum() == golden["n"]
        assert ids.argmax() == golden["argmax"]  # where the text encoder reads its answer


def test_batch_gives_contiguous_int64_arrays_in_request_order(tokenize):
    input_ids, attention_mask = tokenize([b"chest", b"", b"effusion"])
    for array in (input_ids, attention_mask):
        assert array.shape == (3, CONTEXT_LENGTH)
        assert array.dtype == np.int64
        assert array.flags.c_contiguous
    for row, text in enumerate([b"chest", b"", b"effusion"]):
        np.testing.assert_array_equal(input_ids[row], tokenize([text])[0][0])


def test_text_over_the_context_length_keeps_its_end_token(folder, tokenize):
    input_ids, attention_mask = tokenize([b"chest " * 500])
    assert input_ids[0, -1] == SlowClipTokenizer(folder).ids[END]
    assert attention_mask.all()


def test_invalid_utf8_is_refused_with_row_and_offset_only(tokenize):
    with pytest.raises(InvalidInput) as caught:
        tokenize([b"chest", b"patient \xff name"])
    assert str(caught.value) == "row 1: text is not valid UTF-8 (byte offset 8)"


def test_missing_tokenizer_file_names_the_export(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: not found; run `medimage export medimageinsight`"):
        TextTokenizer.from_file(tmp_path / "tokenizer.json")
