"""The shipped report checkpoint has the published layout and reports studies that it has never seen."""

import json
import re

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer

from checkpoints.training.cxrreportgen import (
    model_config,
    phantom_config,
    preprocessor_config,
    score_checkpoint,
)
from checkpoints.training.report_texts import build_report_tokenizer
from medimage_export.cxrreportgen.checkpoint import open_checkpoint
from medimage_export.cxrreportgen.config import PromptStrings, TokenStrings
from medimage_export.phantoms import STUDY_TEST_SEEDS
from tests.amounts import amounts
from tests.paths import ROOT

CHECKPOINT = ROOT / "checkpoints" / "cxrreportgen-phantom"
TOKENIZER = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))

# Names of the published 522 tensors, without the mask token, which only training needs.
BLOCK = (
    r"(norm1|norm2|attention\.attention\.(query|key|value)|attention\.output\.dense|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
)
LAYER = r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj|input_layernorm|post_attention_layernorm)\.weight"
PUBLISHED = re.compile(
    r"vision_tower\.(embeddings\.(cls_token|position_embeddings|patch_embeddings\.projection\.(weight|bias))|"
    rf"encoder\.layer\.\d+\.({BLOCK}|layer_scale[12]\.lambda1)|layernorm\.(weight|bias))|"
    r"multi_modal_projector\.layers\.\d+\.(weight|bias)|"
    rf"language_model\.(model\.(embed_tokens\.weight|layers\.\d+\.{LAYER}|norm\.weight)|lm_head\.weight)"
)


def test_checkpoint_loads_strictly_and_is_small():
    config, _ = open_checkpoint(CHECKPOINT)
    assert config == phantom_config(TOKENIZER.get_vocab_size())
    assert (config.prompt, config.tokens) == (PromptStrings(), TokenStrings())
    assert config.vision.tokens_per_image == 196 and config.decoder.rope_factor == 1.5
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 6_000_000


def test_checkpoint_has_tensor_names_of_the_published_layout():
    names = load_file(CHECKPOINT / "model.safetensors").keys()
    assert [name for name in names if not PUBLISHED.fullmatch(name)] == []
    config = phantom_config(8)
    blocks, layers = config.vision.num_layers, config.decoder.num_layers
    assert len(names) == 6 + 18 * blocks + 2 * config.projector_layers + 3 + 9 * layers


def test_files_written_by_training_are_those_of_the_shipped_checkpoint():
    config = phantom_config(TOKENIZER.get_vocab_size())
    special = json.loads((CHECKPOINT / "generation_config.json").read_text())
    assert special == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    image = TOKENIZER.token_to_id("<image>")
    assert json.loads((CHECKPOINT / "config.json").read_text()) == model_config(config, special, image)
    preprocessor = json.loads((CHECKPOINT / "preprocessor_config.json").read_text())
    assert preprocessor == preprocessor_config(config.vision)
    assert build_report_tokenizer().to_str() == TOKENIZER.to_str()


@pytest.mark.parametrize("n_studies", amounts(1, 8))
@pytest.mark.parametrize("with_lateral", [False, True], ids=["frontal", "lateral"])
def test_checkpoint_reports_unseen_studies(with_lateral, n_studies):
    """On 100 studies it does better, see its README; few are drawn here."""
    scores = score_checkpoint(CHECKPOINT, TOKENIZER, STUDY_TEST_SEEDS[:n_studies], with_lateral=with_lateral)
    assert scores.f1 >= 0.95
    assert scores.box_recall >= 0.65 and scores.box_precision >= 0.65
