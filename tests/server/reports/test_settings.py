"""Reading generation.json: what is taken from it, and the one line for each way it can be wrong."""

import json

import pytest

from medimage_server.reports.settings import GenerationSettings, LongRope
from tests.server.reports.samples import GENERATION


@pytest.fixture
def path(tmp_path):
    return tmp_path / "generation.json"


def write(path, **changes):
    path.write_text(json.dumps(GENERATION | changes), encoding="utf-8")
    return path


def without(values, name):
    return {key: value for key, value in values.items() if key != name}


def test_settings_are_those_of_the_file(path):
    settings = GenerationSettings.read(write(path))
    assert (settings.tokens_per_image, settings.max_length) == (1369, 6144)
    assert settings.eos_token_ids == (2,)
    assert settings.long_rope is None
    assert vars(settings.tokens) == GENERATION["tokens"]
    assert vars(settings.prompt) == GENERATION["prompt"]


def test_long_rope_is_read_where_the_model_has_it(path):
    settings = GenerationSettings.read(write(path, long_rope={"after": 4096, "first_row": 5000}))
    assert settings.long_rope == LongRope(after=4096, first_row=5000)


TOKENS, PROMPT = GENERATION["tokens"], GENERATION["prompt"]
BAD = {
    "zero": ({"tokens_per_image": 0}, "tokens_per_image must be a positive integer"),
    "boolean": ({"max_length": True}, "max_length must be a positive integer"),
    "no-eos": ({"eos_token_ids": []}, "eos_token_ids must be a list of token ids, at least one"),
    "eos-text": ({"eos_token_ids": ["</s>"]}, "eos_token_ids must be a list of token ids, at least one"),
    "unknown-key": ({"temperature": 1}, "temperature is unknown"),
    "long-rope-key": ({"long_rope": {"after": 4096}}, "'long_rope.first_row' is missing"),
    "long-rope-value": ({"long_rope": {"after": 0, "first_row": 1}}, "long_rope.after must be a positive integer"),
    "tokens-list": ({"tokens": []}, "tokens must be an object"),
    "token-missing": ({"tokens": without(TOKENS, "box_end")}, "'tokens.box_end' is missing"),
    "token-without-index": ({"tokens": TOKENS | {"x": "<x>"}}, "tokens.x must hold {} once"),
    "prompt-missing": ({"prompt": without(PROMPT, "ground")}, "'prompt.ground' is missing"),
    "prompt-unknown": ({"prompt": PROMPT | {"grounding": ""}}, "prompt.grounding is unknown"),
    "prompt-number": ({"prompt": PROMPT | {"missing": 0}}, "prompt.missing must be a text"),
    "prompt-placeholder": (
        {"prompt": PROMPT | {"sections": "{indication}"}},
        "prompt.sections must hold {technique} once",
    ),
}


@pytest.mark.parametrize(("changes", "reason"), BAD.values(), ids=BAD.keys())
def test_bad_file_is_refused_in_one_line_with_its_name_and_the_key(path, changes, reason):
    with pytest.raises(ValueError) as caught:
        GenerationSettings.read(write(path, **changes))
    assert str(caught.value) == f"{path}: not what `medimage export cxrreportgen` writes: {reason}"


@pytest.mark.parametrize("name", GENERATION)
def test_missing_key_is_named(path, name):
    path.write_text(json.dumps(without(GENERATION, name)), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"generation\.json: .*: '{name}' is missing$"):
        GenerationSettings.read(path)


@pytest.mark.parametrize("text", ["", "[]", "null"])
def test_file_that_is_no_object_is_refused_by_name(path, text):
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"generation\.json: not what `medimage export cxrreportgen` writes: "):
        GenerationSettings.read(path)


def test_missing_file_names_the_export(path):
    with pytest.raises(FileNotFoundError, match=r"generation\.json: not found; run `medimage export cxrreportgen`"):
        GenerationSettings.read(path)
