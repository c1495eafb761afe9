"""Constrained decoding: of the tokens, only those that keep the answer in the grammar of grounded reports.

The grammar is that of medimage_client.reports.grammar, with two restrictions of its own: a box is never inside out, and
no text holds a "<", which a text token could otherwise spell a marker with. In modes without boxes the answer is plain
text. An answer that ends by itself is thus always one that the strict parser reads.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from medimage_server.reports.settings import GenerationSettings

Mask = NDArray[np.bool_]
Logits = NDArray[np.float32]


class Grammar:
    """Which tokens may come in which place, as masks over the vocabulary. One for all requests of a model.

    Args:
        tokenizer: the one that the model was exported with.
        settings: its tokens and its ends.
        vocabulary_size: of the logits; more than the tokenizer has where the table was padded.

    Raises:
        ValueError: the tokenizer does not know a token of the grammar.
    """

    def __init__(self, tokenizer: Tokenizer, settings: GenerationSettings, vocabulary_size: int) -> None:
        tokens = settings.tokens
        self._vocabulary_size = vocabulary_size
        if tokenizer.get_vocab_size() > vocabulary_size:
            raise ValueError(f"tokenizer.json has {tokenizer.get_vocab_size()} tokens, the model {vocabulary_size}")
        self.obj_start, self.obj_end, self.box_start, self.box_end = (
            _token_id(tokenizer, token)
            for token in (tokens.obj_start, tokens.obj_end, tokens.box_start, tokens.box_end)
        )
        x_ids, y_ids = _coordinate_ids(tokenizer, tokens.x), _coordinate_ids(tokenizer, tokens.y)
        if len(x_ids) != len(y_ids):
            raise ValueError(f"tokenizer.json has {len(x_ids)} tokens {tokens.x} and {len(y_ids)} tokens {tokens.y}")
        self.coordinates = {token: index for ids in (x_ids, y_ids) for index, token in enumerate(ids)}

        ends = settings.eos_token_ids
        text = self._mask(_text_ids(tokenizer)) & ~self._mask(ends)
        self.plain = text | self._mask(ends)
        self.outside = self._mask([self.obj_start, *ends])
        self.inside = text | self._mask([self.box_start, self.obj_end])
        self.after_box = self._mask([self.box_start, self.obj_end])
        self.after_coordinates = self._mask([self.box_end])
        self.x_from = [self._mask(x_ids[least:]) for least in range(len(x_ids))]
        self.y_from = [self._mask(y_ids[least:]) for least in range(len(y_ids))]

    def _mask(self, ids: Sequence[int]) -> Mask:
        mask = np.zeros(self._vocabulary_size, dtype=np.bool_)
        mask[list(ids)] = True
        return mask


class Constraint:
    """Where one answer is in the grammar.

    Args:
        grounded: findings with boxes; otherwise plain text.
    """

    def __init__(self, grammar: Grammar, *, grounded: bool) -> None:
        self._grammar = grammar
        self._box: list[int] = []  # coordinate indices of the box that is being written
        self.allowed: Mask = grammar.outside if grounded else grammar.plain  # (V,), of the next token

    def apply(self, logits: Logits) -> Logits:
        """(V,) -> (V,), minus infinity for what may not come next."""
        return np.where(self.allowed, logits, np.float32(-np.inf))

    def advance(self, token: int) -> None:
        """Go on behind a token.

        Raises:
            ValueError: it was not allowed.
        """
        if not self.allowed[token]:
            raise ValueError(f"token {token} may not come here")
        grammar = self._grammar
        if token == grammar.obj_start:
            self.allowed = grammar.inside
        elif token == grammar.obj_end:
            self.allowed = grammar.outside
        elif token == grammar.box_start:
            self._box = []
            self.allowed = grammar.x_from[0]
        elif token == grammar.box_end:
            self.allowed = grammar.after_box
        elif token in grammar.coordinates:
            self._box.append(grammar.coordinates[token])
            self.allowed = self._after_coordinate()

    def _after_coordinate(self) -> Mask:
        match self._box:
            case [_]:
                return self._grammar.y_from[0]
            case [x_min, _]:
                return self._grammar.x_from[x_min]
            case [_, y_min, _]:
                return self._grammar.y_from[y_min]
            case _:
                return self._grammar.after_coordinates


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"tokenizer.json has no token {token}; export the model again")
    return int(found)


def _coordinate_ids(tokenizer: Tokenizer, pattern: str) -> list[int]:
    """Of all indices that the tokenizer knows, from 0 on without a gap."""
    ids = [_token_id(tokenizer, pattern.replace("{}", "0"))]
    while (found := tokenizer.token_to_id(pattern.replace("{}", str(len(ids))))) is not None:
        ids.append(found)
    return ids


def _text_ids(tokenizer: Tokenizer) -> list[int]:
    ids = sorted(set(tokenizer.get_vocab().values()) - tokenizer.get_added_tokens_decoder().keys())
    pieces = tokenizer.decode_batch([[id] for id in ids], skip_special_tokens=False)
    return [id for id, piece in zip(ids, pieces, strict=True) if "<" not in piece]
