"""Training of the report checkpoint, on a model small enough to train in a test."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from checkpoints.training import optimisation, report_decoder, report_image_encoder
from checkpoints.training.cxrreportgen import phantom_config, write_checkpoint
from checkpoints.training.optimisation import Round
from checkpoints.training.report_decoder import ReportLoss, extract_features, jumbled, prompt_ids, train_decoder
from checkpoints.training.report_image_encoder import (
    Probe,
    grey_features,
    patch_findings,
    probe_loss,
    soft_coordinates,
    train_image_encoder,
)
from checkpoints.training.report_texts import build_report_tokenizer
from checkpoints.training.study_examples import draw_examples, stretched
from medimage_export.cxrreportgen.checkpoint import load_image_encoder, open_checkpoint, reference_decoder
from medimage_export.cxrreportgen.config import CXRReportGenConfig, DecoderConfig, VisionConfig
from medimage_export.cxrreportgen.image_encoder import ImageEncoder
from medimage_export.phantoms.chest_study import SENTENCES, chest_study
from medimage_server.reports.chest_xray import ChestXrayPreprocessor, ChestXraySettings

SIZE = 112
TOKENIZER = build_report_tokenizer()
TINY = CXRReportGenConfig(
    vision=VisionConfig(image_size=SIZE, patch_size=28, hidden_size=32, num_layers=1, num_heads=2),
    projector_layers=2,
    decoder=DecoderConfig(
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        vocab_size=TOKENIZER.get_vocab_size(),
        max_position_embeddings=2048,
    ),
)


@pytest.fixture(scope="module")
def examples():
    return draw_examples(range(16), SIZE, processes=1)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return ImageEncoder(TINY).eval()


def test_features_of_grey_pixels_are_those_of_the_encoder(encoder, examples):
    pixels = examples.frontal[:3]
    with torch.no_grad():
        tokens = encoder.multi_modal_projector(grey_features(encoder, pixels))
        torch.testing.assert_close(tokens, encoder(pixels), rtol=1e-4, atol=1e-5)


def test_patch_shows_the_finding_that_covers_it():
    """Two patches of four show something: all of one, and a part of another that is large enough."""
    labels = torch.zeros(1, 16, 16, dtype=torch.uint8)  # of 7 pixels each; a patch has 8 x 8
    labels[0, :8, 8:] = 3
    labels[0, 8:, :4] = 5
    labels[0, 8:10, 8:10] = 7  # too little of its patch
    assert patch_findings(labels, 112, 56).tolist() == [[0, 3, 5, 0]]


def test_soft_coordinates_have_their_peak_and_mean_at_the_edge():
    edges = torch.tensor([0.105, 0.5, 0.87])
    soft = soft_coordinates(edges)
    np.testing.assert_allclose(soft.sum(-1), 1, rtol=1e-5)
    assert soft.argmax(-1).tolist()[::2] == [10, 87] or soft.argmax(-1).tolist()[::2] == [10, 86]
    np.testing.assert_allclose(soft @ (torch.arange(100) + 0.5) / 100, edges, atol=1e-3)


def test_augmented_labels_and_boxes_move_with_the_image(examples, monkeypatch):
    """A box still encloses its labels when both have moved; nothing is mirrored."""
    torch.manual_seed(3)
    monkeypatch.setattr(report_image_encoder, "LATERAL_SHARE", 100)  # of 16 images none
    _, labels, boxes = report_image_encoder.augmented(examples, torch.arange(16))
    side = labels.shape[1]
    for image, moved in zip(labels, boxes, strict=True):
        for number in range(1, 1 + len(SENTENCES)):
            rows, columns = (image == number).nonzero(as_tuple=True)
            if len(rows):
                x0, y0, x1, y1 = moved[number - 1].tolist()
                assert x0 * side <= columns.min() + 1 and columns.max() <= x1 * side
                assert y0 * side <= rows.min() + 1 and rows.max() <= y1 * side


def test_image_encoder_learns(examples, monkeypatch):
    losses: list[float] = []
    monkeypatch.setattr(optimisation, "progress", lambda name, steps: lambda step, loss: losses.append(loss))
    train_image_encoder(TINY, examples, [Round(20, batch=12, learning_rate=1e-3)])
    assert np.mean(losses[-3:]) < 0.9 * losses[0]


def test_probe_loss_of_a_batch_without_findings_is_finite(encoder, examples):
    nowhere = torch.full((8, len(SENTENCES), 4), torch.nan)
    loss = probe_loss(Probe(32), encoder, examples.frontal[:8], torch.zeros_like(examples.labels[:8]), nowhere)
    assert loss.isfinite()


def test_report_loss_is_that_of_the_answer_alone(encoder, examples):
    """Against a sum over the answer's tokens, one prompt at a time, for an answer without coordinates."""
    torch.manual_seed(0)
    decoder = reference_decoder(TINY.decoder).eval()
    features = extract_features(encoder, examples)
    prompts, answers = ["Given<image> a", "Given<image> the heart size"], ["The lungs are clear.", "The heart"]
    batch = report_decoder.Batch([features.frontal[:2]], prompts, answers)
    with torch.no_grad():
        loss = ReportLoss(TOKENIZER)(encoder.multi_modal_projector, decoder, batch).item()
        costs = []
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            before = TOKENIZER.encode(prompt).ids
            said = [*TOKENIZER.encode(answer, add_special_tokens=False).ids, TOKENIZER.token_to_id("</s>")]
            at = before.index(TOKENIZER.token_to_id("<image>"))
            embeds = decoder.model.embed_tokens(torch.tensor(before + said))
            image = encoder.multi_modal_projector(features.frontal[row].float())
            whole = torch.cat([embeds[:at], image, embeds[at + 1 :]])[None]
            logits = decoder(inputs_embeds=whole).logits[0].log_softmax(-1)
            costs += [-logits[i - len(said) - 1, token].item() for i, token in enumerate(said)]
    assert loss == pytest.approx(np.mean(costs), rel=1e-4)


