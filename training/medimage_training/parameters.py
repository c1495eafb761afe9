"""Which tensors are trained, with how much weight decay, and at which learning rate: by patterns of their names.

Names are those of the checkpoint, such as `image_encoder.blocks.0.0.spatial_block.conv1.fn.dw.weight`.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from medimage_client.errors import InvalidInput
from medimage_training.config import FineTuning


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Train every parameter but those whose name a pattern is found in; a line for each pattern that matches nothing.

    Raises:
        InvalidInput: nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(re.search(pattern, name) for pattern in patterns))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InvalidInput("FREEZE_PATTERNS leave nothing to train; remove some of them")
    return [unmatched(pattern, names) for pattern in patterns if not any(re.search(pattern, name) for name in names)]


def unmatched(pattern: str, names: Iterable[str]) -> str:
    """What is said about a pattern that freezes nothing, with one that would if there is a likely one."""
    line = f"FREEZE_PATTERNS: {pattern!r} MATCHES NO TENSOR of the checkpoint and freezes nothing"
    if not pattern.startswith("^"):
        return line
    for tower in ("image_encoder", "lang_encoder"):
        longer = rf"^{tower}\.{pattern[1:]}"
        count = sum(bool(re.search(longer, name)) for name in names)
        if count:
            return f"{line}; {longer!r} would freeze {count}"
    return line


def parameter_groups(model: nn.Module, options: FineTuning) -> list[dict[str, Any]]:
    """Groups for AdamW of the tensors that are trained; `scale` multiplies the learning rate of a group.

    The first pattern that is found in a name counts. A module is meant by its whole name, so that `norm` is the `norm`
    of a branch, and neither `norms` nor `ln_1`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_exempt = bool(set(name.split(".")[:-1]) & set(options.no_decay_modules))
            decay = 0.0 if is_exempt else first_match(options.decay_patterns, name, options.weight_decay)
            groups.setdefault((decay, first_match(options.scale_patterns, name, 1.0)), []).append(parameter)
    return [{"params": own, "weight_decay": decay, "scale": scale} for (decay, scale), own in groups.items()]


def first_match(patterns: Mapping[str, float], name: str, default: float) -> float:
    return next((value for pattern, value in patterns.items() if re.search(pattern, name)), default)


def learning_rate(step: int, steps: int, options: FineTuning) -> float:
    """Of an optimizer step, from 0: a linear warm-up, then a cosine, as timm's CosineLRScheduler."""
    low, high = options.min_learning_rate, options.learning_rate
    if step < options.warmup_steps:
        return options.warmup_learning_rate + step * (high - options.warmup_learning_rate) / options.warmup_steps
    return low + (high - low) * (1 + math.cos(math.pi * step / steps)) / 2
