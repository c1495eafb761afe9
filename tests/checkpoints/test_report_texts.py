"""Prompts, answers and tokens that the phantom model is trained on."""

from dataclasses import asdict, replace

import pytest

from checkpoints.training.report_scores import intersection_over_union, read_report, score
from checkpoints.training.report_texts import (
    box_text,
    build_report_tokenizer,
    corpus,
    grounded_answer,
    phrase_prompt,
    plain_answer,
    report_prompt,
)
from medimage_export.cxrreportgen.config import PromptStrings
from medimage_export.phantoms.chest_study import SENTENCES, STRUCTURES, DrawnFinding, chest_study
from medimage_server.reports import prompt as served
from medimage_server.reports import settings as served_settings
from tests.strict_reports import parse_strict

TOKENIZER = build_report_tokenizer()
STUDIES = [chest_study(seed, size=32) for seed in range(40)]
STRINGS = served_settings.PromptStrings(**asdict(PromptStrings()))


@pytest.mark.parametrize("text", ["", "Zwölf ☃  spaces\n", "<unknown>", *corpus()])
def test_tokenizer_gives_any_text_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False).ids) == text


@pytest.mark.parametrize("study", STUDIES)
def test_tokenizer_gives_an_answer_back_with_its_added_tokens(study):
    answer = grounded_answer(study.findings)
    ids = TOKENIZER.encode(answer, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == answer
    assert len(ids) < 120


def test_every_word_is_one_token():
    for sentence in (*SENTENCES.values(), *(normal for normal, _ in STRUCTURES)):
        tokens = TOKENIZER.encode(sentence, add_special_tokens=False).tokens
        assert len(tokens) == len(sentence.split()) + 1  # the full stop


def test_ids_are_those_of_llama_and_the_added_tokens_follow_in_the_published_order():
    assert TOKENIZER.encode("a").ids[0] == TOKENIZER.token_to_id("<s>") == 1
    assert [TOKENIZER.token_to_id(token) for token in ("<unk>", "</s>")] == [0, 2]
    added = [
        "<obj>",
        "</obj>",
        "<x0>",
        "<x99>",
        "<y0>",
        "<y99>",
        "<box>",
        "</box>",
        "<image>",
        "<prev_im>",
        "<lat_image>",
    ]
    first = TOKENIZER.token_to_id("<obj>")
    assert [TOKENIZER.token_to_id(token) - first for token in added] == [
        0,
        1,
        2,
        101,
        102,
        201,
        202,
        203,
        204,
        205,
        206,
    ]
    assert TOKENIZER.get_vocab_size() == first + 207


def test_tokenizer_is_the_same_in_every_run():
    assert build_report_tokenizer().to_str() == TOKENIZER.to_str()


def test_box_is_written_in_whole_hundredths():
    assert box_text((0.129, 0.13, 0.999, 1.0)) == "<box><x12><y13><x99><y99></box>"


@pytest.mark.parametrize("study", STUDIES)
def test_answer_is_of_the_published_grammar(study):
    """The client's parser is held to the original one by tests of its own."""
    parsed = parse_strict(grounded_answer(study.findings))
    assert [text for text, _ in parsed] == [finding.sentence for finding in study.findings]
    for (_, boxes), finding in zip(parsed, study.findings, strict=True):
        assert len(boxes or ()) == len(finding.boxes)
        for box, drawn in zip(boxes or (), finding.boxes, strict=True):
            assert box == pytest.approx(drawn, abs=0.0051)  # half of a hundredth, and 1.0 in the last of them


@pytest.mark.parametrize("grounded", [True, False], ids=["grounded", "findings"])
@pytest.mark.parametrize("with_prior", [False, True], ids=["", "prior"])
@pytest.mark.parametrize("with_lateral", [False, True], ids=["", "lateral"])
@pytest.mark.parametrize("indication", ["Cough.", ""])
def test_training_prompt_is_the_served_one(indication, with_lateral, with_prior, grounded):
    study, prior = replace(STUDIES[0], indication=indication), STUDIES[1]
    request = served.Study(
        mode="grounded" if grounded else "findings",
        has_lateral=with_lateral,
        has_prior=with_prior,
        indication=study.indication,
        technique=study.technique,
        comparison=study.comparison,
        prior_report=plain_answer(prior.findings) if with_prior else None,
    )
    ours = report_prompt(study, with_lateral=with_lateral, prior=prior if with_prior else None, grounded=grounded)
    assert ours == served.build_prompt(request, STRINGS, "<image>")


def test_training_prompt_for_a_phrase_is_the_served_one():
    request = served.Study(mode="phrase", phrase="The heart is enlarged.")
    assert phrase_prompt("The heart is enlarged.") == served.build_prompt(request, STRINGS, "<image>")


def test_reading_an_answer_gives_its_findings_and_leaves_out_an_unfinished_one():
    read = read_report("<obj>A nodule.<box><x10><y20><x30><y40></box></obj><obj>Clear.</obj><obj>The hea")
    assert [(sentence, list(boxes)) for sentence, boxes in read] == [
        ("A nodule.", [pytest.approx((0.105, 0.205, 0.305, 0.405))]),
        ("Clear.", []),
    ]


def test_scores_count_sentences_and_boxes():
    """Of three sentences one is wrong; of two drawn boxes one is found, by one of three that were written."""
    square, far = (0.0, 0.0, 0.4, 0.4), (0.6, 0.6, 0.9, 0.9)
    drawn = [[("heart", (square,)), ("nodule", (far,)), ("no fluid", ())]]
    written = [[("heart", ((0.0, 0.0, 0.4, 0.3), square)), ("nodule", ((0.6, 0.6, 0.7, 0.7),)), ("fluid", ())]]
    scores = score([[DrawnFinding(*row) for row in written[0]]], [[DrawnFinding(*row) for row in drawn[0]]])
    assert scores.f1 == pytest.approx(2 / 3) and scores.positive_f1 == 1
    assert (scores.box_recall, scores.box_precision) == (1 / 2, 1 / 3)


def test_intersection_over_union_of_overlapping_and_of_distant_boxes():
    assert intersection_over_union((0, 0, 2, 1), (1, 0, 3, 1)) == pytest.approx(1 / 3)
    assert intersection_over_union((0, 0, 1, 1), (2, 2, 3, 3)) == 0
