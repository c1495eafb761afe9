"""Tokens and images to the rows that the decoder reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimage_server.exported import exported_file

Embeds = NDArray[Any]  # (tokens, H) float32 or float16, as the decoder takes it


class TokenEmbedding:
    """The token embeddings of an exported model, read from disk row by row as they are asked for.

    Args:
        path: embed_tokens.npy, (V, H) float32 or float16.
        dtype: of the decoder's input.

    Raises:
        FileNotFoundError: the model was not exported yet.
        ValueError: the file is no such table.
    """

    def __init__(self, path: Path, dtype: Any) -> None:
        self._table = np.load(exported_file(path, "cxrreportgen"), mmap_mode="r")
        if self._table.ndim != 2 or self._table.dtype not in (np.float32, np.float16):
            raise ValueError(f"{path}: is {self._table.dtype} {list(self._table.shape)}; expected floats (V, H)")
        self.vocabulary_size, self.hidden_size = self._table.shape
        self._dtype = dtype

    def __call__(self, token_ids: Sequence[int]) -> Embeds:
        """n token ids -> (n, H)."""
        return np.asarray(self._table[np.asarray(token_ids, dtype=np.int64)], self._dtype)

    def with_images(self, token_ids: Sequence[int], positions: Sequence[int], images: NDArray[np.float32]) -> Embeds:
        """A prompt, each of its image tokens replaced by the rows of an image.

        Args:
            token_ids: the prompt, one token for each image.
            positions: of these in token_ids, in the order of the images.
            images: (n, tokens per image, H).

        Returns:
            (prompt + n * (tokens per image - 1), H).
        """
        n_images, per_image, _ = images.shape
        embeds = np.empty((len(token_ids) + n_images * (per_image - 1), self.hidden_size), self._dtype)
        start, row = 0, 0
        for position, image in zip(positions, images, strict=True):
            text = self(token_ids[start:position])
            embeds[row : row + len(text)] = text
            row += len(text)
            embeds[row : row + per_image] = image
            row += per_image
            start = position + 1
        embeds[row:] = self(token_ids[start:])
        return embeds
