"""One round of training, for both stages of the report model."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import click
import torch
from torch import Tensor, nn

WARMUP_STEPS = 100


@dataclass(frozen=True)
class Round:
    """The learning rate rises over WARMUP_STEPS and falls to nothing at the end."""

    steps: int
    batch: int  # images, or prompts
    learning_rate: float


def optimise(
    name: str, parameters: Iterable[nn.Parameter], plan: Round, loss_of: Callable[[int], Tensor], *, beta2: float
) -> None:
    """Train in place: `loss_of(step)` is the loss of the next batch. `beta2` is AdamW's memory of squared gradients."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, plan.learning_rate, betas=(0.9, beta2), weight_decay=0.05)
    warmup = min(WARMUP_STEPS / plan.steps, 0.5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, plan.learning_rate, total_steps=plan.steps, pct_start=warmup, cycle_momentum=False
    )
    report = progress(name, plan.steps)
    for step in range(plan.steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        report(step, loss.item())


def progress(name: str, steps: int) -> Callable[[int, float], None]:
    """Prints the mean loss and the time that is left, some forty times."""
    start, losses, every = time.monotonic(), [], max(steps // 40, 1)

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        if (step + 1) % every == 0:
            left = (time.monotonic() - start) / (step + 1) * (steps - step - 1)
            recent = losses[-every:]
            click.echo(f"{name}: step {step + 1} of {steps}, loss {sum(recent) / len(recent):.3f}, {left:.0f} s left")

    return report
