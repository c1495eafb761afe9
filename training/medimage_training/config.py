"""`train.yaml`: the configuration file of Microsoft's fine-tuning, and the inputs of its pipeline beside it.

The keys are those of `train-gastrovision.yaml` (microsoft/healthcareai-examples, azureml/medimageinsight/finetuning).
Ours are `SEED`, the block `INPUTS` with the inputs of the Azure pipeline by their names, and tables in the place of TSV
files. A key that is not known is refused: a typing error would otherwise train another model in silence.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medimage_client.errors import InvalidInput

FILES = (
    "image_tsv",
    "text_tsv",
    "label_file",
    "eval_image_tsv",
    "eval_text_tsv",
    "eval_train_image_tsv",
    "eval_train_text_tsv",
    "mlflow_embedding_model_path",
    "table",  # ours, as the next: .csv or .parquet with paths of images
    "eval_table",
)
BY_ENGINE = "torchrun and the device decide"
ALWAYS = "it is always so"
IGNORED = {  # known keys that change nothing here, and why
    "TASK": "there is one task",
    "NAME": "the output folder names the run",
    "SAVE_TIMER_LOG": "log.csv has the times",
    "LOGLEVEL_OVERRIDE": "there is one level",
    "LOG_GPU_MEM": "log.csv has the memory",
    "RESET_DATA_LOADER": "a resumed run goes on with the next batch",
    "ZERO_STAGE": BY_ENGINE,
    "DEEPSPEED": BY_ENGINE,
    "AMP": BY_ENGINE,
    "FIND_UNUSED_PARAMETERS": BY_ENGINE,
    "EVAL_AT_START": ALWAYS,
    "EVAL_STRATEGY.EVAL_LAST_MODEL": ALWAYS,
    "NO_AUTO_LR_SCALING": ALWAYS,
    "SET_SAMPLER_EPOCH": ALWAYS,
    "DONT_LOAD_MODEL": "the checkpoint is always loaded",
    "user_dir": "there is no code to load",
    "VERBOSE": "there is one level",
    "PIN_MEMORY": "it is done where there is a GPU",
    "IMAGE_ENCODER.LOAD_PRETRAINED": "the checkpoint is always loaded",
    "IMAGE_ENCODER.PRETRAINED": "UNICL_MODEL.PRETRAINED holds both encoders",
    "IMAGE_ENCODER.PRETRAINED_LAYERS": "every tensor is loaded",
    "IMAGE_ENCODER.SPEC.DROP_RATE": "the image encoder never reads it, not in Microsoft's code either",
    "LANG_ENCODER.LOAD_PRETRAINED": "the checkpoint is always loaded",
    "LANG_ENCODER.PRETRAINED": "UNICL_MODEL.PRETRAINED holds both encoders",
    "LANG_ENCODER.PRETRAINED_LAYERS": "every tensor is loaded",
    "UNICL_MODEL.LOAD_PRETRAINED": "the checkpoint is always loaded",
    "UNICL_MODEL.PRETRAINED_LAYERS": "every tensor is loaded",
    "AUG.MIXUP": "MIXUP_PROB is 0",
    "AUG.MIXCUT": "MIXUP_PROB is 0",
    "AUG.MIXCUT_MINMAX": "MIXUP_PROB is 0",
    "AUG.MIXUP_SWITCH_PROB": "MIXUP_PROB is 0",
    "AUG.MIXUP_MODE": "MIXUP_PROB is 0",
    "DATASET.DATASET": "INPUTS has the files",
    "DATASET.ROOT": "INPUTS has the files",
    "DATASET.TRAIN_TSV_LIST": "INPUTS has the files",
    "DATASET.TRAIN_SET": "INPUTS has the files",
    "DATASET.SAMPLER": "there is one",
    "DATASET.LOADER": "there is one",
    "DATASET.TOKEN_FILE": "INPUTS has the files",
    "EVALUATION_SPLITS": "every block EVALDATASET_… is evaluated",
    "TEST.MODEL_FILE": "UNICL_MODEL.PRETRAINED is evaluated before, and the result after",
    "LR_SCHEDULER_PARAMS.epochs": "MAX_NUM_EPOCHS says it",
    "LR_SCHEDULER_PARAMS.steps_update_per_epoch": "the rate changes with each optimizer step",
    "GRADIENT_ACCUMULATE_STEP": "it follows from the batch sizes and the number of processes",
}
ONLY = {  # keys of which one value is implemented
    "OPTIMIZER": "AdamW",
    "LR_SCHEDULER": "TimmScheduler",
    "LR_SCHEDULER_PARAMS.sched": "cosine",
    "LOSS.LOSS": "UniCL",
    "UNICL_MODEL.GATHER_TENSORS": True,
    "AUG.MIXUP_PROB": 0.0,
    "AUG.INTERPOLATION": "bicubic",
    "DATASET.TEXT_FORMAT": "json",
    "DATASET.DATA_FORMAT": "tsv",
}
OF_THE_CHECKPOINT = ("IMAGE_ENCODER.", "LANG_ENCODER.", "UNICL_MODEL.DIM_PROJECTION", "TEST.CENTER_CROP")
OF_AN_EVALUATION = {"TEXT_FORMAT": "json", "FORMAT": "tsv", "TRACK_METRIC": "acc"}
IGNORED_OF_AN_EVALUATION = ("SPLIT", "ZS_MODE", "ZS_WEIGHT")
PATTERNS = ("CUSTOMIZED_PARAMS_CONF.WEIGHT_DECAY_PATTERNS", "CUSTOMIZED_PARAMS_CONF.LR_SCALE_PATTERNS")
EVALUATION = re.compile(r"EVALDATASET_(\w+)")


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where images and their texts lie: either two TSV files or a table."""

    image_tsv: Path | None = None
    text_tsv: Path | None = None
    table: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.table or self.image_tsv or self.text_tsv)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One block EVALDATASET_name. Of the first the best weights are kept."""

    name: str
    files: Files
    label_file: Path | None
    neighbours: int | None  # None for zero-shot by prompts
    known: Files  # the images that are neighbours; empty for those of training


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """AUG. What an image is put through before it is shown to the model; see `augmentation`."""

    scale: tuple[float, float] = (0.8, 1.0)  # of the crop, as a share of the area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width to height of the crop
    trivial_augment: bool = True
    erasing: float = 0.25  # a probability, as the next two
    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """The whole of a run; field by field a key of Microsoft's, whose values for GastroVision are the defaults."""

    checkpoint: Path
    output: Path
    train: Files
    label_file: Path | None
    evaluations: tuple[Evaluation, ...]
    augmentation: Augmentation
    model: Mapping[str, Any]  # keys that describe the model, which have to be the checkpoint's
    said: tuple[str, ...]  # a line for each key that is ignored
    seed: int
    half_precision: bool  # FP16
    resume: bool
    workers: int  # processes that read images, of each process that trains
    save_every: int  # optimizer steps, as the next two
    evaluate_every: int
    log_every: int
    epochs: int
    batch_total: int
    batch_per_process: int
    evaluation_batch: int
    shuffle: bool
    learning_rate: float
    warmup_learning_rate: float
    min_learning_rate: float
    warmup_steps: int
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    no_decay_modules: tuple[str, ...]
    decay_patterns: Mapping[str, float]
    scale_patterns: Mapping[str, float]
    freeze_patterns: tuple[str, ...]
    clipping: float  # largest norm of all gradients together
    ema_decay: float | None
    ema_on_cpu: bool
    ema_evaluated: bool
    drop_path: float
    checkpointing: bool


