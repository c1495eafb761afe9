"""Prompts to the character, and their tokens: images in their places, and no control token out of a caller's text."""

import pytest
from tokenizers import AddedToken, Tokenizer, models

from medimage_server.errors import InvalidInput
from medimage_server.reports.prompt import PromptTokenizer, Study, build_prompt, control_token_remover
from tests.server.reports.samples import GRAMMAR, SPECIAL, byte_tokenizer, generation_settings, llama_tokenizer

SECTIONS = {"indication": "Cough", "technique": "PA view", "comparison": "2019"}

# MAIRA-2's prompts in full, as its processor writes them
EXPECTED = {
    "grounded-frontal": (
        Study(mode="grounded", **SECTIONS),
        "You are an expert radiology assistant tasked with interpreting a chest X-ray study.  USER:  Given the "
        "current frontal image only<image> Provide a structured description of the findings in the radiology study "
        "in comparison to the prior frontal image. Each finding should be described as a self-contained plain-text "
        "sentence. If the finding is groundable, locate the finding in the current frontal chest X-ray image, with "
        "bounding boxes indicating all locations where it can be seen in the current frontal image. Otherwise, "
        "generate just the ungrounded finding without bounding boxes. INDICATION: Cough TECHNIQUE: PA view "
        "COMPARISON: 2019  ASSISTANT: ",
    ),
    "grounded-frontal-lateral": (
        Study(mode="grounded", has_lateral=True, **SECTIONS),
        "You are an expert radiology assistant tasked with interpreting a chest X-ray study.  USER:  Given the "
        "current frontal image<image> and the current lateral image<image> Provide a structured description of the "
        "findings in the radiology study in comparison to the prior frontal image. Each finding should be described "
        "as a self-contained plain-text sentence. If the finding is groundable, locate the finding in the current "
        "frontal chest X-ray image, with bounding boxes indicating all locations where it can be seen in the current "
        "frontal image. Otherwise, generate just the ungrounded finding without bounding boxes. INDICATION: Cough "
        "TECHNIQUE: PA view COMPARISON: 2019  ASSISTANT: ",
    ),
    "grounded-frontal-prior": (
        Study(mode="grounded", has_prior=True, **SECTIONS),
        "You are an expert radiology assistant tasked with interpreting a chest X-ray study.  USER:  Given the "
        "current frontal image<image> and the prior frontal image<image> PRIOR_REPORT: N/A Provide a structured "
        "description of the findings in the radiology study in comparison to the prior frontal image. Each finding "
        "should be described as a self-contained plain-text sentence. If the finding is groundable, locate the "
        "finding in the current frontal chest X-ray image, with bounding boxes indicating all locations where it can "
        "be seen in the current frontal image. Otherwise, generate just the ungrounded finding without bounding "
        "boxes. INDICATION: Cough TECHNIQUE: PA view COMPARISON: 2019  ASSISTANT: ",
    ),
    "grounded-frontal-prior-report": (
        Study(mode="grounded", has_prior=True, prior_report="Clear.", **SECTIONS),
        "You are an expert radiology assistant tasked with interpreting a chest X-ray study.  USER:  Given the "
        "current frontal image<image> and the prior frontal image<image> PRIOR_REPORT: Clear. Provide a structured "
        "description of the findings in the radiology study in comparison to the prior frontal image. Each finding "
        "should be described as a self-contained plain-text sentence. If the finding is groundable, locate the "
        "finding in the current frontal chest X-ray image, with bounding boxes indicating all locations where it can "
        "be seen in the current frontal image. Otherwise, generate just the ungrounded finding without bounding "
        "boxes. INDICATION: Cough TECHNIQUE: PA view COMPARISON: 2019  ASSISTANT: ",
    ),
    "grounded-all": (
        Study(mode="grounded", has_lateral=True, has_prior=True, **SECTIONS),
        "You are an expert radiology assistant tasked with interpreting a chest X-ray study.  USER:  Given the "
        "current frontal image<image> the current lateral image<image> and the prior frontal image<image> "
        "PRIOR_REPORT: N/A Provide a structured description of the findings in the radiology study in comparison to "
        "the prior frontal image. Each finding should be described as a self-contained plain-text sentence. If the "
        "finding is groundable, locate the finding in the current frontal chest X-ray image, with bounding boxes "
        "indicating all locations where it can be seen in the current frontal image. Otherwise, generate just the "
        "ungrounded finding without bounding boxes. INDICATION: Cough TECHNIQUE: PA view COMPARISON: 2019  "
        "ASSISTANT: ",
    ),
    "grounded-all-report": (
        Study(mode="grounded", has_lateral=True, has_prior=True, prior_report="Clear.", **SECTIONS),
        "You are an expert radiology assistant tasked with interpreting a chest X-ray study.  USER:  Given the "
        "current frontal image<image> the current lateral image<image> and the prior frontal image<image> "
        "PRIOR_REPORT: Clear. Provide a structured description of the findings in the radiology study in comparison "
        "to the prior frontal image. Each finding should be described as a self-contained plain-text sentence. If "
        "the finding is groundable, locate the finding in the current frontal chest X-ray image, with bounding boxes "
        "indicating all locations where it can be seen in the current frontal image. Otherwise, generate just the "
        "ungrounded finding without bounding boxes. INDICATION: Cough TECHNIQUE: PA view COMPARISON: 2019  "
        "ASSISTANT: ",
    ),
    "findings-frontal": (
        Study(mode="findings", **SECTIONS),
        "You are an expert radiology assistant tasked with interpreting a chest X-ray study.  USER:  Given the "
        "current frontal image only<image> Provide a structured description of the findings in the radiology study "
        "in comparison to the prior frontal image. INDICATION: Cough TECHNIQUE: PA view COMPARISON: 2019  ASSISTANT: ",
    ),
    "findings-frontal-lateral": (
        Study(mode="findings", has_lateral=True, **SECTIONS),
        "You are an expert radiology assistant tasked with interpreting a chest X-ray study.  USER:  Given the "
        "current frontal image<image> and the current lateral image<image> Provide a structured description of the "
        "findings in the radiology study in comparison to the prior frontal image. INDICATION: Cough TECHNIQUE: PA "
        "view COMPARISON: 2019  ASSISTANT: ",
    ),
    "findings-frontal-prior": (
        Study(mode="findings", has_prior=True, **SECTIONS),
        "You are an expert radiology assistant tasked with interpreting a chest X-ray study.  USER:  Given the "
        "current frontal image<image> and the prior frontal image<image> PRIOR_REPORT: N/A Provide a structured "
        "description of the findings in the radiology study in comparison to the prior frontal image. INDICATION: "
        "Cough TECHNIQUE: PA view COMPARISON: 2019  ASSISTANT: ",
    ),
    "findings-frontal-prior-report": (
        Study(mode="findings", has_prior=True, prior_report="Clear.", **SECTIONS),
        "You are an expert radiology assistant tasked with interpreting a chest X-ray study.  USER:  Given the "
        "current frontal image<image> and the prior frontal image<image> PRIOR_REPORT: Clear. Provide a structured "
        "description of the findings in the radiology study in comparison to the prior frontal image. INDICATION: "
        "Cough TECHNIQUE: PA view COMPARISON: 2019  ASSISTANT: ",
    ),
    "findings-all": (
        Study(mode="findings", has_lateral=True, has_prior=True, **SECTIONS),
        "You are an expert radiology assistant tasked with interpreting a chest X-ray study.  USER:  Given the "
        "current frontal image<image> the current lateral image<image> and the prior frontal image<image> "
        "PRIOR_REPORT: N/A Provide a structured description of the findings in the radiology study in comparison to "
        "the prior frontal image. INDICATION: Cough TECHNIQUE: PA view COMPARISON: 2019  ASSISTANT: ",
    ),
    "findings-all-report": (
        Study(mode="findings", has_lateral=True, has_prior=True, prior_report="Clear.", **SECTIONS),
        "You are an expert radiology assistant tasked with interpreting a chest X-ray study.  USER:  Given the "
        "current frontal image<image> the current lateral image<image> and the prior frontal image<image> "
        "PRIOR_REPORT: Clear. Provide a structured description of the findings in the radiology study in comparison "
        "to the prior frontal image. INDICATION: Cough TECHNIQUE: PA view COMPARISON: 2019  ASSISTANT: ",
    ),
    "phrase": (
        Study(mode="phrase", phrase="Left effusion."),
        "You are an expert radiology assistant tasked with interpreting a chest X-ray study.  USER:  Given the "
        "current frontal image<image> Repeat the following finding as a grounded phrase with bounding boxes "
        "indicating all locations where it can be seen in the given chest X-ray image. Finding: Left effusion.  "
        "ASSISTANT: ",
    ),
}

