"""Microsoft's configuration file is read as it is, and what is wrong in one is named."""

import pytest
import yaml

from medimage_client.errors import InvalidInput
from medimage_training.config import Files, read_fine_tuning

GASTROVISION = """\
TASK: UniCLTask
NAME: 'finetune'
SAVE_DIR: ''
LOG_EVERY: 10
RESUME: True
FP16: true
AMP: PYTORCH
SAVE_PER_OPTIM_STEPS: 100
EVAL_PER_OPTIM_STEPS: 100
EVAL_STRATEGY: {EVAL_LAST_MODEL: true}
GRAD_CLIPPING: 0.07
user_dir: ""
WORKERS: 6
IMAGE_ENCODER:
  NAME: davit_v1
  IMAGE_SIZE: [480, 480]
  PRETRAINED: ''
  SPEC: {DROP_RATE: 0.1, DROP_PATH_RATE: 0.2, DIM_EMBED: [256, 512, 1024, 2048], ENABLE_CHECKPOINT: true}
UNICL_MODEL: {DIM_PROJECTION: 1024, GATHER_TENSORS: true, PRETRAINED: ''}
AUG:
  MIXUP_PROB: 0.0
  MIXCUT_MINMAX: []
  SCALE: [0.8, 1.0]
  RATIO: [0.75, 1.3333333]
  TORCHVISION_AUG: {AUTO_AUGMENT: ta_wide, RE_PROB: 0.25, HFLIP: 0.0, VFLIP: 0.0}
LOSS: {LOSS: UniCL}
DATASET: {DATASET: image_text_pairs_v2, TRAIN_TSV_LIST: [], DATA_FORMAT: tsv}
EVALDATASET_PROMPT_CLASSIFICATION:
  {TEXT_FORMAT: json, FORMAT: tsv, SPLIT: test, EVAL_IMAGE_TSV: '', LABEL_FILE: '', ZS_MODE: 2, TRACK_METRIC: acc}
EVALDATASET_KNN_CLASSIFICATION: {FORMAT: tsv, ZS_MODE: 0, KNN: 64, TRACK_METRIC: acc}
TRAIN: {BATCH_SIZE_TOTAL: 48, BATCH_SIZE_PER_GPU: 4, SHUFFLE: true}
WEIGHT_SMOOTHING: {decay: 0.999, use_cpu: False, eval_smoothed_weight: True}
START_LEARNING_RATE: 0.000005
MAX_NUM_EPOCHS: 15
OPTIMIZER: AdamW # adam
OPTIMIZER_PARAMS: {weight_decay: 0.4}
CUSTOMIZED_PARAMS_CONF:
  NO_WEIGHT_DECAY_MODULES: ['dw', 'norm']
  WEIGHT_DECAY_PATTERNS: {"\\\\.bias$": 0.0, "logit_scale": 0.0}
  FREEZE_PATTERNS: ["^lang_encoder.resblocks.0\\\\.", "^convs\\\\."]
LR_SCHEDULER: TimmScheduler
LR_SCHEDULER_PARAMS: {sched: cosine, warmup_steps: 5, warmup_lr: 0.000000001, min_lr: 1e-9, steps_update_per_epoch: 1}
"""
NAMES = ("mlflow_embedding_model_path", "image_tsv", "text_tsv", "eval_image_tsv", "eval_text_tsv", "label_file")


def read(tmp_path, text):
    (tmp_path / "train.yaml").write_text(text)
    inputs = {name: tmp_path / name for name in NAMES}
    return read_fine_tuning(tmp_path / "train.yaml", inputs=inputs, output=tmp_path / "out")


def test_microsofts_file_is_read_with_the_inputs_of_the_pipeline(tmp_path):
    options = read(tmp_path, GASTROVISION)
    assert (options.learning_rate, options.min_learning_rate, options.weight_decay) == (5e-6, 1e-9, 0.4)
    assert (options.batch_total, options.batch_per_process, options.epochs) == (48, 4, 15)
    assert (options.ema_decay, options.clipping, options.drop_path, options.checkpointing) == (0.999, 0.07, 0.2, True)
    assert options.freeze_patterns == (r"^lang_encoder.resblocks.0\.", r"^convs\.")
    assert options.decay_patterns == {r"\.bias$": 0.0, "logit_scale": 0.0}
    assert options.model == {
        "IMAGE_ENCODER.NAME": "davit_v1",
        "IMAGE_ENCODER.IMAGE_SIZE": [480, 480],
        "IMAGE_ENCODER.SPEC.DIM_EMBED": [256, 512, 1024, 2048],
        "UNICL_MODEL.DIM_PROJECTION": 1024,
    }
    prompts, nearest = options.evaluations
    assert (prompts.neighbours, nearest.neighbours) == (None, 64)
    assert prompts.files == Files(image_tsv=tmp_path / "eval_image_tsv", text_tsv=tmp_path / "eval_text_tsv")
    ignored = {line.partition(" ")[0] for line in options.said}
    assert ignored >= {"TASK", "AMP", "IMAGE_ENCODER.SPEC.DROP_RATE", "LR_SCHEDULER_PARAMS.steps_update_per_epoch"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MAX_NUM_EPOCH": 3}, r"MAX_NUM_EPOCH is no key that is known; did you mean MAX_NUM_EPOCHS\?"),
        ({"MAX_NUM_EPOCHS": 0}, "MAX_NUM_EPOCHS is 0; expected an integer of at least 1"),
        ({"START_LEARNING_RATE": "fast"}, "START_LEARNING_RATE is 'fast'; expected a number of at least 0"),
        ({"OPTIMIZER": "sgd"}, "OPTIMIZER is 'sgd'; only 'AdamW' is supported"),
        ({"EVALDATASET_ZIP": {"FORMAT": "zip"}}, "EVALDATASET_ZIP.FORMAT is 'zip'; only 'tsv' is supported"),
        ({"CUSTOMIZED_PARAMS_CONF": {"FREEZE_PATTERNS": ["^lang("]}}, "'\\^lang\\(', which is no regular expression"),
        (
            {"TRAIN": {"BATCH_SIZE_TOTAL": 6}},
            "BATCH_SIZE_TOTAL is 6; expected a multiple of TRAIN.BATCH_SIZE_PER_GPU, 4",
        ),
        ({"AUG": {"SCALE": [1, 0.5]}}, r"AUG.SCALE is \[1, 0.5\]; expected two numbers above 0"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(tmp_path, change, message):
    with pytest.raises(InvalidInput, match=message):
        read(tmp_path, yaml.safe_dump(change))


def test_paths_of_the_file_start_at_its_folder(tmp_path):
    text = "UNICL_MODEL: {PRETRAINED: base}\nSAVE_DIR: out\nINPUTS: {table: train.csv}\n"
    (tmp_path / "train.yaml").write_text(text)
    options = read_fine_tuning(tmp_path / "train.yaml")
    assert (options.checkpoint, options.output) == (tmp_path / "base", tmp_path / "out")
    assert options.train == Files(table=tmp_path / "train.csv") and options.evaluations == ()
