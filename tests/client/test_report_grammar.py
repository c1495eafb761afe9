"""The answer's grammar, case by case as MAIRA-2's own processor reads it, and in pieces as it reads it whole."""

import json
import random

import pytest

from medimage_client.reports.grammar import FindingParser, parse_tolerant, to_output
from tests.strict_reports import GrammarError, parse_strict

B = "<box><x0><y10><x99><y50></box>"
BOX = (0.005, 0.105, 0.995, 0.505)
C = "<box><x1><y2><x3><y4></box>"
OTHER_BOX = (0.015, 0.025, 0.035, 0.045)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text", "plain text"),
        ("  \nplain text \n", "plain text"),
        ("", ""),
        ("stray <x3> and <y4>", "stray <x3> and <y4>"),
        (f"<obj>a</obj><obj>b {B}</obj>", [("a", None), ("b", [BOX])]),
        (f"<obj>a {B}{C}</obj>", [("a", [BOX, OTHER_BOX])]),
        (f"<obj>{B}</obj>", [("", [BOX])]),
        ("<obj></obj>", [("", None)]),
        (f" \n<obj> a </obj><obj> b {B}</obj>\n ", [("a ", None), ("b", [BOX])]),
        ("<obj>a<box>junk <x1><y2><x3><y4> junk</box></obj>", [("a", [OTHER_BOX])]),
        ("<obj>a<box><x9><y8><x3><y4></box></obj>", [("a", [(0.095, 0.085, 0.035, 0.045)])]),
        ("<obj>a<obj>b</obj>", [("a<obj>b", None)]),
        (f"<obj>a</box> {B}</obj>", [("a</box>", [BOX])]),
        ("<obj>é\nö</obj>", [("é\nö", None)]),
    ],
    ids=[
        "plain", "plain-with-white-space", "empty", "plain-with-coordinates", "findings", "two-boxes", "box-alone",
        "nothing-inside", "white-space", "junk-around-coordinates", "inside-out", "nested-start", "early-box-end",
        "two-lines",
    ],
)  # fmt: skip
def test_well_formed_text_is_read_by_both(text, expected):
    assert parse_strict(text) == expected
    parsed = parse_tolerant(text)
    assert parsed.findings == (expected if isinstance(expected, list) else [(expected, None)] * bool(expected))
    assert parsed.malformed is False


@pytest.mark.parametrize(
    ("text", "kept", "problem"),
    [
        ("<obj>a</obj> <obj>b</obj>", [("a", None), ("b", None)], "finding 2: text before it"),
        ("<obj>a</obj>, <obj>b</obj>", [("a", None), ("b", None)], "finding 2: text before it"),
        (f"<obj>a {B} {C}</obj>", [("a", [BOX, OTHER_BOX])], "finding 1: text after a box"),
        (f"<obj>a {B} </obj>", [("a", [BOX])], "finding 1: text after a box"),
        (f"<obj>a {B} b</obj>", [("a", [BOX])], "finding 1: text after a box"),
        ("Here: <obj>a</obj>", [("a", None)], "finding 1: text before it"),
        ("<obj>a</obj> Done.", [("a", None)], "finding 2: text in its place"),
        ("<obj>a</obj><obj>b", [("a", None)], "finding 2: unfinished"),
        (f"<obj>a</obj><obj>b {B}<box><x1>", [("a", None)], "finding 2: unfinished"),
        ("<obj>a<box><x1><y2><x3><y4></obj>", [("a", None)], "finding 1: unfinished box"),
        ("a</obj>", [], "finding 1: text in its place"),
        (B, [], "finding 1: text in its place"),
        (f"<obj>a</obj>{B}<obj>b</obj>", [("a", None), ("b", None)], "finding 2: text before it"),
        ("<obj>a </box></obj>", [("a", None)], "finding 1: </box> without <box>"),
        ("<obj>a<box></box></obj>", [("a", None)], "finding 1: box without four coordinates of 0 to 99"),
        ("<obj>a<box><x1><y2><x3></box></obj>", [("a", None)], "finding 1: box without four coordinates of 0 to 99"),
        (f"<obj>a<box>1, 2, 3, 4</box>{B}</obj>", [("a", [BOX])], "finding 1: box without four coordinates of 0 to 99"),
        (
            "<obj>a<box><x1><y2><x3><y100></box></obj>",
            [("a", None)],
            "finding 1: box without four coordinates of 0 to 99",
        ),
        (
            f"<obj>a<box><x1><y2><x3><y{'9' * 400}></box></obj>",
            [("a", None)],
            "finding 1: box without four coordinates of 0 to 99",
        ),
        (
            f"<obj>a<box><x1><y2><x3><y{'9' * 5000}></box></obj>",
            [("a", None)],
            "finding 1: box without four coordinates of 0 to 99",
        ),
    ],
    ids=[
        "space-between", "comma-between", "space-between-boxes", "space-after-box", "text-after-box", "text-first",
        "text-last", "cut", "cut-in-box", "box-not-ended", "only-the-end", "box-outside", "box-between", "only-box-end",
        "empty-box", "three-coordinates", "decimal", "out-of-range", "more-than-a-float", "more-than-an-int",
    ],
)  # fmt: skip
def test_malformed_text_is_refused_by_one_and_kept_in_part_by_the_other(text, kept, problem):
    with pytest.raises(GrammarError) as refused:
        parse_strict(text)
    assert str(refused.value) == problem
    parsed = parse_tolerant(text)
    assert parsed.findings == kept
    assert parsed.malformed is True