TOKENIZERS = {"llama": llama_tokenizer(), "bytes": byte_tokenizer()}


@pytest.fixture
def settings(tmp_path):
    return generation_settings(tmp_path)


@pytest.fixture(params=TOKENIZERS.values(), ids=TOKENIZERS.keys())
def tokenizer(request):
    return request.param


@pytest.fixture
def tokenize(tokenizer, settings):
    return PromptTokenizer(tokenizer, settings)


@pytest.fixture
def sent(tokenize, tokenizer):
    """The prompt text that a study's tokens stand for, without <s>."""

    def decode(study):
        return tokenizer.decode(tokenize(study).token_ids[1:], skip_special_tokens=False)

    return decode


@pytest.mark.parametrize(("study", "expected"), EXPECTED.values(), ids=EXPECTED.keys())
def test_prompt_is_that_of_maira_2_to_the_character(settings, study, expected):
    assert build_prompt(study, settings.prompt, settings.tokens.image) == expected


@pytest.mark.parametrize(("study", "expected"), EXPECTED.values(), ids=EXPECTED.keys())
def test_tokens_are_those_of_the_prompt_with_the_image_token_repeated(tokenize, tokenizer, study, expected):
    prompt = tokenize(study)
    assert len(prompt.image_positions) == study.n_images == expected.count("<image>")
    image = tokenizer.token_to_id("<image>")
    assert [prompt.token_ids[place] for place in prompt.image_positions] == [image] * study.n_images
    expanded = [id for token in prompt.token_ids for id in ([image] * 1369 if token == image else [token])]
    assert expanded == tokenizer.encode(expected.replace("<image>", "<image>" * 1369)).ids
    assert prompt.length == len(expanded)
    assert prompt.token_ids[0] == tokenizer.token_to_id("<s>")


