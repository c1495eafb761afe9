"""What a precision costs: how far the exported decoder's next tokens are from those of the checkpoint's own weights.

The parity check asks whether the graph computes with its weights as it should, and bounds that. What rounding the
weights themselves does to a report depends on the checkpoint: it is measured here, on the same prompts and answers, and
told, without a bound.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from medimage_export.cxrreportgen.config import DecoderConfig
from medimage_export.cxrreportgen.decoder_parity import Answers, Array, reference_logits


@dataclass(frozen=True)
class NextTokenLoss:
    """Of all generated positions; KL(own weights || export) in nats, 0 where both are sure of the same."""

    positions: int
    mean_kl: float
    worst_kl: float
    same_likeliest: int  # positions at which both have the same likeliest token

    def __str__(self) -> str:
        return (
            f"next token beside the checkpoint's weights in fp32: KL {self.mean_kl:.2e} nats in the mean, "
            f"{self.worst_kl:.2e} at worst, the same token is the likeliest at {self.same_likeliest} of "
            f"{self.positions} positions"
        )


def next_token_loss(
    own: PreTrainedModel, config: DecoderConfig, answers: Mapping[str, Answers], table: Array
) -> NextTokenLoss:
    """Have the checkpoint's own weights read what the exported decoder was given and has written.

    Args:
        own: `load_reference_decoder` of the checkpoint, in float32.
        table: token embeddings (V, H).
    """
    divergences, same = [], 0
    for answer in answers.values():
        for sequence, logits in zip(answer.sequences(table), answer.logits, strict=True):
            expected = reference_logits(own, config, sequence, len(logits))
            divergences.append(kl_divergence(expected, logits))
            same += int((expected.argmax(-1) == logits.argmax(-1)).sum())
    found = np.concatenate(divergences)
    return NextTokenLoss(len(found), float(found.mean()), float(found.max()), same)


def kl_divergence(own: Array, other: Array) -> Array:
    """Of the distributions that logits (positions, V) stand for: (positions,) float64, in nats."""
    log_p, log_q = (torch.from_numpy(np.asarray(logits, np.float64)).log_softmax(-1).numpy() for logits in (own, other))
    return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(-1))
