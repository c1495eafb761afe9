"""Report text and labels to token ids, as the reference slow CLIP tokenizer gives them."""

import re
from collections.abc import Sequence
from pathlib import Path

import ftfy
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from medimage_server.errors import InvalidInput
from medimage_server.exported import exported_file

Ids = NDArray[np.int64]


class TextTokenizer:
    """ftfy, then the Rust tokenizer that the export wrote, which also truncates and pads to its context length."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        special_tokens = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        self._special_token = re.compile("(" + "|".join(map(re.escape, special_tokens)) + ")")

    @classmethod
    def from_file(cls, path: Path) -> "TextTokenizer":
        """Read a `tokenizer.json`.

        Raises:
            FileNotFoundError: the model was not exported yet.
        """
        return cls(Tokenizer.from_file(str(exported_file(path, "medimageinsight"))))

    def __call__(self, texts: Sequence[bytes]) -> tuple[Ids, Ids]:
        """n UTF-8 texts -> `input_ids`, `attention_mask`, each (n, context length) int64.

        An empty text is valid: start and end of text.

        Raises:
            InvalidInput: a text is not UTF-8; names its row.
        """
        encodings = self._tokenizer.encode_batch_fast(
            [self._clean(decode(text, row)) for row, text in enumerate(texts)]
        )
        input_ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
        attention_mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
        return input_ids, attention_mask

    def _clean(self, text: str) -> str:
        # The reference cuts out special tokens first: their "<" would keep ftfy from unescaping "&amp;" elsewhere.
        # str.lower() and not the Rust tokenizer's alone, which does not know the Greek final sigma.
        return "".join(ftfy.fix_text(part).lower() for part in self._special_token.split(text))


def decode(text: bytes, row: int) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        # from None: the original error holds the whole text
        raise InvalidInput(f"text is not valid UTF-8 (byte offset {error.start})", row=row) from None
