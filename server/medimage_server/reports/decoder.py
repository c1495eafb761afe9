"""The text decoder: an ONNX graph of GroupQueryAttention nodes over one KV cache that is cut into slots.

A slot is one row of every KV buffer, and belongs to one answer at a time. Past and present keys are bound to the same
memory by pointer, so nothing is copied: a prefill binds the row of its slot as a batch of one, a step the first n rows.
What was bound is kept, because to bind some 130 tensors takes longer than anything else here. What that node
(onnxruntime 1.31, `com.microsoft.GroupQueryAttention`) asks for:

- several new tokens behind a past only in a batch of one: so prompts are prefilled one slot at a time, in any number of
  chunks, and single tokens are decoded for all slots together, each with its own length;
- a row of the batch cannot be left out: a slot without an answer takes part with a token that nobody reads.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from medimage_server import cuda, cuda_memory
from medimage_server.exported import exported_file
from medimage_server.onnx_settings import open_session
from medimage_server.reports.constraint import Logits
from medimage_server.reports.embedding import Embeds
from medimage_server.reports.memory import fit_slots, fit_slots_on_gpu
from medimage_server.reports.placement import heed_positions, placed

Integers = NDArray[np.int32] | NDArray[np.int64]

FLOAT_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Decoder:
    """The decoder and its slots. Not thread-safe: one thread runs it.

    On the CPU the KV buffers are a NumPy array, whose memory the system hands out only as it is touched. On a GPU they
    lie on the CUDA device, by the same code; no GPU has run it yet.

    Args:
        path: decoder.onnx as `medimage export cxrreportgen` writes it.
        slots: answers at a time; fewer if the KV cache would not fit in the free memory.
        gpu_slots: the same on a GPU; 0 for as many as on the CPU.
        max_length: tokens of one slot, prompt and answer together.
        long_rope: whether position ids may differ from the places of the tokens.
        kind: of the Triton instance, see `placement.placed`.
        device_id: the CUDA device of a GPU instance.
        cuda_options: of the CUDA provider.
        threads: of the CPU; 0 means one for each core.

    Attributes:
        is_on_gpu: where it runs; also of a GPU instance it may be the CPU.

    Raises:
        FileNotFoundError: the model was not exported yet.
        ValueError: the graph is no such decoder, its slots do not fit in memory, or a GPU wants a later onnxruntime.
    """

    def __init__(
        self,
        path: Path,
        *,
        slots: int,
        gpu_slots: int = 0,
        max_length: int,
        long_rope: bool = False,
        kind: str = "CPU",
        device_id: int = 0,
        cuda_options: Mapping[str, str] = MappingProxyType({}),
        threads: int = 0,
    ) -> None:
        exported_file(path, "cxrreportgen")
        kind = placed(path, kind)
        if kind == "GPU" and long_rope:
            heed_positions()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self._session = open_session(
                path.name, path, options, kind=kind, device_id=device_id, cuda_options=cuda_options
            )
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise ValueError(f"{path}: onnxruntime cannot load it: {str(error).partition(chr(10))[0]}") from error
        self.is_on_gpu = cuda.is_used_by(self._session)
        self._device, self._device_id = ("cuda", device_id) if self.is_on_gpu else ("cpu", 0)

        inputs = {node.name: node for node in self._session.get_inputs()}
        outputs = {node.name: node for node in self._session.get_outputs()}
        self._caches = [name for name in inputs if name.startswith("past_key_values.")]
        try:
            self.dtype = FLOAT_TYPES[inputs["inputs_embeds"].type]
            self.hidden_size: int = inputs["inputs_embeds"].shape[2]
            self.vocabulary_size: int = outputs["logits"].shape[1]
            _, self._kv_heads, _, self._head_dim = inputs[self._caches[0]].shape
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{path}: not a decoder that `medimage export cxrreportgen` writes") from error

        self.max_length = max_length
        self._row_bytes = self._kv_heads * max_length * self._head_dim * np.dtype(self.dtype).itemsize
        try:
            self._take_memory(path, (gpu_slots or slots) if self.is_on_gpu else slots)
        except (OSError, MemoryError) as error:
            raise ValueError(
                f"{path}: the KV cache of {max_length} tokens a slot cannot be allocated on "
                f"{self._device}:{self._device_id} ({error}): lower the parameter {'gpu_' * self.is_on_gpu}slots or "
                "max_length"
            ) from error
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}  # by first slot and number of rows

    def _take_memory(self, path: Path, slots: int) -> None:
        self._memory: object  # which lives as long as the bindings to its address
        slot_bytes = len(self._caches) * self._row_bytes
        if self.is_on_gpu:
            self.slots = fit_slots_on_gpu(
                slots,
                slot_bytes,
                self.max_length,
                device_id=self._device_id,
                weight_bytes=path.with_name(f"{path.name}.data").stat().st_size,
            )
            block = cuda_memory.DeviceMemory(self.slots * slot_bytes, self._device_id)
            self._memory, self._address = block, block.address
            self._logits = cuda_memory.pinned((self.slots, self.vocabulary_size), self._device_id)
        else:
            self.slots = fit_slots(slots, slot_bytes, self.max_length)
            zeros = np.zeros(self.slots * slot_bytes, np.uint8)
            self._memory, self._address = zeros, zeros.ctypes.data
            self._logits = np.empty((self.slots, self.vocabulary_size), np.float32)

    def prefill(self, slot: int, embeds: Embeds, *, past: int, position_ids: NDArray[np.int64]) -> Logits:
        """Read the next tokens of a prompt into a slot.

        Args:
            embeds: (S, H), the S tokens.
            past: how many tokens of this prompt the slot holds already; with 0, what it held before is forgotten.
            position_ids: (S,), the row of the rope table for each.

        Returns:
            (V,), after the last of them; valid until the next call.
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
            (n, V), valid until the next call.
        """
        return self._run(0, embeds[:, np.newaxis], lengths, position_ids[:, np.newaxis])

    def _run(self, first_slot: int, embeds: Embeds, totals: Integers, position_ids: NDArray[np.int64]) -> Logits:
        rows = len(embeds)
        binding = self._bindings.get((first_slot, rows)) or self._bind_slots(first_slot, rows)
        # Bound anew also where the shapes are the same: for a GPU it is by binding that they are copied there.
        binding.bind_cpu_input("inputs_embeds", np.ascontiguousarray(embeds, self.dtype))
        binding.bind_cpu_input("position_ids", np.ascontiguousarray(position_ids))
        binding.bind_cpu_input("seqlens_k", (totals - 1).astype(np.int32))
        binding.bind_cpu_input("total_sequence_length", np.array(totals.max(), np.int32))
        try:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception:  # see above
            if self.is_on_gpu:
                cuda.give_up_if_lost("decoder.onnx", self._device_id)
            raise
        return self._logits[:rows]

    def _bind_slots(self, first_slot: int, rows: int) -> ort.IOBinding:
        """The KV cache of these slots, and the place of their logits."""
        binding = self._session.io_binding()
        shape = (rows, self._kv_heads, self.max_length, self._head_dim)
        for index, past in enumerate(self._caches):
            address = self._address + (index * self.slots + first_slot) * self._row_bytes
            place = (self._device, self._device_id, self.dtype, shape, address)
            binding.bind_input(past, *place)
            binding.bind_output(past.replace("past_key_values", "present"), *place)
        logits = self._logits[:rows]
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._bindings[first_slot, rows] = binding
        return binding
