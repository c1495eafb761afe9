"""The configuration, from what is published and from what a user adds."""

import json
import re

import pytest

from medimage_export.cxrreportgen.config import CXRReportGenConfig, PromptStrings, read_config
from medimage_export.errors import ConfigError
from tests.export.cxrreportgen.small import LLAMA, LONGROPE, PHI3, config_json


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))


def read_with(tmp_path, **files):
    """`config` and others replace the files of a Llama checkpoint."""
    for name, content in ({"config": config_json(LLAMA)} | files).items():
        write(tmp_path, f"{name}.json", content)
    return read_config(tmp_path)


@pytest.mark.parametrize("config", [LLAMA, PHI3, LONGROPE, CXRReportGenConfig()])
def test_read_gives_what_was_written(tmp_path, config):
    assert read_with(tmp_path, config=config_json(config)) == config


def test_keys_of_transformers_5(tmp_path):
    content = config_json(LLAMA)
    del content["text_config"]["rope_scaling"]
    content["text_config"]["rope_parameters"] = {"rope_type": "linear", "factor": 1.5, "rope_theta": 10000.0}
    assert read_with(tmp_path, config=content) == LLAMA


def test_defaults_are_maira2s(tmp_path):
    differing = {"vocab_size": 32207, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}  # from transformers' Llama
    content = {"model_type": "maira2", "text_config": {**differing, "rope_scaling": {"type": "linear", "factor": 1.5}}}
    assert read_with(tmp_path, config=content) == CXRReportGenConfig()


def test_absent_keys_of_the_decoder_mean_what_they_mean_to_transformers(tmp_path):
    llama = read_with(tmp_path, config={"text_config": {}}).decoder
    assert (llama.rms_norm_eps, llama.max_position_embeddings, llama.rope_type) == (1e-6, 2048, "default")
    phi3 = read_with(tmp_path, config={"text_config": {"model_type": "phi3"}})
    assert (phi3.decoder.rms_norm_eps, phi3.decoder.sliding_window, phi3.eos_token_ids) == (1e-5, None, (32000,))


def test_context_is_stretched_by_linear_scaling():
    assert CXRReportGenConfig().decoder.max_length == 6144
    assert PHI3.decoder.max_length == 4096


def test_preprocessor_and_generation_files(tmp_path):
    clip = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    config = read_with(tmp_path, preprocessor_config=clip, generation_config={"eos_token_id": [2, 7]})
    assert config.vision.image_mean == (0.48145466, 0.4578275, 0.40821073)
    assert config.vision.image_std == (0.26862954, 0.26130258, 0.27577711)
    assert config.eos_token_ids == (2, 7)


def test_settings_file_wins(tmp_path):
    settings = {
        "vision": {"feature_layer": -2, "final_norm": False, "stretch": False, "image_mean": [0.5, 0.5, 0.5]},
        "decoder": {"sliding_window": 100},
        "projector_layers": 1,
        "prompt": {"missing": "None"},
        "tokens": {"image": "<|image|>"},
        "eos_token_ids": [9],
    }
    config = read_with(tmp_path, cxrreportgen=settings)
    assert (config.vision.feature_layer, config.vision.final_norm, config.vision.stretch) == (-2, False, False)
    assert config.vision.image_mean == (0.5, 0.5, 0.5)
    assert config.vision.blocks_used == LLAMA.vision.num_layers - 1
    assert (config.decoder.sliding_window, config.projector_layers) == (100, 1)
    assert (config.prompt.missing, config.tokens.image, config.eos_token_ids) == ("None", "<|image|>", (9,))


def test_chat_template_gives_the_turns(tmp_path):
    # In the manner of Hugging Face's; with MAIRA-2's turns it must give MAIRA-2's prompt
    template = (
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ 'You are an expert radiology assistant tasked with interpreting a chest X-ray study.  USER:  ' }}"
        "{% for item in message['content'] %}{% if item['type'] == 'text' %}{{ item['text'] }}"
        "{% elif item['type'] == 'image' %}<image>{% endif %}{% endfor %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '  ASSISTANT: ' }}{% endif %}"
    )
    assert read_with(tmp_path, chat_template={"chat_template": template}).prompt == PromptStrings()
    other = template.replace("USER:", "<|user|>")
    assert "<|user|>" in read_with(tmp_path, chat_template={"chat_template": other}).prompt.template


def test_prompt_defaults_have_the_published_lengths():
    # 611 bytes of chat_template.json hold this text with its double spaces
    assert PromptStrings().template == (
        "You are an expert radiology assistant tasked with interpreting a chest X-ray study.  USER:  {content}"
        "  ASSISTANT: "
    )


def changed(**text_config):
    content = config_json(PHI3)
    content["text_config"] |= text_config
    return {"config": content}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (changed(model_type="gpt2"), "text_config.model_type is 'gpt2'; expected 'llama' or 'phi3'"),
        (changed(hidden_act="gelu"), "text_config.hidden_act is 'gelu'; expected 'silu'"),
        (changed(hidden_size="64"), "text_config.hidden_size is '64'; expected int"),
        (changed(rope_scaling={"type": "yarn"}), "rope_type is None; expected default, linear or longrope"),
        (changed(rope_scaling={"type": "longrope", "short_factor": [1]}), "longrope needs 8 short and 8 long factors"),
        (changed(tie_word_embeddings=True), "tie_word_embeddings is True"),
        (changed(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
        (changed(num_attention_heads=5), "hidden_size is not a multiple of num_attention_heads"),
        (changed(sliding_window=0), "sliding_window is 0"),
        ({"config": config_json(LLAMA) | {"projector_n_layers": 0}}, "projector_n_layers is 0; expected 1 or more"),
        ({"config": config_json(LLAMA) | {"vision_feature_layer": -9}}, "vision_feature_layer -9 does not exist"),
        (
            {"config": config_json(LLAMA) | {"vision_feature_layer": "last"}},
            "vision_feature_layer is 'last'; expected int",
        ),
        (
            {"config": config_json(LLAMA) | {"vision_feature_select_strategy": "cls"}},
            "'cls'; expected 'default' or 'full'",
        ),
        ({"cxrreportgen": {"visoin": {}}}, "unknown keys ['visoin']"),
        ({"cxrreportgen": {"vision": {"size": 1}}}, "vision.size is unknown"),
        ({"cxrreportgen": {"vision": {"stretch": 1}}}, "vision.stretch is 1; expected bool"),
        ({"chat_template": {"chat_template": "{{ nothing"}}, "cannot be rendered"),
        ({"chat_template": {"chat_template": "no text"}}, "does not show a text of the user once"),
        ({"preprocessor_config": {"image_mean": [0.5]}}, "image_mean and image_std need three values each"),
        ({"generation_config": {"eos_token_id": "</s>"}}, "eos_token_id is '</s>'; expected an integer"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, files, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_with(tmp_path, **files)