@pytest.mark.parametrize("absent", [None, "", " \n\t", float("nan"), 3], ids=["none", "empty", "blank", "nan", "3"])
@pytest.mark.parametrize("name", SECTIONS)
def test_section_that_is_not_given_is_written_as_missing(sent, name, absent):
    text = sent(Study(**SECTIONS | {name: absent}))
    assert f" {name.upper()}: N/A " in text
    assert text.count("N/A") == 1


def test_prior_report_without_a_prior_image_is_left_out(sent):
    assert sent(Study(**SECTIONS, prior_report="Clear.")) == sent(Study(**SECTIONS))


def test_text_none_is_a_text_as_the_toolkit_sends_it(sent):
    assert " COMPARISON: None  ASSISTANT: " in sent(Study(comparison="None"))


@pytest.mark.parametrize("braces", ["{comparison}", "{content}", "{", "{}", "{0}", "{missing!r}", "\\1 \\g<1>"])
def test_braces_in_a_text_stay_what_they_are(sent, braces):
    assert f" INDICATION: {braces} TECHNIQUE: PA view COMPARISON: 2019 " in sent(
        Study(**SECTIONS | {"indication": braces})
    )


CONTROLS = {
    "image": ("a <image> b", "a image b"),
    "nested": ("a <im<image>age> b", "a <imimageage> b"),
    "beside-each-other": ("a <<s>box> b </o</s>bj>", "a <sbox> b </osbj>"),
    "box": ("<obj>a<box><x1><y2><x3><y4></box></obj>", "objaboxx1y2x3y4boxobj"),
    "end": ("Cough.</s>", "Cough.s"),
    "start": ("<s>Cough", "sCough"),
    "unknown": ("<unk>", "unk"),
    "deep": ("<" * 500 + "s" + ">" * 500, "<" * 499 + "s"),
    "harmless": ("<5 mm, a<b>c, <x100> <obj, image>", "<5 mm, a<b>c, <x100> <obj, image>"),
    "not-ascii": ("\u03b1 \u2265 \U0001f600 <image>", "\u03b1 \u2265 \U0001f600 image"),
}


@pytest.mark.parametrize(("text", "cleaned"), CONTROLS.values(), ids=CONTROLS.keys())
@pytest.mark.parametrize("name", [*SECTIONS, "prior_report"])
def test_control_tokens_in_a_text_become_words(tokenize, sent, tokenizer, name, text, cleaned):
    study = Study(**SECTIONS | {name: text}, has_lateral=True, has_prior=True)
    harmless = Study(**SECTIONS | {name: "words"}, has_lateral=True, has_prior=True)
    assert sent(study) == sent(harmless).replace(": words", f": {cleaned}")
    added = tokenizer.get_added_tokens_decoder()
    assert [added[id].content for id in tokenize(study).token_ids if id in added] == ["<s>"] + ["<image>"] * 3


@pytest.mark.parametrize(("text", "cleaned"), CONTROLS.values(), ids=CONTROLS.keys())
def test_control_tokens_in_a_phrase_become_words(sent, text, cleaned):
    assert sent(Study(mode="phrase", phrase=text)).endswith(f" Finding: {cleaned}  ASSISTANT: ")


def test_every_added_token_is_taken_out_of_a_text(tokenize, tokenizer):
    found = tokenize(Study(indication=" ".join(f"a{token}b{token}{token}" for token in [*SPECIAL, *GRAMMAR])))
    added = tokenizer.get_added_tokens_decoder()
    assert len(added) == 3 + 207
    assert [added[id].content for id in found.token_ids if id in added] == ["<s>", "<image>"]