def read_fine_tuning(
    path: Path, *, inputs: Mapping[str, Path] | None = None, output: Path | None = None, resume: bool = False
) -> FineTuning:
    """Read a configuration. Its relative paths start at its folder.

    Args:
        inputs: files that go before those of INPUTS, by the same names.
        output: goes before SAVE_DIR.
        resume: goes before RESUME.

    Raises:
        InvalidInput: not YAML; a key is unknown, of the wrong type or of a value that is not implemented.
    """
    keys = Keys(path)
    files = {name: keys.path(f"INPUTS.{name}") for name in FILES} | dict(inputs or {})
    checkpoint, save_dir = keys.path("UNICL_MODEL.PRETRAINED"), keys.path("SAVE_DIR")
    checkpoint = files["mlflow_embedding_model_path"] or checkpoint
    if checkpoint is None:
        raise keys.wrong("UNICL_MODEL.PRETRAINED", "is not given; expected the folder of the checkpoint to start from")
    save_dir = output or save_dir
    if save_dir is None:
        raise keys.wrong("SAVE_DIR", "is not given; expected the folder to write, or the option --output")
    for key, value in ONLY.items():
        keys.only(key, value)
    scale, ratio = keys.pair("AUG.SCALE", (0.8, 1.0), most=1), keys.pair("AUG.RATIO", (3 / 4, 4 / 3))
    augment = keys.choice("AUG.TORCHVISION_AUG.AUTO_AUGMENT", ("ta_wide", ""), "ta_wide")
    decay = keys.number("WEIGHT_SMOOTHING.decay", -1.0, least=-1.0, most=1.0)
    total, each = keys.count("TRAIN.BATCH_SIZE_TOTAL", 48), keys.count("TRAIN.BATCH_SIZE_PER_GPU", 4)
    if total % each:
        raise keys.wrong(
            "TRAIN.BATCH_SIZE_TOTAL", f"is {total}; expected a multiple of TRAIN.BATCH_SIZE_PER_GPU, {each}"
        )
    return FineTuning(
        checkpoint=checkpoint,
        output=save_dir,
        train=Files(image_tsv=files["image_tsv"], text_tsv=files["text_tsv"], table=files["table"]),
        label_file=files["label_file"],
        evaluations=keys.evaluations(files),
        augmentation=Augmentation(
            scale=scale,
            ratio=ratio,
            trivial_augment=augment == "ta_wide",
            erasing=keys.number("AUG.TORCHVISION_AUG.RE_PROB", 0.25, most=1),
            horizontal_flip=keys.number("AUG.TORCHVISION_AUG.HFLIP", 0.0, most=1),
            vertical_flip=keys.number("AUG.TORCHVISION_AUG.VFLIP", 0.0, most=1),
        ),
        seed=keys.count("SEED", 0, least=0),
        half_precision=keys.flag("FP16", True),
        resume=keys.flag("RESUME", False) or resume,
        workers=keys.count("WORKERS", 6, least=0),
        save_every=keys.count("SAVE_PER_OPTIM_STEPS", 100),
        evaluate_every=keys.count("EVAL_PER_OPTIM_STEPS", 100),
        log_every=keys.count("LOG_EVERY", 10),
        epochs=keys.count("MAX_NUM_EPOCHS", 15),
        batch_total=total,
        batch_per_process=each,
        evaluation_batch=keys.count("TEST.BATCH_SIZE_PER_GPU", 8),
        shuffle=keys.flag("TRAIN.SHUFFLE", True),
        learning_rate=keys.number("START_LEARNING_RATE", 5e-6),
        warmup_learning_rate=keys.number("LR_SCHEDULER_PARAMS.warmup_lr", 1e-9),
        min_learning_rate=keys.number("LR_SCHEDULER_PARAMS.min_lr", 1e-9),
        warmup_steps=keys.count("LR_SCHEDULER_PARAMS.warmup_steps", 5, least=0),
        weight_decay=keys.number("OPTIMIZER_PARAMS.weight_decay", 0.4),
        betas=keys.pair("OPTIMIZER_PARAMS.betas", (0.9, 0.999), most=1),
        eps=keys.number("OPTIMIZER_PARAMS.eps", 1e-8),
        no_decay_modules=keys.texts("CUSTOMIZED_PARAMS_CONF.NO_WEIGHT_DECAY_MODULES"),
        decay_patterns=keys.patterns("CUSTOMIZED_PARAMS_CONF.WEIGHT_DECAY_PATTERNS"),
        scale_patterns=keys.patterns("CUSTOMIZED_PARAMS_CONF.LR_SCALE_PATTERNS"),
        freeze_patterns=keys.expressions("CUSTOMIZED_PARAMS_CONF.FREEZE_PATTERNS"),
        clipping=keys.number("GRAD_CLIPPING", 0.07),
        ema_decay=None if decay < 0 else decay,
        ema_on_cpu=keys.flag("WEIGHT_SMOOTHING.use_cpu", False),
        ema_evaluated=keys.flag("WEIGHT_SMOOTHING.eval_smoothed_weight", True),
        drop_path=keys.number("IMAGE_ENCODER.SPEC.DROP_PATH_RATE", 0.0, most=0.99),
        checkpointing=keys.flag("IMAGE_ENCODER.SPEC.ENABLE_CHECKPOINT", False),
        model=keys.of_the_checkpoint(),
        said=keys.rest(),
    )


