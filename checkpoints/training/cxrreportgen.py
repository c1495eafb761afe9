"""Train the phantom checkpoint: MAIRA-2 at a few ten-thousandths of its size, on drawings.

    python -m checkpoints.training.cxrreportgen --output checkpoints/cxrreportgen-phantom

Seeded, on the CPU with two threads. Two stages: the image encoder learns what the drawings show and where, then the
decoder learns to write reports from its tokens. The checkpoint's README has the scores of the weights that are shipped.
"""

import resource
from pathlib import Path

import click
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from checkpoints.training.optimisation import Round
from checkpoints.training.report_decoder import extract_features, train_decoder
from checkpoints.training.report_image_encoder import train_image_encoder
from checkpoints.training.report_scores import Scores, read_report, score, write_reports
from checkpoints.training.report_texts import BEGIN, END, TOKENS, UNKNOWN, build_report_tokenizer
from checkpoints.training.study_examples import draw_examples
from medimage_export.cxrreportgen.checkpoint import DECODER, load_image_encoder, open_checkpoint, reference_decoder
from medimage_export.cxrreportgen.config import CXRReportGenConfig, DecoderConfig, VisionConfig
from medimage_export.cxrreportgen.image_encoder import ImageEncoder
from medimage_export.phantoms.chest_study import TEST_SEEDS, TRAIN_SEEDS, VALIDATION_SEEDS
from medimage_export.repository import write_json

THREADS = 2
IMAGE_ROUNDS = (Round(1200, batch=24, learning_rate=1e-3), Round(2400, batch=12, learning_rate=1.5e-3))
REPORT_ROUNDS = (Round(900, batch=8, learning_rate=2e-3), Round(1500, batch=8, learning_rate=1.5e-3))
PRIORS = 300  # studies, from the first on, that have an earlier visit


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder of the checkpoint to write.")
def main(output: Path) -> None:
    """Train the phantom checkpoint and write it in the published layout."""
    torch.set_num_threads(THREADS)
    tokenizer = build_report_tokenizer()
    config = phantom_config(tokenizer.get_vocab_size())
    size = config.vision.image_size

    examples = draw_examples(TRAIN_SEEDS, size)
    encoder = train_image_encoder(config, examples, IMAGE_ROUNDS)
    current = extract_features(encoder, examples)
    prior = extract_features(encoder, draw_examples(TRAIN_SEEDS[:PRIORS], size, visit=1))
    decoder = train_decoder(encoder, tokenizer, current, prior, REPORT_ROUNDS)
    write_checkpoint(output, encoder, decoder, tokenizer)

    for name, seeds in (("validation", VALIDATION_SEEDS), ("test", TEST_SEEDS)):
        for with_lateral in (False, True):
            scores = score_checkpoint(output, tokenizer, seeds, with_lateral=with_lateral)
            click.echo(f"{name}, {'with' if with_lateral else 'without'} lateral views: {scores}")
    click.echo(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")  # Linux counts KiB


def phantom_config(vocab_size: int) -> CXRReportGenConfig:
    """MAIRA-2 with smaller widths, fewer blocks, and patches of 37 pixels: 14 x 14 tokens per image."""
    return CXRReportGenConfig(
        vision=VisionConfig(patch_size=37, hidden_size=96, num_layers=5, num_heads=3),
        projector_layers=2,
        decoder=DecoderConfig(
            hidden_size=128,
            intermediate_size=256,
            num_layers=3,
            num_heads=4,
            num_kv_heads=4,
            vocab_size=vocab_size,
            max_position_embeddings=2048,
        ),
    )


def write_checkpoint(output: Path, encoder: ImageEncoder, decoder: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Write the files of a Hugging Face folder, tensors in float16 and named as transformers 4.51 named them."""
    output.mkdir(parents=True, exist_ok=True)
    config = encoder.config
    special = {name: tokenizer.token_to_id(token) for name, token in (("bos", BEGIN), ("eos", END), ("pad", UNKNOWN))}
    ids = {f"{name}_token_id": id for name, id in special.items()}
    write_json(output / "config.json", model_config(config, ids, tokenizer.token_to_id(TOKENS.image)))
    write_json(output / "preprocessor_config.json", preprocessor_config(config.vision))
    write_json(output / "generation_config.json", ids)
    tokenizer.save(str(output / "tokenizer.json"))
    tensors = encoder.state_dict() | {DECODER + name: tensor for name, tensor in decoder.state_dict().items()}
    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, output / "model.safetensors")


def model_config(config: CXRReportGenConfig, special_ids: dict[str, int], image_token_index: int) -> dict:
    """`config.json` with the keys of MAIRA-2's."""
    vision, decoder = config.vision, config.decoder
    return {
        "architectures": ["Maira2ForConditionalGeneration"],
        "model_type": "maira2",
        "torch_dtype": "float16",
        "hidden_size": decoder.hidden_size,
        "ignore_index": -100,
        "image_token_index": image_token_index,
        "pad_token_id": special_ids["pad_token_id"],
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "projector_n_layers": config.projector_layers,
        "vision_feature_layer": vision.feature_layer,
        "vision_feature_select_strategy": "default",
        "text_config": {
            "model_type": decoder.model_type,
            "architectures": ["LlamaForCausalLM"],
            "hidden_act": "silu",
            "hidden_size": decoder.hidden_size,
            "intermediate_size": decoder.intermediate_size,
            "num_hidden_layers": decoder.num_layers,
            "num_attention_heads": decoder.num_heads,
            "num_key_value_heads": decoder.num_kv_heads,
            "vocab_size": decoder.vocab_size,
            "rms_norm_eps": decoder.rms_norm_eps,
            "max_position_embeddings": decoder.max_position_embeddings,
            "rope_theta": decoder.rope_theta,
            "rope_scaling": {"factor": decoder.rope_factor, "rope_type": decoder.rope_type},
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            **special_ids,
        },
        "vision_config": {
            "model_type": "dinov2",
            "architectures": ["Dinov2Backbone"],
            "hidden_act": "gelu",
            "hidden_size": vision.hidden_size,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "mlp_ratio": vision.mlp_ratio,
            "patch_size": vision.patch_size,
            "image_size": vision.image_size,
            "num_channels": 3,
            "layer_norm_eps": vision.layer_norm_eps,
            "qkv_bias": True,
            "use_swiglu_ffn": False,
            "apply_layernorm": vision.final_norm,
            "reshape_hidden_states": False,
            "out_features": [f"stage{vision.num_layers}"],
        },
    }


def preprocessor_config(vision: VisionConfig) -> dict:
    """`preprocessor_config.json` with the keys of MAIRA-2's."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": vision.image_size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": vision.image_size, "width": vision.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
    }


def score_checkpoint(folder: Path, tokenizer: Tokenizer, seeds: range, *, with_lateral: bool) -> Scores:
    """Scores of grounded reports on drawn studies, by the weights as they lie in the folder."""
    config, tensors = open_checkpoint(folder)
    encoder, decoder = load_image_encoder(config, tensors), reference_decoder(config.decoder)
    decoder.load_state_dict({name: tensors.read(DECODER + name).float() for name in decoder.state_dict()})
    features = extract_features(encoder, draw_examples(seeds, config.vision.image_size))
    projector = encoder.multi_modal_projector
    reports = write_reports(projector, decoder.eval(), tokenizer, features, with_lateral=with_lateral)
    return score([read_report(report) for report in reports], [study.findings for study in features.studies])


if __name__ == "__main__":
    main()
