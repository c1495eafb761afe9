"""The CLIP tokenizer of a checkpoint as one Rust `tokenizers` file.

The reference is the slow CLIPTokenizer of transformers 4 (`models/clip/tokenization_clip.py`): ftfy, lower case, a
regular expression that cuts text into pieces, byte-level BPE in each piece. Everything after ftfy is in the file built
here. transformers' own fast tokenizer is not the same function: it cuts a second time with the GPT-2 expression.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing

from medimage_export.errors import CheckpointError, ConfigError

START_OF_TEXT = "<|startoftext|>"
END_OF_TEXT = "<|endoftext|>"  # also the padding token and the unknown token

# White space between pieces belongs to none and is dropped. Digits stand alone.
CLIP_PIECE = r"(?i)<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
END_OF_WORD = "</w>"


def build_tokenizer(folder: Path, context_length: int) -> Tokenizer:
    """`vocab.json` and `merges.txt` of a checkpoint's tokenizer folder -> text that ftfy has fixed to token ids.

    Every encoding is `context_length` wide: start, at most `context_length - 2` tokens, end, padding with the
    end-of-text id under an attention mask of 0. `<|endoftext|>` written in the text becomes the end-of-text id, as in
    the reference. One known difference: in other letter case the reference sees a special token only where a piece
    starts, this one anywhere.

    Raises:
        CheckpointError: a file is missing, the vocabulary lacks a special token or a byte symbol, or the merges do
            not fit it.
    """
    vocabulary_path, merges_path = folder / "vocab.json", folder / "merges.txt"
    for path in (vocabulary_path, merges_path):
        if not path.is_file():
            raise CheckpointError(f"{path}: not found; a CLIP tokenizer folder holds vocab.json and merges.txt")
    vocabulary = read_vocabulary(vocabulary_path)

    try:
        model = BPE.from_file(
            str(vocabulary_path), str(merges_path), unk_token=END_OF_TEXT, end_of_word_suffix=END_OF_WORD
        )
    except Exception as error:  # the Rust side raises plain Exception
        raise CheckpointError(f"{merges_path}: the merges do not fit vocab.json: {error}") from error
    tokenizer = clip_tokenizer(model)
    tokenizer.add_special_tokens([AddedToken(token, normalized=True) for token in (START_OF_TEXT, END_OF_TEXT)])
    tokenizer.post_processor = TemplateProcessing(
        single=f"{START_OF_TEXT} $A {END_OF_TEXT}",
        special_tokens=[(token, vocabulary[token]) for token in (START_OF_TEXT, END_OF_TEXT)],
    )
    tokenizer.enable_truncation(context_length)
    tokenizer.enable_padding(length=context_length, pad_id=vocabulary[END_OF_TEXT], pad_token=END_OF_TEXT)
    return tokenizer


def clip_tokenizer(model: BPE) -> Tokenizer:
    """Lower case, CLIP's pieces and their byte symbols, then `model` in each piece; no special tokens."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(CLIP_PIECE), behavior="removed", invert=True), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return tokenizer


def read_vocabulary(path: Path) -> dict[str, int]:
    """A CLIP `vocab.json`, token -> id, complete enough that no text needs the unknown token.

    Raises:
        CheckpointError: not a JSON object of token ids, or a special token or byte symbol is missing.
    """
    try:
        vocabulary: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    missing = [token for token in (*byte_symbols(), START_OF_TEXT, END_OF_TEXT) if token not in vocabulary]
    if missing:
        raise CheckpointError(
            f"{path}: not a CLIP vocabulary, it lacks {len(missing)} of its basic tokens, e.g. {missing[:3]}"
        )
    return vocabulary


def write_byte_vocabulary(folder: Path, size: int) -> None:
    """Write a `vocab.json` and `merges.txt` that spell text byte by byte, for a model of random weights.

    The ids below 512 are the byte symbols; the special tokens have the last two of `size` ids, where CLIP has them.

    Raises:
        ConfigError: `size` leaves no room for the 512 byte symbols and 2 special tokens.
    """
    tokens = byte_symbols()
    if size < len(tokens) + 2:
        raise ConfigError(f"vocabulary size {size} is too small; {len(tokens) + 2} or more is needed")
    vocabulary = {token: id for id, token in enumerate(tokens)}
    vocabulary |= {START_OF_TEXT: size - 2, END_OF_TEXT: size - 1}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")


def byte_symbols() -> list[str]:
    """The 512 tokens that any CLIP vocabulary starts from: each byte inside a word, then each ending a word."""
    symbols = sorted(ByteLevel.alphabet())
    return symbols + [symbol + END_OF_WORD for symbol in symbols]
