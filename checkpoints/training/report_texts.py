"""What the phantom model is asked and answers: MAIRA-2's prompts and grammar of findings, and a tokenizer for them."""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from medimage_export.cxrreportgen.config import PromptStrings, TokenStrings
from medimage_export.phantoms.chest_study import (
    COMPARISONS,
    INDICATIONS,
    SENTENCES,
    STRUCTURES,
    TECHNIQUES,
    ChestStudy,
    DrawnFinding,
)
from medimage_export.phantoms.shapes import Box

TOKENS = TokenStrings()
STRINGS = PromptStrings()
UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"  # 0, 1, 2 as in Llama; <unk> also pads
COORDINATES = 100  # tokens of an axis


def report_prompt(
    study: ChestStudy, *, with_lateral: bool = False, prior: ChestStudy | None = None, grounded: bool = True
) -> str:
    """The prompt for a study's report; it holds the image token once for each image."""
    content = STRINGS.frontal if with_lateral or prior else STRINGS.frontal_only
    content += TOKENS.image
    if with_lateral:
        content += (STRINGS.lateral_with_prior if prior else STRINGS.lateral) + TOKENS.image
    if prior:
        content += STRINGS.prior + TOKENS.image
        content += STRINGS.prior_report.replace("{prior_report}", plain_answer(prior.findings))
    content += STRINGS.describe
    if grounded:
        content += STRINGS.ground
    sections = STRINGS.sections
    for name in ("indication", "technique", "comparison"):
        sections = sections.replace(f"{{{name}}}", getattr(study, name) or STRINGS.missing)
    return STRINGS.template.replace("{content}", content + sections)


def phrase_prompt(phrase: str) -> str:
    """The prompt for the boxes of one finding."""
    content = STRINGS.phrase_before + TOKENS.image + STRINGS.phrase_after.replace("{phrase}", phrase)
    return STRINGS.template.replace("{content}", content)


def plain_answer(findings: Sequence[DrawnFinding]) -> str:
    return " ".join(finding.sentence for finding in findings)


def grounded_answer(findings: Sequence[DrawnFinding]) -> str:
    """`<obj>sentence<box>…</box></obj>` for each finding, with nothing between them."""
    return "".join(
        f"{TOKENS.obj_start}{finding.sentence}{''.join(map(box_text, finding.boxes))}{TOKENS.obj_end}"
        for finding in findings
    )


def box_text(box: Box) -> str:
    """A coordinate token stands for a hundredth of the side."""
    x0, y0, x1, y1 = (min(int(edge * COORDINATES), COORDINATES - 1) for edge in box)
    corners = f"{TOKENS.x.format(x0)}{TOKENS.y.format(y0)}{TOKENS.x.format(x1)}{TOKENS.y.format(y1)}"
    return f"{TOKENS.box_start}{corners}{TOKENS.box_end}"


def corpus() -> list[str]:
    """Texts with every word of the prompts and answers, for the tokenizer."""
    prompts = [text for name, text in vars(STRINGS).items() if name != "missing"]
    sentences = [*SENTENCES.values(), *(normal for normal, _ in STRUCTURES)]
    reports = [" ".join(sentences), *sentences]
    sections = [f" {text}" for text in (*INDICATIONS, *TECHNIQUES, *COMPARISONS, STRINGS.missing)]
    return [*prompts, *reports, *sections]


def build_report_tokenizer() -> Tokenizer:
    """Every word of `corpus` becomes one token, and any other text is spelt in bytes; the added tokens are MAIRA-2's.

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
    tokenizer.train_from_iterator(corpus(), trainer)
    added = [
        *(TOKENS.obj_start, TOKENS.obj_end),
        *(axis.format(index) for axis in (TOKENS.x, TOKENS.y) for index in range(COORDINATES)),
        *(TOKENS.box_start, TOKENS.box_end, TOKENS.image, "<prev_im>", "<lat_image>"),
    ]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in added])
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, begin)]
    )
    return tokenizer