def test_all_hundred_bins_are_their_middles():
    for index in range(100):
        ((_, boxes),) = parse_strict(f"<obj>a<box><x{index}><y{index}><x{index}><y{index}></box></obj>")
        assert boxes == [(round(0.005 + index * 0.01, 3),) * 4]


def random_text(rng):
    """A well-formed text, and what it says."""
    text, findings = "", []
    for _ in range(rng.randint(1, 5)):
        words = " ".join(rng.choices(["clear", "é", "<x3>", "a<b", "5 cm", "left", "<ob", "j>"], k=rng.randint(1, 6)))
        bins = [rng.choices(range(100), k=4) for _ in range(rng.randint(0, 3))]
        text += f"<obj>{words}" + " " * bool(bins)
        text += "".join("<box><x{}><y{}><x{}><y{}></box>".format(*box) for box in bins) + "</obj>"
        findings.append((words, [tuple(round(0.005 + 0.01 * i, 3) for i in box) for box in bins] or None))
    return text, findings


def pieces(text, rng):
    cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, 8)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize("seed", range(200))
def test_random_findings_are_read_back_whole_cut_short_and_in_pieces(seed):
    rng = random.Random(seed)
    text, findings = random_text(rng)
    assert parse_strict(text) == findings
    assert parse_tolerant(text).findings == findings

    parser = FindingParser()
    assert [finding for piece in pieces(text, rng) for finding in parser.feed(piece)] == findings
    assert parser.finish() == []

    cut = text[: rng.randrange(1, len(text))]
    complete = findings[: cut.count("</obj>")]
    if cut.endswith("</obj>"):
        assert parse_strict(cut) == complete
    elif cut.startswith("<obj>"):
        assert parse_tolerant(cut).malformed
        assert parse_tolerant(cut).findings == complete


TOKENS = ["<obj>", "</obj>", "<box>", "</box>", "<x1><y2>", "<x3><y4>", "<y100>", B, " ", "\n", "a", "b c", "<", "obj>"]


@pytest.mark.parametrize("seed", range(300))
def test_any_text_is_read_alike_by_all_and_in_any_pieces(seed):
    rng = random.Random(seed)
    text = "".join(rng.choices(TOKENS, k=rng.randint(0, 12)))
    parsed = parse_tolerant(text)
    parser = FindingParser()
    findings = [finding for piece in pieces(text, rng) for finding in parser.feed(piece)] + parser.finish()
    assert findings == parsed.findings
    try:
        strict = parse_strict(text)
    except GrammarError:
        assert parsed.malformed
    else:
        assert not parsed.malformed
        assert parsed.findings == strict or parsed.findings == [(strict, None)] * bool(strict)


def test_findings_are_given_as_soon_as_they_are_complete():
    parser = FindingParser()
    assert parser.feed("<obj>a</ob") == []
    assert parser.feed("j>") == [("a", None)]
    assert parser.feed(f"<obj>b{B[:9]}") == []
    assert parser.feed(f"{B[9:]}</obj><obj>c</obj><obj>") == [("b", [BOX]), ("c", None)]


def test_plain_text_is_one_finding_known_at_the_end():
    parser = FindingParser()
    assert parser.feed("Lungs are ") + parser.feed("clear. ") == []
    assert parser.finish() == [("Lungs are clear.", None)]


def test_message_and_repr_do_not_quote_the_text():
    text = "<obj>Jane Doe</obj> Jane Doe <obj>Jane<box>Jane</box></obj>"
    with pytest.raises(GrammarError) as refused:
        parse_strict(text)
    assert "Jane" not in str(refused.value) + repr(parse_tolerant(text))


def test_output_is_the_recorded_form_of_the_endpoint():
    findings = [("The heart size is normal.", None), ("Größe “normal”.", [(0.415, 0.225, 0.635, 0.755), BOX])]
    output = to_output(findings)
    assert output.startswith('[["The heart size is normal.", null], ["Größe “normal”.", [[0.415, 0.225, 0.635, 0.755],')
    assert json.loads(output)[1][1] == [[0.415, 0.225, 0.635, 0.755], [0.005, 0.105, 0.995, 0.505]]
    assert to_output([]) == "[]"
