"""The tokenizer of a report checkpoint, and one for random weights."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from medimage_export.cxrreportgen.config import CXRReportGenConfig, TokenStrings
from medimage_export.errors import CheckpointError

COORDINATES = range(100)  # of either axis, see the box grammar


def read_tokenizer(path: Path, config: CXRReportGenConfig) -> Tokenizer:
    """A checkpoint's `tokenizer.json`.

    Raises:
        CheckpointError: it is none, lacks a token of the output grammar, or has an id that the decoder lacks.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as exc:  # the Rust side raises plain Exception
        raise CheckpointError(f"{path}: not a tokenizer of the tokenizers library: {exc}") from exc
    _check_vocabulary(tokenizer, config, path)
    return tokenizer


def byte_tokenizer(config: CXRReportGenConfig) -> Tokenizer:
    """Spells text byte by byte, with the tokens of the grammar and as many others as the decoder has rows."""
    special = ["<unk>", "<s>", "</s>"]
    added = _added_tokens(config.tokens)
    symbols = [*special, *sorted(ByteLevel.alphabet())]
    symbols += [f"unused{i}" for i in range(config.decoder.vocab_size - len(symbols) - len(added))]
    tokenizer = Tokenizer(BPE({symbol: id for id, symbol in enumerate([*symbols, *added])}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def _check_vocabulary(tokenizer: Tokenizer, config: CXRReportGenConfig, path: Path) -> None:
    """Raise CheckpointError unless the tokenizer has every token of the grammar and no id that the decoder lacks."""
    missing = [token for token in _added_tokens(config.tokens) if tokenizer.token_to_id(token) is None]
    if missing:
        raise CheckpointError(f"{path}: lacks {len(missing)} tokens of the output grammar, e.g. {missing[:5]}")
    highest, rows = max(tokenizer.get_vocab().values()), config.decoder.vocab_size
    if max(highest, *config.eos_token_ids) >= rows:
        raise CheckpointError(
            f"{path}: has ids up to {highest}, and the end is {list(config.eos_token_ids)}; the decoder has {rows} rows"
        )


def _added_tokens(tokens: TokenStrings) -> list[str]:
    coordinates = [axis.format(i) for axis in (tokens.x, tokens.y) for i in COORDINATES]
    return [tokens.image, tokens.obj_start, tokens.obj_end, tokens.box_start, tokens.box_end, *coordinates]
