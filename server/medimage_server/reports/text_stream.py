"""Token ids to text as they come."""

import re

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")  # how Llama's tokenizer writes a character that it has no token for


class TextStream:
    """The text of one answer in deltas, whose concatenation is the decoded answer without its leading white space.

    Markers and coordinates are kept as text; special tokens, such as the end, are left out. A character whose bytes are
    not complete yet is held back until they are.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream()
        added = tokenizer.get_added_tokens_decoder()
        self._silent = {token for token, content in added.items() if content.special}
        self._tokens: list[int] = []
        self._held: list[int] = []  # a run of byte tokens
        self.text = ""

    def feed(self, token: int) -> str:
        """The text that a token completes; "" if none."""
        if token in self._silent:
            return ""
        self._tokens.append(token)
        self._held.append(token)
        # A run of byte tokens is decoded as a whole: one that is no UTF-8 turns its neighbours to U+FFFD as well, and
        # DecodeStream raises when text that it gave out changes.
        if BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(token) or ""):
            return ""
        run, self._held = self._held, []
        return self._give(self._stream.step(self._tokenizer, run) or "")

    def finish(self) -> str:
        """What was held back at the end, with U+FFFD for what never became a character."""
        whole = self._tokenizer.decode(self._tokens, skip_special_tokens=False).lstrip()
        return self._give(whole[len(self.text) :])

    def _give(self, delta: str) -> str:
        if not self.text:
            delta = delta.lstrip()
        self.text += delta
        return delta
