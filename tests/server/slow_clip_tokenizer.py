"""The reference to compare with: the slow CLIP tokenizer, rewritten from its description in the plainest way."""

import json
from itertools import pairwise
from pathlib import Path

import ftfy
import regex

START, END = "<|startoftext|>", "<|endoftext|>"
PIECE = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


def byte_symbols() -> list[str]:
    """The symbol of each byte: printable Latin-1 stands for itself, the other bytes for what follows U+00FF."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


class SlowClipTokenizer:
    def __init__(self, folder: Path) -> None:
        self.ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        merges = (folder / "merges.txt").read_text(encoding="utf-8").strip().split("\n")[1:]
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self.symbols = byte_symbols()

    def __call__(self, text: str, context_length: int = 77) -> list[int]:
        """Ids without padding."""
        tokens = []
        for part in regex.split(r"(<\|startoftext\|>|<\|endoftext\|>)", text):
            for piece in PIECE.findall(ftfy.fix_text(part).lower()):
                tokens += [piece] if piece in (START, END) else self.spell(piece)
        return [self.ids[token] for token in [START, *tokens[: context_length - 2], END]]

    def spell(self, piece: str) -> list[str]:
        word = [self.symbols[byte] for byte in piece.encode("utf-8")]
        word[-1] += "</w>"
        while True:
            pairs = [pair for pair in pairwise(word) if pair in self.ranks]
            if not pairs:
                return word
            word = merge(word, min(pairs, key=self.ranks.__getitem__))


def merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged, position = [], 0
    while position < len(word):
        if tuple(word[position : position + 2]) == pair:
            merged.append(pair[0] + pair[1])
            position += 2
        else:
            merged.append(word[position])
            position += 1
    return merged
