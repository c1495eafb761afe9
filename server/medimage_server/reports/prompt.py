"""A chest X-ray study to the prompt of CXRReportGen: its text, and its tokens with the places of the images.

The order of the parts is that of MAIRA-2's own processor (`format_and_preprocess_reporting_input` and
`format_and_preprocess_phrase_grounding_input`): current frontal, current lateral, prior frontal, in the prompt as in
the stack of images. That processor repeats the image token once for each row of the image; here it stands once, and
its rows take its place among the embeddings, which gives the same sequence.

What a caller wrote is text: it can never become a control token of the model.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from tokenizers import Tokenizer

from medimage_client.schema.reports import SECTIONS, Mode
from medimage_server.errors import InvalidInput
from medimage_server.reports.settings import GenerationSettings, PromptStrings

# as MAIRA-2's model card generates, in tokens
DEFAULT_NEW_TOKENS: Mapping[Mode, int] = {"grounded": 450, "findings": 300, "phrase": 150}

TEXTS = (*SECTIONS, "phrase")
MAX_TEXT_CHARS = 2**15  # of one text; far more than fits the prompt, and little to tokenise in order to say so

PLACEHOLDER = re.compile(r"\{(\w+)\}")
BRACKETS = re.compile(r"^\W+|\W+$")  # or other signs around the word of a token


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a report is asked for. A text that is None or blank counts as not given.

    Raises:
        InvalidInput: the mode is unknown, or does not go with the images or the phrase.
    """

    mode: Mode = "grounded"
    has_lateral: bool = False
    has_prior: bool = False
    indication: str | None = field(default=None, repr=False)
    technique: str | None = field(default=None, repr=False)
    comparison: str | None = field(default=None, repr=False)
    prior_report: str | None = field(default=None, repr=False)  # not used without a prior image
    phrase: str | None = field(default=None, repr=False)  # the finding to locate, of mode `phrase` alone

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise InvalidInput(f"mode must be one of {', '.join(get_args(Mode))}")
        if is_blank(self.phrase) is (self.mode == "phrase"):
            raise InvalidInput("phrase must be given in mode phrase, and in no other")
        if self.mode == "phrase" and (self.has_lateral or self.has_prior):
            raise InvalidInput("mode phrase takes the frontal image alone; leave out lateral_image and prior_image")

    @property
    def n_images(self) -> int:
        return 1 + self.has_lateral + self.has_prior

    def with_texts(self, change: Callable[[str, str], str]) -> "Study":
        """The same study, each text that is given replaced by change(name, text)."""
        changed: dict[str, Any] = {
            name: change(name, text) for name in TEXTS if not is_blank(text := getattr(self, name))
        }
        return replace(self, **changed)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt ready to be embedded."""

    token_ids: list[int] = field(repr=False)  # each image is one image token
    image_positions: list[int]  # of the image tokens in token_ids, in the order of the images
    length: int  # tokens when each image token stands for tokens_per_image
    max_new_tokens: int  # of the answer; they fit behind the prompt


def is_blank(text: object) -> bool:
    return not isinstance(text, str) or not text.strip()


def build_prompt(study: Study, strings: PromptStrings, image: str) -> str:
    """The prompt to the character, with the text `image` for each image."""
    build_content = build_phrase_content if study.mode == "phrase" else build_report_content
    return fill(strings.template, content=build_content(study, strings, image))


def build_report_content(study: Study, strings: PromptStrings, image: str) -> str:
    parts = [(strings.frontal if study.n_images > 1 else strings.frontal_only) + image]
    if study.has_lateral:
        parts.append((strings.lateral_with_prior if study.has_prior else strings.lateral) + image)
    if study.has_prior:
        parts.append(strings.prior + image)
        parts.append(fill(strings.prior_report, prior_report=given_or(strings.missing, study.prior_report)))
    parts.append(strings.describe)
    if study.mode == "grounded":
        parts.append(strings.ground)
    sections = {name: given_or(strings.missing, getattr(study, name)) for name in SECTIONS if name != "prior_report"}
    return "".join([*parts, fill(strings.sections, **sections)])


def build_phrase_content(study: Study, strings: PromptStrings, image: str) -> str:
    phrase = given_or(strings.missing, study.phrase)
    return strings.phrase_before + image + fill(strings.phrase_after, phrase=phrase)


def given_or(missing: str, text: str | None) -> str:
    return missing if text is None or is_blank(text) else text


def fill(template: str, **values: str) -> str:
    """Each `{name}` of a template by its value; in one pass, so that braces in a value stay what they are."""
    return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), template)


class PromptTokenizer:
    """Studies to prompts.

    Args:
        tokenizer: the one that the model was exported with.
        settings: with the max_length that is served, which may be less than what the model allows.

    Raises:
        ValueError: the tokenizer does not know the image token.
    """

    def __init__(self, tokenizer: Tokenizer, settings: GenerationSettings) -> None:
        added = tokenizer.get_added_tokens_decoder()
        controls = {token.content: id for id, token in added.items() if token.content.strip()}
        if settings.tokens.image not in controls:
            raise ValueError(f"tokenizer.json has no added token {settings.tokens.image}; export the model again")
        self._tokenizer = tokenizer
        self._settings = settings
        self._image_id = controls[settings.tokens.image]
        self._control_ids = frozenset(controls.values())
        self._remove_control_tokens = control_token_remover(controls)

    def __call__(self, study: Study, max_new_tokens: int | None = None) -> Prompt:
        """A study -> its prompt; without `max_new_tokens`, the default of its mode.

        Raises:
            InvalidInput: a text that cannot be used, or too many tokens in all.
        """
        if max_new_tokens is None:
            max_new_tokens = DEFAULT_NEW_TOKENS[study.mode]
        if max_new_tokens < 1:
            raise InvalidInput("max_new_tokens must be positive")
        token_ids = self._encode(study.with_texts(self._clean))
        # The same prompt with texts that are known to be harmless shows which control tokens belong there.
        harmless = self._encode(study.with_texts(lambda name, text: self._settings.prompt.missing))
        if self._controls(token_ids) != self._controls(harmless):
            raise InvalidInput("a text holds a control token of the model; take out what stands in angle brackets")
        image_positions = [place for place, token in enumerate(token_ids) if token == self._image_id]
        length = len(token_ids) + len(image_positions) * (self._settings.tokens_per_image - 1)
        room = self._settings.max_length - max_new_tokens
        if length > room:
            raise InvalidInput(
                f"the prompt has {length} tokens; at most {max(room, 0)} are allowed with {max_new_tokens} new ones: "
                "shorten the texts, or send fewer images or a smaller max_new_tokens"
            )
        return Prompt(
            token_ids=token_ids, image_positions=image_positions, length=length, max_new_tokens=max_new_tokens
        )

    def _clean(self, name: str, text: str) -> str:
        if len(text) > MAX_TEXT_CHARS:
            raise InvalidInput(f"{name} has {len(text)} characters; at most {MAX_TEXT_CHARS} are allowed")
        return self._remove_control_tokens(text)

    def _encode(self, study: Study) -> list[int]:
        text = build_prompt(study, self._settings.prompt, self._settings.tokens.image)
        return list(self._tokenizer.encode(text).ids)

    def _controls(self, token_ids: list[int]) -> list[int]:
        return [token for token in token_ids if token in self._control_ids]


def control_token_remover(tokens: Collection[str]) -> Callable[[str], str]:
    """A function that leaves of each control token in a text its word alone: "<image>" becomes "image"."""
    words = {token: BRACKETS.sub("", token) for token in tokens}
    replacements = {token: word if word not in ("", token) else " " for token, word in words.items()}
    any_token = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    # Closing brackets behind a token go with it. Else each pass over "<<<s>>>" would only take away one pair.
    closing = {sign for token, word in words.items() for sign in token.rpartition(word or token)[2]}
    pattern = re.compile(f"({any_token})(?:{'|'.join(map(re.escape, sorted(closing)))})*+")

    def remove(text: str) -> str:
        n_found = -1
        while n_found:  # what is left around a token may make another: "<im<|a|>ge>"
            text, n_found = pattern.subn(lambda found: replacements[found[1]], text)
        return text

    return remove