class Keys:
    """The keys of a file that have not been read yet, by their dotted names."""

    def __init__(self, path: Path) -> None:
        self.file = path
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InvalidInput(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
        if not isinstance(document, dict):
            raise InvalidInput(f"{path}: expected keys and values, as SAVE_DIR: out")
        self.left = dict(flat(document))
        self.known = {*IGNORED, *ONLY}

    def wrong(self, key: str, what: str) -> InvalidInput:
        return InvalidInput(f"{self.file}: {key} {what}")

    def take(self, key: str) -> Any:
        """The value, or None; it is not left afterwards."""
        self.known.add(key)
        return self.left.pop(key, None)

    def number(self, key: str, default: float, *, least: float = 0.0, most: float = float("inf")) -> float:
        value = self.take(key)
        if value is None:
            return default
        try:  # a text, too: to YAML 5e-6 is one, 5.0e-6 a number
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not least <= number <= most:
            bound = f"from {least:g} to {most:g}" if most < float("inf") else f"of at least {least:g}"
            raise self.wrong(key, f"is {value!r}; expected a number {bound}")
        return number

    def count(self, key: str, default: int, *, least: int = 1) -> int:
        value = self.take(key)
        if value is None:
            return default
        if type(value) is not int or value < least:
            raise self.wrong(key, f"is {value!r}; expected an integer of at least {least}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.take(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, f"is {value!r}; expected true or false")
        return default if value is None else value

    def choice(self, key: str, values: tuple[str, ...], default: str) -> str:
        value = self.take(key)
        if value is not None and value not in values:
            raise self.wrong(key, f"is {value!r}; expected one of {', '.join(map(repr, values))}")
        return default if value is None else str(value)

    def only(self, key: str, expected: object) -> None:
        value = self.take(key)
        if value is not None and value != expected:
            raise self.wrong(key, f"is {value!r}; only {expected!r} is supported")

    def pair(self, key: str, default: tuple[float, float], *, most: float = float("inf")) -> tuple[float, float]:
        value = self.take(key)
        if value is None:
            return default
        if (
            not isinstance(value, list)
            or len(value) != 2
            or any(type(one) not in (int, float) for one in value)
            or not 0 < value[0] <= value[1] <= most
        ):
            raise self.wrong(key, f"is {value!r}; expected two numbers above 0, the smaller one first")
        return float(value[0]), float(value[1])

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.take(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.wrong(key, f"is {value!r}; expected a list of texts")
        return tuple(value)

    def expressions(self, key: str) -> tuple[str, ...]:
        patterns = self.texts(key)
        for pattern in patterns:
            self.check_expression(key, pattern)
        return patterns

    def patterns(self, key: str) -> dict[str, float]:
        """Regular expressions of names with a number each."""
        value = self.take(key)
        if value is None:
            return {}
        if not isinstance(value, dict) or any(type(one) not in (int, float) or one < 0 for one in value.values()):
            raise self.wrong(key, f"is {value!r}; expected a number of at least 0 for each pattern")
        for pattern in value:
            self.check_expression(key, str(pattern))
        return {str(pattern): float(number) for pattern, number in value.items()}

    def check_expression(self, key: str, pattern: str) -> None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise self.wrong(key, f"has {pattern!r}, which is no regular expression: {error}") from None

    def path(self, key: str) -> Path | None:
        value = self.take(key)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise self.wrong(key, f"is {value!r}; expected a path")
        return self.file.parent / Path(value).expanduser()

    def evaluations(self, files: Mapping[str, Path | None]) -> tuple[Evaluation, ...]:
        """Of the blocks EVALDATASET_…, in their order; what a block leaves empty is taken from INPUTS."""
        names = [key.split(".")[0] for key in self.left if EVALUATION.match(key)]
        given = Files(image_tsv=files["eval_image_tsv"], text_tsv=files["eval_text_tsv"], table=files["eval_table"])
        if not names and given:
            names = ["EVALDATASET_PROMPT_CLASSIFICATION"]
        of_training = Files(image_tsv=files["eval_train_image_tsv"], text_tsv=files["eval_train_text_tsv"])
        found = []
        for name in dict.fromkeys(names):
            for key, value in OF_AN_EVALUATION.items():
                self.only(f"{name}.{key}", value)
            for key in IGNORED_OF_AN_EVALUATION:
                self.take(f"{name}.{key}")
            own = Files(
                image_tsv=self.path(f"{name}.EVAL_IMAGE_TSV"),
                text_tsv=self.path(f"{name}.EVAL_TEXT_TSV"),
                table=self.path(f"{name}.EVAL_TABLE"),
            )
            known = Files(
                image_tsv=self.path(f"{name}.IMAGE_TSV"),
                text_tsv=self.path(f"{name}.TEXT_TSV"),
                table=self.path(f"{name}.TABLE"),
            )
            labels, neighbours = self.path(f"{name}.LABEL_FILE"), self.count(f"{name}.KNN", 0, least=0)
            if not (own or given):
                raise self.wrong(
                    name,
                    "has no images; expected EVAL_IMAGE_TSV and EVAL_TEXT_TSV, or eval_image_tsv and so on in INPUTS",
                )
            found.append(
                Evaluation(
                    name=name.removeprefix("EVALDATASET_").lower(),
                    files=own or given,
                    label_file=labels or (None if own.table else files["label_file"]),
                    neighbours=neighbours or None,
                    known=known or of_training,
                )
            )
        return tuple(found)

    def of_the_checkpoint(self) -> dict[str, Any]:
        """What describes the model, and is not for training alone."""
        keys = [key for key in self.left if key.startswith(OF_THE_CHECKPOINT) and key not in IGNORED]
        return {key: self.take(key) for key in keys}

    def rest(self) -> tuple[str, ...]:
        """A line for each key that is ignored, if none is unknown."""
        for key, value in [*self.left.items()]:
            if not value and any(known.startswith(f"{key}.") for known in self.known):
                del self.left[key]  # a block with nothing in it
            elif key not in IGNORED:
                near = difflib.get_close_matches(key, self.known, n=1)
                advice = f"; did you mean {near[0]}?" if near else "; remove it"
                raise self.wrong(key, f"is no key that is known{advice}")
        return tuple(f"{key} is ignored: {IGNORED[key]}" for key in self.left)


def flat(document: Mapping[Any, Any], before: str = "") -> Any:
    """Pairs of a dotted name and its value; the patterns of a mapping are no names."""
    for key, value in document.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping) and value and name not in PATTERNS:
            yield from flat(value, f"{name}.")
        else:
            yield name, value
