"""The text decoder: an ONNX graph of GroupQueryAttention nodes over one KV cache that is cut into slots.

A slot is one row of every KV buffer, and belongs to one answer at a time. Past and present keys are bound to the same
memory by pointer, so nothing is copied: a prefill binds the row of its slot as a batch of one, a step the first n rows.
What that node (onnxruntime 1.31, `com.microsoft.GroupQueryAttention`) asks for:

- several new tokens behind a past only in a batch of one: so prompts are prefilled one slot at a time, in any number of
  chunks, and single tokens are decoded for all slots together, each with its own length;
- a row of the batch cannot be left out: a slot without an answer takes part with a token that nobody reads.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from medimage_server import cuda
from medimage_server.exported import exported_file
from medimage_server.onnx_settings import open_session
from medimage_server.reports.constraint import Logits
from medimage_server.reports.embedding import Embeds
from medimage_server.reports.memory import fit_slots, gigabytes
from medimage_server.reports.placement import heed_positions, placed

Integers = NDArray[np.int32] | NDArray[np.int64]

FLOAT_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Decoder:
    """The decoder and its slots. Not thread-safe: one thread runs it.

    On the CPU the KV buffers are NumPy arrays, whose memory the system hands out only as it is touched. On a GPU they
    lie on the CUDA device, by the same code; no GPU has run it yet.

    Args:
        path: decoder.onnx as `medimage export cxrreportgen` writes it.
        slots: answers at a time. On the CPU fewer if the KV cache would not fit in the free memory; on a GPU the
            operator's number counts.
        max_length: tokens of one slot, prompt and answer together.
        long_rope: whether position ids may differ from the places of the tokens.
        kind: instance kind that Triton chose, "CPU" or "GPU"; see `placement.placed`.
        device_id: the CUDA device of a GPU instance.
        threads: of the CPU; 0 means one for each core.

    Raises:
        FileNotFoundError: the model was not exported yet.
        ValueError: the graph is no such decoder, its slots do not fit in memory, or a GPU wants a later onnxruntime.
    """

    def __init__(
        self,
        path: Path,
        *,
        slots: int,
        max_length: int,
        long_rope: bool = False,
        kind: str = "CPU",
        device_id: int = 0,
        threads: int = 0,
    ) -> None:
        exported_file(path, "cxrreportgen")
        kind = placed(path, kind)
        if kind == "GPU" and long_rope:
            heed_positions()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self._session = open_session(path.name, path, options, kind=kind, device_id=device_id)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise ValueError(f"{path}: onnxruntime cannot load it: {str(error).partition(chr(10))[0]}") from error
        on_gpu = cuda.is_used_by(self._session)
        self._device, self._device_id = ("cuda", device_id) if on_gpu else ("cpu", 0)

        inputs = {node.name: node for node in self._session.get_inputs()}
        outputs = {node.name: node for node in self._session.get_outputs()}
        caches = [name for name in inputs if name.startswith("past_key_values.")]
        try:
            self.dtype = FLOAT_TYPES[inputs["inputs_embeds"].type]
            self.hidden_size: int = inputs["inputs_embeds"].shape[2]
            self.vocabulary_size: int = outputs["logits"].shape[1]
            _, self._kv_heads, _, self._head_dim = inputs[caches[0]].shape
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{path}: not a decoder that `medimage export cxrreportgen` writes") from error

        self.max_length = max_length
        self._row_bytes = self._kv_heads * max_length * self._head_dim * np.dtype(self.dtype).itemsize
        self.slots = slots if on_gpu else fit_slots(slots, len(caches) * self._row_bytes, max_length)
        try:
            self._buffers = {name: self._allocate() for name in caches}
        except Exception as error:  # see above
            need = gigabytes(self.slots * len(caches) * self._row_bytes)
            raise ValueError(
                f"{path}: the KV cache of {self.slots} slots of {max_length} tokens, {need}, cannot be allocated on "
                f"{self._device}:{self._device_id}: lower the parameter slots or max_length"
            ) from error

    def prefill(self, slot: int, embeds: Embeds, *, past: int, position_ids: NDArray[np.int64]) -> Logits:
        """Read the next tokens of a prompt into a slot.

        Args:
            embeds: (S, H), the S tokens.
            past: how many tokens of this prompt the slot holds already; with 0, what it held before is forgotten.
            position_ids: (S,), the row of the rope table for each.

        Returns:
            (V,), after the last of them.
        """
        totals = np.array([past + len(embeds)])
        logits: Logits = self._run(slot, embeds[np.newaxis], totals, position_ids[np.newaxis])[0]
        return logits

    def step(self, embeds: Embeds, *, lengths: Integers, position_ids: NDArray[np.int64]) -> Logits:
        """Give one token to each of the slots 0 to n - 1.

        Args:
            embeds: (n, H).
            lengths: (n,), how many tokens each slot holds with the new one. It is written to place length - 1, also in
                a slot whose result nobody reads.
            position_ids: (n,), the row of the rope table for each.

        Returns:
            (n, V).
        """
        return self._run(0, embeds[:, np.newaxis], lengths, position_ids[:, np.newaxis])

    def _run(self, first_slot: int, embeds: Embeds, totals: Integers, position_ids: NDArray[np.int64]) -> Logits:
        rows = len(embeds)
        logits = np.empty((rows, self.vocabulary_size), np.float32)
        small = {
            "inputs_embeds": np.ascontiguousarray(embeds, self.dtype),
            "position_ids": np.ascontiguousarray(position_ids),
            "seqlens_k": (totals - 1).astype(np.int32),
            "total_sequence_length": np.array(totals.max(), np.int32),
        }
        binding = self._session.io_binding()
        for name, values in small.items():
            binding.bind_cpu_input(name, values)
        shape = (rows, self._kv_heads, self.max_length, self._head_dim)
        for past, buffer in self._buffers.items():
            place = (self._device, self._device_id, self.dtype, shape, _pointer(buffer) + first_slot * self._row_bytes)
            binding.bind_input(past, *place)
            binding.bind_output(past.replace("past_key_values", "present"), *place)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception:  # see above
            if self._device == "cuda":
                cuda.give_up_if_lost("decoder.onnx", self._device_id)
            raise
        return logits

    def _allocate(self) -> Any:
        shape = (self.slots, self._kv_heads, self.max_length, self._head_dim)
        if self._device == "cpu":
            return np.zeros(shape, self.dtype)
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, self.dtype, self._device, self._device_id)


def _pointer(buffer: Any) -> int:
    return int(buffer.ctypes.data if isinstance(buffer, np.ndarray) else buffer.data_ptr())
