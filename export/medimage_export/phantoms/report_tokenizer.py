"""A small byte-level BPE tokenizer for reports, with MAIRA-2's added tokens in their published order."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from medimage_export.cxrreportgen.config import TokenStrings

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"  # 0, 1, 2 as in Llama; <unk> also pads
COORDINATES = 100  # tokens of an axis


def build_report_tokenizer(corpus: Iterable[str], tokens: TokenStrings) -> Tokenizer:
    """Every word of the corpus becomes one token, and any other text is spelt in bytes.

    As in MAIRA-2 the added tokens are not special, so decoding keeps them in the text, and the begin token comes from
    the post-processor.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=4000,  # more than there are words to merge
        special_tokens=[UNKNOWN, BEGIN, END],
        initial_alphabet=sorted(ByteLevel.alphabet()),  # a set: its order differs from run to run
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    added = [
        *(tokens.obj_start, tokens.obj_end),
        *(axis.format(index) for axis in (tokens.x, tokens.y) for index in range(COORDINATES)),
        *(tokens.box_start, tokens.box_end, tokens.image, "<prev_im>", "<lat_image>"),
    ]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in added])
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, begin)]
    )
    return tokenizer