def test_coordinate_next_to_the_right_one_costs_less_than_a_far_one():
    targets = ReportLoss(TOKENIZER).targets
    x10, x11, x40, y10 = (TOKENIZER.token_to_id(token) for token in ("<x10>", "<x11>", "<x40>", "<y10>"))
    assert targets[x10].sum().item() == pytest.approx(1)
    assert targets[x10, x10] > targets[x10, x11] > 0.1 > targets[x10, x40] == targets[x10, y10] == 0


@pytest.mark.soak
def test_decoder_learns_and_the_written_folder_loads_strictly(encoder, examples, monkeypatch, tmp_path):
    losses: list[float] = []
    monkeypatch.setattr(optimisation, "progress", lambda name, steps: lambda step, loss: losses.append(loss))
    features = extract_features(encoder, examples)
    decoder = train_decoder(encoder, TOKENIZER, features, features, [Round(30, batch=8, learning_rate=2e-3)])
    assert np.mean(losses[-3:]) < 0.9 * losses[0]

    write_checkpoint(tmp_path, encoder, decoder, TOKENIZER)
    config, tensors = open_checkpoint(tmp_path)
    assert replace(config, prompt=TINY.prompt) == TINY
    loaded = load_image_encoder(config, tensors)
    with torch.no_grad():
        tokens, expected = (model(examples.frontal[:2]) for model in (loaded, encoder))
    torch.testing.assert_close(tokens, expected, rtol=0.02, atol=0.02)  # float16 in the file
    written = tensors.read("language_model.lm_head.weight")
    torch.testing.assert_close(written, decoder.lm_head.weight.detach().half())
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).to_str() == TOKENIZER.to_str()
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 2


def test_jumbled_study_differs_in_its_indication_alone():
    study = chest_study(4, size=16)
    changed = jumbled(study)
    assert changed.indication != study.indication
    assert replace(changed, indication=study.indication) == study


def test_prompt_ids_repeat_the_image_token_for_each_row_of_an_image():
    once, often = (prompt_ids(TOKENIZER, "Given<image> and<image>.", n) for n in (1, 5))
    image = TOKENIZER.token_to_id("<image>")
    assert once.count(image) == 2 and often.count(image) == 10 and len(often) == len(once) + 8


def test_training_pixels_are_those_of_the_served_preprocessing():
    size = phantom_config(8).vision.image_size
    drawn = chest_study(3, size=size).lateral
    png = io.BytesIO()
    Image.fromarray(drawn).save(png, "PNG")
    settings = ChestXraySettings(max_encoded_bytes=2**20, max_pixels=size * size, image_size=size, stretch=True)
    np.testing.assert_array_equal(stretched(drawn), ChestXrayPreprocessor(settings)([png.getvalue()])[0])
