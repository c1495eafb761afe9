"""`generation.json`: what an exported report model says about its tokens, its prompt and its length."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from medimage_server.exported import exported_json

Strings = TypeVar("Strings", "PromptStrings", "TokenStrings")


@dataclass(frozen=True, kw_only=True)
class TokenStrings:
    """How the tokenizer writes the tokens that stand for no text."""

    image: str  # stands for all tokens of one image
    obj_start: str
    obj_end: str
    box_start: str
    box_end: str
    x: str  # of the horizontal coordinates; `{}` is the index
    y: str


@dataclass(frozen=True, kw_only=True)
class PromptStrings:
    """What the prompt is put together from; `{name}` is filled. An image follows its sentence directly."""

    template: str
    frontal_only: str
    frontal: str  # with a lateral or a prior image
    lateral: str
    lateral_with_prior: str
    prior: str
    prior_report: str
    describe: str
    ground: str
    sections: str
    phrase_before: str
    phrase_after: str
    missing: str  # stands for a text that the study does not have


# of the strings above, each once
PLACEHOLDERS = {
    "template": ("{content}",),
    "prior_report": ("{prior_report}",),
    "sections": ("{indication}", "{technique}", "{comparison}"),
    "phrase_after": ("{phrase}",),
    "x": ("{}",),
    "y": ("{}",),
}


@dataclass(frozen=True, kw_only=True)
class LongRope:
    """Two sets of rotary factors, one after the other in the same table.

    The second holds for all tokens of a request that is longer than `after`; its rows start at `first_row`.
    """

    after: int
    first_row: int


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    tokens_per_image: int
    max_length: int  # tokens of prompt, images and answer together
    eos_token_ids: tuple[int, ...]
    long_rope: LongRope | None
    tokens: TokenStrings
    prompt: PromptStrings

    @classmethod
    def read(cls, path: Path) -> "GenerationSettings":
        """From a generation.json.

        Raises:
            FileNotFoundError: the model was not exported yet.
            ValueError: a key is missing or unknown, or has a value that is not allowed; names file and key.
        """
        with exported_json(path, "cxrreportgen") as exported:
            _check_keys(exported, {field.name for field in fields(cls)})
            return cls(
                tokens_per_image=_positive(exported["tokens_per_image"], "tokens_per_image"),
                max_length=_positive(exported["max_length"], "max_length"),
                eos_token_ids=_token_ids(exported["eos_token_ids"]),
                long_rope=_long_rope(exported["long_rope"]),
                tokens=_strings(TokenStrings, exported["tokens"], "tokens"),
                prompt=_strings(PromptStrings, exported["prompt"], "prompt"),
            )


def _check_keys(values: Any, expected: set[str], where: str = "") -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{where or 'the content'} must be an object")
    prefix = f"{where}." if where else ""
    for name in sorted(expected - values.keys()):
        raise KeyError(prefix + name)
    for name in sorted(values.keys() - expected):
        raise ValueError(f"{prefix}{name} is unknown")


def _positive(value: Any, name: str) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be a positive integer")
    return value


def _token_ids(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not values or any(type(value) is not int or value < 0 for value in values):
        raise ValueError("eos_token_ids must be a list of token ids, at least one")
    return tuple(values)


def _long_rope(values: Any) -> LongRope | None:
    if values is None:
        return None
    _check_keys(values, {"after", "first_row"}, "long_rope")
    return LongRope(**{name: _positive(value, f"long_rope.{name}") for name, value in values.items()})


def _strings(kind: type[Strings], values: Any, where: str) -> Strings:
    _check_keys(values, {field.name for field in fields(kind)}, where)
    for name, value in values.items():
        if not isinstance(value, str):
            raise ValueError(f"{where}.{name} must be a text")
        for placeholder in PLACEHOLDERS.get(name, ()):
            if value.count(placeholder) != 1:
                raise ValueError(f"{where}.{name} must hold {placeholder} once")
    return kind(**values)
