"""A generation.json with MAIRA-2's own strings, and small tokenizers with MAIRA-2's added tokens."""

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from medimage_server.reports.settings import GenerationSettings

GENERATION = {
    "tokens_per_image": 1369,
    "max_length": 6144,
    "eos_token_ids": [2],
    "long_rope": None,
    "tokens": {
        "image": "<image>",
        "obj_start": "<obj>",
        "obj_end": "</obj>",
        "box_start": "<box>",
        "box_end": "</box>",
        "x": "<x{}>",
        "y": "<y{}>",
    },
    "prompt": {
        "template": "You are an expert radiology assistant tasked with interpreting a chest X-ray study."
        "  USER:  {content}  ASSISTANT: ",
        "frontal_only": "Given the current frontal image only",
        "frontal": "Given the current frontal image",
        "lateral": " and the current lateral image",
        "lateral_with_prior": " the current lateral image",
        "prior": " and the prior frontal image",
        "prior_report": " PRIOR_REPORT: {prior_report}",
        "describe": " Provide a structured description of the findings in the radiology study in comparison to the"
        " prior frontal image.",
        "ground": " Each finding should be described as a self-contained plain-text sentence. If the finding is"
        " groundable, locate the finding in the current frontal chest X-ray image, with bounding boxes indicating all"
        " locations where it can be seen in the current frontal image. Otherwise, generate just the ungrounded finding"
        " without bounding boxes.",
        "sections": " INDICATION: {indication} TECHNIQUE: {technique} COMPARISON: {comparison}",
        "phrase_before": "Given the current frontal image",
        "phrase_after": " Repeat the following finding as a grounded phrase with bounding boxes indicating all"
        " locations where it can be seen in the given chest X-ray image. Finding: {phrase}",
        "missing": "N/A",
    },
}

SPECIAL = ["<unk>", "<s>", "</s>"]
GRAMMAR = [
    *("<obj>", "</obj>"),
    *(f"<{axis}{index}>" for axis in "xy" for index in range(100)),
    *("<box>", "</box>", "<image>", "<prev_im>", "<lat_image>"),
]


def generation_settings(folder, **changes):
    path = folder / "generation.json"
    path.write_text(json.dumps(GENERATION | changes), encoding="utf-8")
    return GenerationSettings.read(path)


def llama_tokenizer():
    """Characters and a few merges as Llama's tokenizer.json has them: "▁" for a space, and one in front; bytes for what
    the vocabulary has not."""
    letters = [chr(code) for code in range(33, 127)]
    merges = [("\u2581", "t"), ("\u2581t", "h"), ("\u2581th", "e"), ("i", "n"), ("o", "b"), ("ob", "j"), ("<", "/")]
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *letters, *(a + b for a, b in merges)]
    vocabulary = {token: id for id, token in enumerate([*SPECIAL, *pieces])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return with_added_tokens(tokenizer)


def byte_tokenizer():
    """Bytes without merges, as GPT's tokenizers begin."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: id for id, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return with_added_tokens(tokenizer)


def with_added_tokens(tokenizer):
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in GRAMMAR])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer
