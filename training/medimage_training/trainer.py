"""A run of fine-tuning, from the files to the report.

The engine is Hugging Face Accelerate. It adds one distribution, where Lightning Fabric adds two; `torchrun` starts it,
on several GPUs and machines, and on CPUs.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from resource import RUSAGE_SELF, getrusage
from typing import Any, cast

import numpy as np
import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from medimage_client.errors import InvalidInput
from medimage_export.medimageinsight.checkpoint import CheckpointFiles, find_checkpoint, load_model
from medimage_export.medimageinsight.reference import UniCL
from medimage_export.medimageinsight.tokenizer import build_tokenizer
from medimage_server.text_tokenizer import TextTokenizer
from medimage_training.batches import Order, TrainingBatch, TrainingSet, loader_of
from medimage_training.config import FineTuning
from medimage_training.evaluation import EvaluationSet, SetScores
from medimage_training.examples import Example, check_apart, read_examples, read_labels, warnings_of
from medimage_training.images import ServedImages, digests_of
from medimage_training.parameters import freeze, learning_rate, parameter_groups
from medimage_training.published import data_hash, sha256, write_checkpoint, write_classifier
from medimage_training.report import write_report
from medimage_training.run_state import STATE, Log, as_json, identity, load_state, save_state
from medimage_training.unicl import Encoders, of_all_processes, unicl_loss, with_checkpointing, with_drop_path

MAX_LOGIT_SCALE = float(np.log(100))  # the bound of CLIP's training
MAX_NAMED = 10  # bad images that are named one by one
COLUMNS = ("step", "epoch", "loss", "learning_rate", "gradient_norm", "logit_scale", "images_per_s", "peak_memory_gb")
Say = Callable[[str], None]
ByName = dict[str, SetScores]


@dataclass(frozen=True)
class Data:
    """All images of a run, those left out that cannot be read."""

    training: list[Example]
    sets: list[EvaluationSet]
    labels: list[str]  # of the training set, in the label file's order if there is one
    sha256: str


def fine_tune(options: FineTuning, *, skip_bad_images: bool = False, say: Say = print) -> list[str]:
    """Train, and write the result; returns the lines of the report. Started by torchrun, it is one process of several.

    Args:
        skip_bad_images: leave out images that cannot be read, and name them, instead of stopping.
        say: is called with lines for the person at the keyboard, in the first process alone.

    Raises:
        InvalidInput: of the configuration or the data; says what and where.
        CheckpointError: of the checkpoint.
    """
    cpu = not torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision="fp16" if options.half_precision and not cpu else "no", cpu=cpu)
    if not accelerator.is_main_process:
        say = _nothing
    for line in options.said:
        say(line)
    if options.half_precision and cpu:
        say("FP16 is ignored: a CPU trains in fp32")
    if (options.output / STATE).is_file() and not options.resume:
        raise InvalidInput(f"{options.output} has the state of a run; give --resume to go on, or another --output")

    files = find_checkpoint(options.checkpoint)
    check_model_keys(options, files)
    model = load_model(files)
    tokenizer = TextTokenizer(build_tokenizer(files.tokenizer, model.config.text.context_length))
    images = ServedImages(model.config.image.image_size)
    data = read_data(options, images, skip_bad_images=skip_bad_images, say=say)
    with advice_if_out_of_memory(options):
        return FineTuningRun(options, accelerator, model, files, tokenizer, images, data, say).go()


def _nothing(line: str) -> None:
    """Of the processes that do not speak."""


class FineTuningRun:
    """Everything that a run holds while it goes."""

    def __init__(
        self,
        options: FineTuning,
        accelerator: Accelerator,
        model: UniCL,
        files: CheckpointFiles,
        tokenizer: TextTokenizer,
        images: ServedImages,
        data: Data,
        say: Say,
    ) -> None:
        self.options, self.accelerator, self.files, self.data, self.say = options, accelerator, files, data, say
        self.tokenizer, self.images = tokenizer, images
        self.base_sha256 = sha256(files.weights)
        self.identity = identity(options, checkpoint_sha256=self.base_sha256, data_sha256=data.sha256)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()  # the checkpoint's file is mapped into memory, and not writable
        for line in freeze(model, options.freeze_patterns):
            say(line)
        self.model = model.to(accelerator.device)
        self.ema = None
        if options.ema_decay is not None:
            device = torch.device("cpu") if options.ema_on_cpu else accelerator.device
            average = get_ema_multi_avg_fn(options.ema_decay)  # type: ignore[no-untyped-call]
            self.ema = AveragedModel(model, device, multi_avg_fn=average)
            self.ema.update_parameters(model)  # the first takes the weights as they are
        with_drop_path(model, options.drop_path, processes=accelerator.num_processes, process=accelerator.process_index)
        if options.checkpointing:
            with_checkpointing(model)
        groups = parameter_groups(model, options)
        optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=options.betas, eps=options.eps)
        self.encoders, self.optimizer = accelerator.prepare(Encoders(model), optimizer)
        self.trained = [parameter for group in groups for parameter in group["params"]]
        self.before: ByName = {}
        self.best: ByName = {}
        self.best_step = 0

    def go(self) -> list[str]:
        """Train from the last saved state, or from the start."""
        order = self.order(first_step=0)
        first = self.resume()
        order = self.order(first_step=first)
        self.accelerator.gradient_accumulation_steps = order.accumulation
        if not self.before:
            self.before = self.scores(self.model)
        self.options.output.mkdir(parents=True, exist_ok=True)
        names = [f"{one.name}_{score}" for one in self.data.sets for score in ("accuracy", "balanced_accuracy", "mauc")]
        log = Log(self.options.output, [*COLUMNS, *names], last_step=first) if self.is_main else None
        self.say(
            f"{len(self.data.training)} images of {len(self.data.labels)} labels, {order.steps} steps of "
            f"{order.total} images ({order.accumulation} x {order.each} in each of {order.processes} processes), "
            f"{sum(p.numel() for p in self.trained) / 1e6:.1f} M of "
            f"{sum(p.numel() for p in self.model.parameters()) / 1e6:.1f} M parameters are trained"
        )
        last = self.train(order, log)
        return self.finish(last, order.steps)

    def order(self, *, first_step: int) -> Order:
        return Order(
            examples=len(self.data.training),
            total=self.options.batch_total,
            each=self.options.batch_per_process,
            processes=self.accelerator.num_processes,
            process=self.accelerator.process_index,
            epochs=self.options.epochs,
            seed=self.options.seed,
            shuffle=self.options.shuffle,
            first_step=first_step,
        )

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def train(self, order: Order, log: Log | None) -> ByName:
        """The scores after the last step."""
        options, last = self.options, self.best
        dataset = TrainingSet(self.data.training, self.images, self.tokenizer, options.augmentation, options.seed)
        loader = loader_of(dataset, order, workers=options.workers, pin_memory=torch.cuda.is_available())
        batches, losses = iter(loader), []
        disable = None if self.is_main else True  # None: it is shown on a terminal alone
        bar = tqdm(total=order.steps, initial=order.first_step, unit="step", disable=disable)
        began, done = time.monotonic(), 0
        for step in range(order.first_step, order.steps):
            rate = learning_rate(step, order.steps, options)
            loss, norm = self.step(batches, step, rate, order.accumulation)
            losses.append(loss)
            number, done = step + 1, done + order.total
            row: dict[str, Any] = {
                "step": number,
                "epoch": step // order.steps_of_epoch,
                "learning_rate": rate,
                "gradient_norm": norm,
                "logit_scale": self.model.logit_scale.item(),
                "images_per_s": done / (time.monotonic() - began),
                "peak_memory_gb": peak_memory_gb(),
            }
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}")
            evaluates = bool(self.data.sets) and (number % options.evaluate_every == 0 or number == order.steps)
            if evaluates:
                last = self.evaluate(number)
                row |= columns_of(last)
            if evaluates or number % options.log_every == 0 or number == order.steps:
                row["loss"] = float(np.mean(losses))
                losses.clear()
                if log is not None:
                    log.write(row)
                if bar.disable:
                    accuracies = "".join(
                        f", {name} accuracy {one.accuracy:.3f}" for name, one in last.items() if evaluates
                    )
                    self.say(f"step {number} of {order.steps}: loss {row['loss']:.3f}{accuracies}")
            if number % options.save_every == 0 or number == order.steps:
                self.save(number)
        bar.close()
        if order.first_step == order.steps and self.data.sets:  # it was killed after its last step
            last = self.scores(self.result())
        return last

    def step(self, batches: Iterator[TrainingBatch], step: int, rate: float, accumulation: int) -> tuple[float, float]:
        """One step of the optimizer; returns the loss and the norm of the gradients before they are clipped."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.encoders.train()
        total, norm = 0.0, 0.0
        for part in range(accumulation):
            batch = next(batches).to(self.accelerator.device)
            torch.manual_seed(hash((self.options.seed, step, part)))  # of drop path; the same in every process
            with self.accelerator.accumulate(self.encoders):
                images, texts, scale = self.encoders(batch)
                classes = of_all_processes(batch.classes)
                loss = unicl_loss(of_all_processes(images), of_all_processes(texts), classes, scale)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    norm = float(self.accelerator.clip_grad_norm_(self.trained, self.options.clipping))
                self.optimizer.step()
                self.optimizer.zero_grad()
            total += loss.item() / accumulation
        with torch.no_grad():
            if self.model.logit_scale.requires_grad:
                self.model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        # a scaler leaves out a step whose gradients are not finite
        if not np.isfinite(total) or (self.accelerator.scaler is None and not np.isfinite(norm)):
            raise InvalidInput(f"the loss of step {step + 1} is {total}; lower START_LEARNING_RATE, or set FP16: false")
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return total, norm

    def result(self) -> UniCL:
        """The weights that are evaluated and written."""
        if self.ema is None or not self.options.ema_evaluated:
            return self.model
        return cast(UniCL, self.ema.module)

    def scores(self, model: UniCL) -> ByName:
        """By the name of each set."""
        model.eval()
        device = next(model.parameters()).device
        return {
            one.name: one.scores(model, self.images, self.tokenizer, batch=self.options.evaluation_batch, device=device)
            for one in self.data.sets
        }

    def evaluate(self, step: int) -> ByName:
        """SetScores of the weights as they are now; they are kept if no earlier ones were as good on the first set."""
        scores = self.scores(self.result())
        first = self.data.sets[0].name
        if not self.best or scores[first].accuracy > self.best[first].accuracy:
            self.best, self.best_step = scores, step
            self.write("best", step)
        return scores

    def write(self, name: str, step: int) -> None:
        if not self.is_main:
            return
        manifest = {
            "step": step,
            "base": {
                "folder": self.options.checkpoint.name,
                "weights": self.files.weights.name,
                "sha256": self.base_sha256,
            },
            "data": {"sha256": self.data.sha256, "images": len(self.data.training), "labels": self.data.labels},
            "configuration": as_json(self.options),
            "versions": {"torch": torch.__version__},
        }
        write_checkpoint(self.options.output / name, self.files, self.result().state_dict(), manifest)

    def save(self, step: int) -> None:
        if not self.is_main:
            return
        scaler = self.accelerator.scaler
        state = {
            "step": step,
            "identity": self.identity,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "before": plain(self.before),
            "best": plain(self.best),
            "best_step": self.best_step,
        }
        save_state(self.options.output, state)

    def resume(self) -> int:
        """The step to go on with."""
        state = load_state(self.options.output, self.identity) if self.options.resume else None
        if state is None:
            return 0
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.before, self.best = scores_of_plain(state["before"]), scores_of_plain(state["best"])
        self.best_step = state["best_step"]
        if self.before.keys() != {one.name for one in self.data.sets}:
            raise InvalidInput(
                f"{self.options.output} was evaluated on {', '.join(self.before) or 'nothing'} before; resume with the "
                "same EVALDATASET_… blocks, or write to another folder"
            )
        self.say(f"resumed after step {state['step']}")
        return int(state["step"])

    def finish(self, last: ByName, steps: int) -> list[str]:
        """Write the last weights, the classifier package of the best ones, and the report."""
        self.write("last", steps)
        lines: list[str] = []
        if self.is_main:
            output = self.options.output
            best = output / ("best" if self.best else "last")
            write_classifier(output / "classifier", best, self.data.labels)
            moments = {"before": self.before, f"best (step {self.best_step})": self.best, "last": last or self.best}
            lines = write_report(output, self.data.sets, moments if self.data.sets else {})
            self.say(f"written to {output}")
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return lines


def read_data(options: FineTuning, images: ServedImages, *, skip_bad_images: bool, say: Say) -> Data:
    """Read what there is, and look at each image once; the first process looks for all."""
    labels = read_labels(options.label_file) if options.label_file else None
    training = read_examples(options.train, labels, "training")
    for line in warnings_of(training, labels):
        say(line)
    others: list[tuple[list[Example], list[Example], list[str]]] = []
    for one in options.evaluations:
        own = read_labels(one.label_file) if one.label_file else None
        examples = read_examples(one.files, own, one.name)
        known: list[Example] = []
        if one.neighbours:
            known = read_examples(one.known, own, one.name) if one.known else training
        check_apart([*training, *known], examples, one.name)
        if own is None or one.neighbours:  # what is near may have any label
            own = [*dict.fromkeys([*(own or ()), *(example.label for example in [*examples, *known])])]
        others.append((examples, known, own))

    every = {example: None for example in training}
    for examples, known, _ in others:
        every |= dict.fromkeys([*examples, *known])
    found: list[Any] = [None]
    if PartialState().is_main_process:
        say(f"looking at {len(every)} images")
        found = [digests_of(images, [*every])]
    (digests,) = broadcast_object_list(found)
    by_example = dict(zip(every, digests, strict=True))
    bad = [error for error in digests if isinstance(error, InvalidInput)]
    if bad and not skip_bad_images:
        raise InvalidInput(
            f"{bad[0]}; {len(bad)} of {len(every)} images cannot be used: mend them, or leave them out with "
            "--on-bad-image skip"
        )
    for error in bad[:MAX_NAMED]:
        say(f"left out: {error}")
    if len(bad) > MAX_NAMED:
        say(f"left out: {len(bad) - MAX_NAMED} more images")

    def good(examples: Sequence[Example]) -> list[Example]:
        return [example for example in examples if isinstance(by_example[example], bytes)]

    training = good(training)
    if not training:
        raise InvalidInput("no training image can be used")
    there = dict.fromkeys(example.label for example in training)
    sets = [
        EvaluationSet(one.name, good(examples), own, one.neighbours, good(known))
        for one, (examples, known, own) in zip(options.evaluations, others, strict=True)
    ]
    empty = next((made.name for made in sets if not made.examples), None)
    if empty is not None:
        raise InvalidInput(f"{empty} has no image that can be used")
    alone = next((made.name for made in sets if made.neighbours and not made.known), None)
    if alone is not None:
        raise InvalidInput(f"{alone} has no image to compare with that can be used")
    return Data(training, sets, labels or sorted(there), data_hash(training, [by_example[e] for e in training]))


def check_model_keys(options: FineTuning, files: CheckpointFiles) -> None:
    """Refuse a configuration that describes another model than the checkpoint's."""
    document = yaml.safe_load(files.config.read_text(encoding="utf-8"))
    for key, value in options.model.items():
        there: Any = document
        for part in key.split("."):
            there = there.get(part) if isinstance(there, Mapping) else None
        if there != value:
            raise InvalidInput(
                f"{key} is {value!r}, and {there!r} in {files.config}, by which the checkpoint was made; remove the key"
            )


@contextmanager
def advice_if_out_of_memory(options: FineTuning) -> Iterator[None]:
    """One line with what to change, in the place of an allocator's error."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
        if not is_memory:
            raise
        advice = "" if options.checkpointing else ", set IMAGE_ENCODER.SPEC.ENABLE_CHECKPOINT: true"
        raise InvalidInput(
            f"out of memory with {options.batch_per_process} images at once: lower TRAIN.BATCH_SIZE_PER_GPU{advice}, "
            "or freeze more"
        ) from error


def peak_memory_gb() -> float:
    """Of the GPU, or of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return getrusage(RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB


def columns_of(scores: ByName) -> dict[str, float | None]:
    return {
        f"{name}_{score}": getattr(one, score)
        for name, one in scores.items()
        for score in ("accuracy", "balanced_accuracy", "mauc")
    }


def plain(scores: ByName) -> dict[str, Any]:
    """What `torch.load` takes without running code."""
    return {name: asdict(one) | {"confusion": one.confusion.tolist()} for name, one in scores.items()}


def scores_of_plain(saved: Mapping[str, Any]) -> ByName:
    return {name: SetScores(**one | {"confusion": np.array(one["confusion"])}) for name, one in saved.items()}
