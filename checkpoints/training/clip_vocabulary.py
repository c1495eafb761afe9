"""A small CLIP vocabulary learnt from captions, in the files of a published checkpoint's tokenizer folder."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from medimage_export.medimageinsight.tokenizer import (
    END_OF_TEXT,
    END_OF_WORD,
    START_OF_TEXT,
    byte_symbols,
    clip_tokenizer,
)


def write_vocabulary(folder: Path, captions: Sequence[str]) -> int:
    """Write vocab.json, merges.txt and the two settings files; returns the number of entries.

    Ids follow CLIP: the 256 bytes, the same at the end of a word, one id per merge, then start and end of text. The
    end has the highest id, by which the text encoder finds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    merges = _learn_merges(captions)
    symbols = [*byte_symbols(), *("".join(pair) for pair in merges), START_OF_TEXT, END_OF_TEXT]
    vocabulary = {symbol: id for id, symbol in enumerate(symbols)}
    _write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")

    special = {"bos_token": START_OF_TEXT} | dict.fromkeys(("eos_token", "unk_token", "pad_token"), END_OF_TEXT)
    settings = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "errors": "replace", "model_max_length": 77}
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer_config.json", settings | special)
    return len(vocabulary)


def _learn_merges(captions: Sequence[str]) -> list[tuple[str, str]]:
    """Byte pairs, most frequent first, until every word of the captions is one symbol."""
    learner = clip_tokenizer(BPE(end_of_word_suffix=END_OF_WORD))
    trainer = BpeTrainer(vocab_size=2000, end_of_word_suffix=END_OF_WORD, show_progress=False)
    learner.train_from_iterator(captions, trainer)
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
