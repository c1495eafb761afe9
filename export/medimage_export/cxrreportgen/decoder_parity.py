"""Does the exported decoder generate what transformers' decoder generates?

The ONNX decoder runs as it does in serving: one prefill, then steps on its KV cache, each with the likeliest token. The
reference sees prompt and generated tokens in one pass without a cache, in float64 and in float32. The logits of each
step must be those of float64, as near as `parity` asks. Then a token that is not float64's likeliest is as likely, but
for the rounding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from medimage_export.cxrreportgen.config import DecoderConfig
from medimage_export.parity import Bound, ParityRow, check_parity, errors

Array = NDArray[np.floating]

ITEM_BYTES = {"tensor(float)": 4, "tensor(float16)": 2, "tensor(bfloat16)": 2, "tensor(int8)": 1}

# Of one logit; where the largest is above 1, as a part of it, for so do rounding errors grow.
BOUNDS = {
    "fp32": Bound(max_abs=1e-6),
    "fp16": Bound(min_cosine=0.999),
    "int4": Bound(min_cosine=0.98),  # activations are rounded to 8 bits, layer after layer
}


@dataclass(frozen=True)
class DecoderParityRow(ParityRow):
    """Distances of the logits of all generated positions of a batch."""

    prompt: int  # tokens of the longest prompt
    new_tokens: int
    same_tokens: int  # of batch * new_tokens: those that are float64's likeliest


@dataclass(frozen=True)
class References:
    """transformers' decoder, twice: see `load_reference_decoder`."""

    float64: PreTrainedModel
    float32: PreTrainedModel


@dataclass(frozen=True)
class Answers:
    """What an exported decoder has written to a batch of prompts."""

    prompts: Sequence[Array]  # embeddings (tokens, H) of each
    tokens: NDArray[np.int64]  # (B, new tokens)
    logits: Array  # (B, new tokens, V), which chose them

    def sequences(self, table: Array) -> list[Array]:
        """All that was read before the last token, for each prompt, as embeddings; `table` is (V, H)."""
        return [np.vstack([prompt, table[row[:-1]]]) for prompt, row in zip(self.prompts, self.tokens, strict=True)]


class CachedDecoder:
    """The exported decoder with KV buffers of one batch."""

    def __init__(self, path: Path, config: DecoderConfig, *, prepack: bool = True) -> None:
        """`prepack=False` is slow, but leaves the weights in their memory-mapped file, instead of copying them all."""
        self.config = config
        options = onnxruntime.SessionOptions()
        if not prepack:
            options.add_session_config_entry("session.disable_prepacking", "1")
            # optimisers would copy weights, too; a float16 graph's are copied all the same, for CPUs compute in float32
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.enable_mem_pattern = options.enable_cpu_mem_arena = False
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.dtype = np.float16 if self.session.get_inputs()[0].type == "tensor(float16)" else np.float32

    @property
    def kv_bytes_per_token(self) -> int:
        """What one token takes in the cache of the graph."""
        caches = [node for node in self.session.get_inputs() if node.name.startswith("past_key_values.")]
        return sum(node.shape[1] * node.shape[3] * ITEM_BYTES[node.type] for node in caches)

    def generate(self, prompts: Sequence[Array], table: Array, new_tokens: int) -> tuple[NDArray[np.int64], Array]:
        """Greedy tokens (B, new_tokens) and the logits that chose them (B, new_tokens, V).

        Args:
            prompts: embeddings (tokens, H) of each row, of any lengths: the batch is padded on the right.
            table: token embeddings (V, H).
        """
        longest = max(map(len, prompts)) + new_tokens
        shape = (len(prompts), self.config.num_kv_heads, longest, self.config.head_dim)
        self.cache = {
            f"past_key_values.{i}.{part}": np.zeros(shape, self.dtype)
            for i in range(self.config.num_layers)
            for part in ("key", "value")
        }
        sequences = list(prompts)
        tokens, logits = [], []
        for step in range(new_tokens):
            # longrope: the first sequence past the limit takes the other table, and so all of its cache is made anew
            fresh = step == 0 or any(self._is_long(len(rows)) != self._is_long(len(rows) - 1) for rows in sequences)
            logits.append(self._run(sequences, 0 if fresh else 1))
            tokens.append(logits[-1].argmax(-1))
            sequences = [np.vstack([rows, table[token]]) for rows, token in zip(sequences, tokens[-1], strict=True)]
        return np.stack(tokens, 1), np.stack(logits, 1)

    def _is_long(self, length: int) -> bool:
        return self.config.rope_type == "longrope" and length > self.config.original_max_position_embeddings

    def _run(self, sequences: Sequence[Array], new: int) -> Array:
        """Logits (B, V) after the last token of each row; `new` tokens a row are not in the cache yet, 0 for all."""
        lengths = np.array([len(rows) for rows in sequences])
        width = new or int(lengths.max())
        embeds = np.zeros((len(sequences), width, self.config.hidden_size), self.dtype)
        positions = np.zeros((len(sequences), width), np.int64)
        for row, rows in enumerate(sequences):
            first = len(rows) - new if new else 0
            embeds[row, : len(rows) - first] = rows[first:]
            positions[row] = np.arange(first, first + width) + self.config.max_length * self._is_long(len(rows))
        feed = {
            "inputs_embeds": embeds,
            "position_ids": np.minimum(positions, self._last_row(sequences)),  # of padding: any row that exists
            "seqlens_k": (lengths - 1).astype(np.int32),
            "total_sequence_length": np.array(lengths.max(), np.int32),
        }
        logits, *present = self.session.run(None, feed | self.cache)
        self.cache = dict(zip(self.cache, present, strict=True))
        return logits

    def _last_row(self, sequences: Sequence[Array]) -> int:
        return self.config.max_length * (1 + any(self._is_long(len(rows)) for rows in sequences)) - 1


