"""Constrained decoding: whatever the logits say, the answer is of the grammar; and the grammar is no narrower."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from medimage_server.reports.constraint import Constraint, Grammar
from tests.server.reports.samples import GRAMMAR, SPECIAL, byte_tokenizer, generation_settings, llama_tokenizer
from tests.strict_reports import parse_strict

EOS = 2
TOKENIZERS = {"llama": llama_tokenizer(), "bytes": byte_tokenizer()}


@pytest.fixture(params=TOKENIZERS.values(), ids=TOKENIZERS.keys())
def tokenizer(request):
    return request.param


@pytest.fixture
def settings(tmp_path):
    return generation_settings(tmp_path)


@pytest.fixture
def grammar(tokenizer, settings):
    return Grammar(tokenizer, settings, tokenizer.get_vocab_size() + 5)  # rows of a table that was padded


@pytest.fixture
def ids(tokenizer):
    """Token ids by their text."""
    return lambda *tokens: [tokenizer.token_to_id(token) for token in tokens]


@pytest.fixture
def size(tokenizer):
    return tokenizer.get_vocab_size() + 5


def walk(grammar, size, rng, *, grounded, weights):
    """The tokens of one answer whose logits are noise, with the weights of some tokens on top."""
    constraint = Constraint(grammar, grounded=grounded)
    tokens = []
    while True:
        logits = rng.normal(size=size).astype(np.float32)
        for token, weight in weights.items():
            logits[token] += weight
        if len(tokens) > 400:
            logits[[*weights, EOS]] += 100
        token = int(np.argmax(constraint.apply(logits)))
        constraint.advance(token)
        if token == EOS:
            return tokens
        tokens.append(token)


def test_any_walk_through_the_grammar_is_parsed_strictly(grammar, size, tokenizer, ids):
    rng = np.random.default_rng(0)
    obj_end, box_start, obj_start = ids("</obj>", "<box>", "<obj>")
    n_boxes = 0
    for _ in range(150):
        tokens = walk(grammar, size, rng, grounded=True, weights={obj_end: 3, box_start: 3.5, obj_start: 1})
        findings = parse_strict(tokenizer.decode(tokens, skip_special_tokens=True))
        assert len(findings) == tokens.count(obj_start)
        boxes = [box for _, found in findings or [] for box in found or []]
        assert len(boxes) == tokens.count(box_start)
        assert all(x_min <= x_max and y_min <= y_max for x_min, y_min, x_max, y_max in boxes)
        n_boxes += len(boxes)
    assert n_boxes > 100


def test_any_walk_without_boxes_is_plain_text(grammar, size, tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(50):
        tokens = walk(grammar, size, rng, grounded=False, weights={EOS: 2})
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        assert parse_strict(text) == text.strip()


def follow(grammar, tokens):
    constraint = Constraint(grammar, grounded=True)
    for token in tokens:
        constraint.advance(token)
    return set(np.flatnonzero(constraint.allowed).tolist())


PLACES = {
    "start": ([], ["<obj>", "</s>"]),
    "behind-a-finding": (["<obj>", "a", "</obj>"], ["<obj>", "</s>"]),
    "behind-a-box": (["<obj>", "a", "<box>", "<x1>", "<y2>", "<x3>", "<y4>", "</box>"], ["<box>", "</obj>"]),
    "x-min": (["<obj>", "a", "<box>"], [f"<x{i}>" for i in range(100)]),
    "y-min": (["<obj>", "<box>", "<x7>"], [f"<y{i}>" for i in range(100)]),
    "x-max": (["<obj>", "<box>", "<x7>", "<y95>"], [f"<x{i}>" for i in range(7, 100)]),
    "y-max": (["<obj>", "<box>", "<x7>", "<y95>", "<x99>"], [f"<y{i}>" for i in range(95, 100)]),
    "box-end": (["<obj>", "<box>", "<x7>", "<y95>", "<x7>", "<y95>"], ["</box>"]),
    "second-box": (
        [*("<obj>", "<box>", "<x7>", "<y95>", "<x7>", "<y95>", "</box>"), *("<box>", "<x1>", "<y2>")],
        [f"<x{i}>" for i in range(1, 100)],
    ),
}


@pytest.mark.parametrize(("tokens", "allowed"), PLACES.values(), ids=PLACES.keys())
def test_place_allows_what_the_grammar_says(grammar, ids, tokens, allowed):
    assert follow(grammar, ids(*tokens)) == set(ids(*allowed))


@pytest.mark.parametrize("tokens", [["<obj>"], ["<obj>", "a", "b"]], ids=["first", "later"])
def test_text_of_a_finding_may_be_any_text(grammar, tokenizer, ids, tokens):
    allowed = follow(grammar, ids(*tokens))
    spelled = {id for token, id in tokenizer.get_vocab().items() if token in ("<", "</", "<0x3C>")}
    refused = set(ids(*SPECIAL, *GRAMMAR)) - set(ids("<box>", "</obj>"))
    assert spelled
    assert allowed == set(range(tokenizer.get_vocab_size())) - refused - spelled


def test_apply_keeps_the_logits_of_what_is_allowed_and_the_callers_array(grammar, size, ids):
    logits = np.arange(size, dtype=np.float32)
    found = Constraint(grammar, grounded=True).apply(logits)
    allowed = ids("<obj>", "</s>")
    assert found.dtype == np.float32
    assert found[allowed].tolist() == allowed
    assert np.isneginf(np.delete(found, allowed)).all()
    np.testing.assert_array_equal(logits, np.arange(size))


def test_answers_do_not_share_their_place(grammar, ids):
    first, second = Constraint(grammar, grounded=True), Constraint(grammar, grounded=True)
    first.advance(*ids("<obj>"))
    second.apply(np.zeros(len(second.allowed), dtype=np.float32))
    assert np.flatnonzero(second.allowed).tolist() == sorted(ids("<obj>", "</s>"))


def test_token_out_of_place_is_an_error(grammar, ids):
    [box] = ids("<box>")
    with pytest.raises(ValueError, match=f"^token {box} may not come here$"):
        Constraint(grammar, grounded=True).advance(box)


def without(tokenizer, token):
    return Tokenizer.from_str(tokenizer.to_str().replace(f'"{token}"', '"<other>"'))


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("<box>", "tokenizer.json has no token <box>; export the model again"),
        ("<x0>", "tokenizer.json has no token <x0>; export the model again"),
        ("<y99>", "tokenizer.json has 100 tokens <x{}> and 99 tokens <y{}>"),
    ],
)
def test_tokenizer_without_a_token_of_the_grammar_stops_the_load(settings, token, message):
    with pytest.raises(ValueError, match="tokenizer") as caught:
        Grammar(without(llama_tokenizer(), token), settings, 10**4)
    assert str(caught.value) == message


def test_tokenizer_with_more_tokens_than_logits_stops_the_load(settings):
    tokenizer = llama_tokenizer()
    size = tokenizer.get_vocab_size()
    with pytest.raises(ValueError, match=rf"^tokenizer\.json has {size} tokens, the model {size - 1}$"):
        Grammar(tokenizer, settings, size - 1)