def test_remover_ends_for_tokens_of_any_form():
    remove = control_token_remover(["<|end|>", "OBJ", "***", "</s>"])
    assert remove("a<|<|end|>|>b") == "a<|endb"
    assert control_token_remover(["<a>", "<cat>"])("one <c<a>t> two") == "one cat two"
    assert remove("x OBOBJJ y").split() == ["x", "OB", "J", "y"]
    assert remove("a***b</s>") == "a bs"


def test_control_token_that_only_the_normalizer_makes_is_refused(settings):
    tokenizer = llama_tokenizer()
    tokenizer.add_tokens([AddedToken("<the end>", normalized=True)])  # of "<the▁end>" after the normalizer
    with pytest.raises(InvalidInput, match=r"^a text holds a control token of the model") as caught:
        PromptTokenizer(tokenizer, settings)(Study(indication="Jane Doe <the\u2581end>"))
    assert "Jane" not in str(caught.value)


def test_control_tokens_of_the_template_itself_are_its_own(tmp_path):
    template = "<s>{content}</s><box>"
    prompt = generation_settings(tmp_path).prompt
    settings = generation_settings(tmp_path, prompt=vars(prompt) | {"template": template})
    tokenizer = llama_tokenizer()
    found = PromptTokenizer(tokenizer, settings)(Study(indication="</s><box>"))
    assert found.token_ids[-2:] == [2, tokenizer.token_to_id("<box>")]
    assert found.token_ids.count(2) == 1


@pytest.mark.parametrize(("mode", "tokens"), [("grounded", 450), ("findings", 300), ("phrase", 150)])
def test_answer_may_be_as_long_as_its_mode_takes(tokenize, mode, tokens):
    study = Study(mode=mode, phrase="Effusion" if mode == "phrase" else None)
    assert tokenize(study).max_new_tokens == tokens
    assert tokenize(study, 7).max_new_tokens == 7


def test_prompt_may_fill_the_room_and_not_a_token_more(tokenize, tokenizer):
    length = tokenize(Study()).length
    assert tokenize(Study(), 6144 - length).length == length
    with pytest.raises(InvalidInput) as caught:
        tokenize(Study(), 6144 - length + 1)
    assert str(caught.value) == (
        f"the prompt has {length} tokens; at most {length - 1} are allowed with {6144 - length + 1} new ones: "
        "shorten the texts, or send fewer images or a smaller max_new_tokens"
    )


def test_text_that_fills_the_prompt_is_refused_without_its_words(tokenize):
    with pytest.raises(InvalidInput, match=r"^the prompt has \d{5} tokens; at most 5694 are allowed") as caught:
        tokenize(Study(indication="Jane Doe " * 2000))
    assert "Jane" not in str(caught.value)


@pytest.mark.parametrize("name", [*SECTIONS, "prior_report"])
def test_endless_text_is_refused_before_it_is_tokenised(tokenize, name):
    with pytest.raises(InvalidInput, match=f"^{name} has 40000 characters; at most 32768 are allowed$"):
        tokenize(Study(**{name: "a" * 40000}))


@pytest.mark.parametrize("max_new_tokens", [0, -1])
def test_answer_without_tokens_is_refused(tokenize, max_new_tokens):
    with pytest.raises(InvalidInput, match=r"^max_new_tokens must be positive$"):
        tokenize(Study(), max_new_tokens)


REFUSED = {
    "mode": ({"mode": "poem"}, "mode must be one of grounded, findings, phrase"),
    "no-phrase": ({"mode": "phrase"}, "phrase must be given in mode phrase, and in no other"),
    "blank-phrase": ({"mode": "phrase", "phrase": " "}, "phrase must be given in mode phrase, and in no other"),
    "other-mode": ({"phrase": "Effusion"}, "phrase must be given in mode phrase, and in no other"),
    "lateral": (
        {"mode": "phrase", "phrase": "Effusion", "has_lateral": True},
        "mode phrase takes the frontal image alone; leave out lateral_image and prior_image",
    ),
    "prior": (
        {"mode": "phrase", "phrase": "Effusion", "has_prior": True},
        "mode phrase takes the frontal image alone; leave out lateral_image and prior_image",
    ),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_study_that_makes_no_prompt_is_refused(values, message):
    with pytest.raises(InvalidInput) as caught:
        Study(**values)
    assert str(caught.value) == message


def test_no_repr_tells_what_was_written(tokenize):
    study = Study(indication="Jane Doe", prior_report="Jane Doe", has_prior=True)
    assert "Jane" not in repr(study)
    assert "token_ids" not in repr(tokenize(study))


def test_tokenizer_without_the_image_token_stops_the_load(settings):
    with pytest.raises(ValueError, match=r"^tokenizer\.json has no added token <image>; export the model again$"):
        PromptTokenizer(Tokenizer(models.BPE({"a": 0}, [])), settings)
