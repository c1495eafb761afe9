"""The loss against its formula, drop path against its schedule, checkpointing against the gradients without it."""

import math

import numpy as np
import pytest
import torch

from medimage_export.medimageinsight.checkpoint import find_checkpoint, load_model, random_model
from medimage_training.unicl import unicl_loss, with_checkpointing, with_drop_path
from tests.export.medimageinsight.small import small_config

SMALL = small_config((32, 32), stages=2)


def test_loss_equals_the_published_formula_when_a_class_comes_twice():
    rng = np.random.default_rng(0)
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.standard_normal((2, 4, 8)))
    classes = [3, 0, 3, 1]
    logits = 20.0 * images @ texts.T
    expected = 0.0
    for scores in (logits, logits.T):
        for row, own in enumerate(classes):
            likely = np.exp(scores[row]) / np.exp(scores[row]).sum()
            positives = [column for column, other in enumerate(classes) if other == own]
            expected -= np.mean([math.log(likely[column]) for column in positives]) / len(classes) / 2
    loss = unicl_loss(*map(torch.tensor, (images, texts, classes)), torch.tensor(math.log(20.0)))
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_drop_path_leaves_out_branches_of_images_at_the_rate_of_the_last_block():
    model = random_model(SMALL)
    with_drop_path(model, 0.4)
    last = model.image_encoder.blocks[-1][-1].channel_block
    x = torch.randn(4000, 1, 1, SMALL.image.embed_dims[1])
    torch.manual_seed(0)
    whole = last.ffn.eval()(x) - x
    kept = last.ffn.train()(x) - x
    dropped = (kept == 0).flatten(1).all(dim=1)
    assert dropped.float().mean().item() == pytest.approx(0.4, abs=0.03)
    torch.testing.assert_close(kept[~dropped], whole[~dropped] / 0.6, rtol=1e-3, atol=1e-4)


def test_drop_path_of_a_process_is_its_part_of_that_of_all():
    x = torch.randn(6, 1, 1, SMALL.image.embed_dims[1])
    parts = []
    for process, processes, rows in ((0, 1, x), (0, 2, x[:3]), (1, 2, x[3:])):
        model = random_model(SMALL)
        with_drop_path(model, 0.5, processes=processes, process=process)
        torch.manual_seed(1)
        parts.append(model.image_encoder.blocks[-1][-1].channel_block.ffn.train()(rows))
    torch.testing.assert_close(torch.cat(parts[1:]), parts[0])


def test_checkpointing_changes_no_gradient_with_drop_path_on():
    gradients = []
    for checkpointing in (False, True):
        model = random_model(SMALL).requires_grad_(True).train()
        with_drop_path(model, 0.5)
        if checkpointing:
            with_checkpointing(model)
        torch.manual_seed(2)
        model.encode_image(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))[:, 0].sum().backward()
        gradients.append({name: p.grad for name, p in model.image_encoder.named_parameters()})
    assert [name for name, grad in gradients[0].items() if not torch.equal(grad, gradients[1][name])] == []


def test_written_weights_are_those_of_the_average(workplace, finished):
    """With a decay of 0.5 the average lies between the first weights and the trained ones."""
    state = torch.load(finished / "state.pt", weights_only=True)
    written = load_model(find_checkpoint(finished / "last")).state_dict()
    for name, tensor in written.items():
        assert torch.equal(tensor, state["ema"][f"module.{name}"])
    assert not torch.equal(written["image_projection"], state["model"]["image_projection"])
