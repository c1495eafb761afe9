"""Freezing, weight decay and learning rates, by the published names."""

import math

import pytest
import torch

from medimage_client.errors import InvalidInput
from medimage_export.medimageinsight.config import MedImageInsightConfig
from medimage_export.medimageinsight.reference import UniCL
from medimage_training.config import read_fine_tuning
from medimage_training.parameters import freeze, learning_rate, parameter_groups
from tests.training.test_config import GASTROVISION


@pytest.fixture(scope="module")
def model():
    """Full size, without numbers."""
    with torch.device("meta"):
        return UniCL(MedImageInsightConfig())


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "train.yaml"
    path.write_text(GASTROVISION)
    inputs = {name: path for name in ("mlflow_embedding_model_path", "image_tsv", "text_tsv", "eval_image_tsv")}
    return read_fine_tuning(path, inputs=inputs, output=path.parent)


def test_pattern_without_its_prefix_is_said_to_match_nothing(model):
    said = freeze(model, ["^lang_encoder.token_embedding", r"^convs\.", r"^blocks.0\."])
    assert [line.partition(" of the checkpoint")[0] for line in said] == [
        r"FREEZE_PATTERNS: '^convs\\.' MATCHES NO TENSOR",
        r"FREEZE_PATTERNS: '^blocks.0\\.' MATCHES NO TENSOR",
    ]
    assert said[0].endswith(r"'^image_encoder\\.convs\\.' would freeze 16")
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["lang_encoder.token_embedding.weight"]


def test_patterns_that_freeze_everything_are_refused(model):
    with pytest.raises(InvalidInput, match="leave nothing to train"):
        freeze(model, ["encoder|projection|logit"])


def test_decay_is_left_off_for_biases_norms_and_depthwise_convolutions(model, options):
    freeze(model, [])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decays = {
        names[id(p)]: group["weight_decay"] for group in parameter_groups(model, options) for p in group["params"]
    }
    assert len(decays) == 601
    block = "image_encoder.blocks.0.0.spatial_block"
    assert decays[f"{block}.conv1.fn.dw.weight"] == decays[f"{block}.ffn.norm.weight"] == 0
    assert decays[f"{block}.ffn.fn.net.fc1.bias"] == decays["logit_scale"] == 0
    assert decays[f"{block}.ffn.fn.net.fc1.weight"] == decays["lang_encoder.resblocks.0.ln_1.weight"] == 0.4


def test_learning_rate_warms_up_and_follows_the_cosine(options):
    rates = [learning_rate(step, 100, options) for step in range(100)]
    assert rates[0] == 1e-9 and rates[5] == max(rates)
    assert rates[1] - rates[0] == pytest.approx((5e-6 - 1e-9) / 5)
    assert rates[50] == pytest.approx((5e-6 + 1e-9) / 2)
    assert rates[25] == pytest.approx(1e-9 + (5e-6 - 1e-9) * (1 + math.sqrt(0.5)) / 2)