def answer_batches(
    decoder: CachedDecoder, batches: Mapping[str, Sequence[Array]], table: Array, new_tokens: int
) -> dict[str, Answers]:
    """The decoder's answers to each batch of prompts, see `CachedDecoder.generate`."""
    return {name: Answers(prompts, *decoder.generate(prompts, table, new_tokens)) for name, prompts in batches.items()}


def compare_decoder(
    decoder: CachedDecoder, references: References, answers: Mapping[str, Answers], table: Array
) -> list[DecoderParityRow]:
    """One row for each batch, named by the keys of `answers`."""
    rows = []
    for name, answer in answers.items():
        prompts, tokens, logits, sequences = answer.prompts, answer.tokens, answer.logits, answer.sequences(table)
        new_tokens = tokens.shape[1]
        float64, float32 = (
            np.stack([reference_logits(reference, decoder.config, rows, new_tokens) for rows in sequences])
            for reference in (references.float64, references.float32)
        )
        scale = np.abs(float64).max(-1, keepdims=True).clip(min=1)
        rows.append(
            DecoderParityRow(
                "cxrreportgen_stream",
                "logits",
                name,
                len(prompts),
                errors(float64 / scale, float32 / scale),
                errors(float64 / scale, logits / scale),
                max(map(len, prompts)),
                new_tokens,
                int((float64.argmax(-1) == tokens).sum()),
            )
        )
    return rows


def reference_logits(reference: PreTrainedModel, config: DecoderConfig, sequence: Array, last: int) -> Array:
    """Logits (last, V) after each of the last tokens of a sequence (tokens, H).

    With longrope a sequence that passes the limit takes two passes, as transformers' generate() makes its cache anew
    there: one of the part below the limit, and one of the whole.
    """
    limit = config.original_max_position_embeddings
    crosses = config.rope_type == "longrope" and len(sequence) - last < limit < len(sequence)

    def run(end: int, keep: int) -> Array:
        embeds = torch.from_numpy(np.ascontiguousarray(sequence[:end], np.float32))[None].to(reference.dtype)
        with torch.inference_mode():
            return reference(inputs_embeds=embeds, use_cache=False, logits_to_keep=keep).logits[0].numpy()

    if not crosses:
        return run(len(sequence), last)
    above = len(sequence) - limit
    return np.vstack([run(limit, last - above), run(len(sequence), above)])


def check_decoder_parity(rows: Sequence[DecoderParityRow], precision: str) -> None:
    """See `check_parity`; prints how many tokens are float64's likeliest, too.

    Raises:
        ParityError: names every batch that is past the bound of the precision.
    """
    same, tokens = sum(row.same_tokens for row in rows), sum(row.batch * row.new_tokens for row in rows)
    print(f"{same} of {tokens} generated tokens are the likeliest in float64")
    check_parity(rows, precision, BOUNDS[precision])
