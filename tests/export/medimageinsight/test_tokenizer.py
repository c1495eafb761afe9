"""The exported tokenizer file: complete, from the folder's own ids, and strict about the folder."""

import json

import ftfy
import pytest
from tokenizers import Tokenizer

from medimage_export.errors import CheckpointError, ConfigError
from medimage_export.medimageinsight.tokenizer import build_tokenizer, write_byte_vocabulary


@pytest.fixture
def folder(tmp_path):
    write_byte_vocabulary(tmp_path, 600)
    return tmp_path


def test_published_vocabulary_gives_the_recorded_ids(shared_data):
    tokenizer = build_tokenizer(shared_data / "clip_tokenizer", 77)
    goldens = json.loads((shared_data / "clip_tokenizer_goldens.json").read_text(encoding="utf-8"))
    for text, golden in goldens.items():
        encoding = tokenizer.encode(ftfy.fix_text(text))
        assert encoding.ids == golden["ids"] + [golden["pad"]] * (77 - golden["n"])
        assert sum(encoding.attention_mask) == golden["n"]


def test_saved_file_alone_truncates_and_pads_to_the_context_length(folder, tmp_path):
    build_tokenizer(folder, 12).save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    short, long = tokenizer.encode_batch(["CT", "c" * 50])
    # CLIP numbers "!" 0, "c" 66, and a word's last symbol 256 more; the special tokens come last
    assert short.ids == [598, 66, 83 + 256, *[599] * 9]
    assert short.attention_mask == [1] * 4 + [0] * 8
    assert long.ids == [598, *[66] * 10, 599]
    assert long.attention_mask == [1] * 12


@pytest.mark.parametrize("text", ["<|endoftext|>", "<|EndOfText|>"])
def test_special_token_written_in_the_text_gets_its_id(folder, text):
    assert build_tokenizer(folder, 8).encode(f"{text} c").ids[:4] == [598, 599, 66 + 256, 599]


def test_byte_vocabulary_puts_special_tokens_at_the_end_of_the_requested_size(folder):
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    assert len(ids) == 514
    assert (ids["<|startoftext|>"], ids["<|endoftext|>"]) == (598, 599)


def test_byte_vocabulary_without_room_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="vocabulary size 513 is too small; 514 or more"):
        write_byte_vocabulary(tmp_path, 513)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_missing_file_is_refused_by_name(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: not found"):
        build_tokenizer(folder, 77)


def test_vocabulary_without_a_special_token_is_refused_by_name(folder):
    path = folder / "vocab.json"
    ids = json.loads(path.read_text(encoding="utf-8"))
    del ids["<|endoftext|>"]
    path.write_text(json.dumps(ids), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"lacks 1 of its basic tokens, e\.g\. \['<\|endoftext\|>'\]"):
        build_tokenizer(folder, 77)


def test_merges_of_another_vocabulary_are_refused(folder):
    (folder / "merges.txt").write_text("#version: 0.2\nc h\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"merges do not fit vocab\.json"):
        build_tokenizer(folder, 77)


def test_vocabulary_that_is_not_json_is_refused(folder):
    (folder / "vocab.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"vocab\.json: not valid JSON"):
        build_tokenizer(folder, 77)
