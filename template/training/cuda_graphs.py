"""CUDA graphs of a training pack: one launch instead of thousands.

A GPU computes a training pack in a tenth of the time that it takes to launch its operations. So they are recorded once
per length, in steps of `LENGTH_STEP` tokens, and replayed: a pack is copied into the recorded inputs, and padded with
tokens that attend to themselves only and whose gradient is zero. The output head runs eagerly between forward and
backward, because its size depends on the targets. All graphs share one memory pool, since no two run at a time.
Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from template.constants import MAX_TOKENS
from template.training.attention import VarlenSpans
from template.training.dropout import CudaDropout
from template.training.packing import Pack

# A larger step computes more padding, a smaller one records more graphs.
LENGTH_STEP = 256

# Longest graph, as long as a row can be. Recorded first, so that all others fit in its memory.
LONGEST = MAX_TOKENS

Decode = Callable[[torch.Tensor, torch.Tensor, VarlenSpans], torch.Tensor]
"""(token ids (1, N), positions (1, N), spans) -> hidden states (N, H)."""


@dataclass(frozen=True)
class _Recording:
    ids: torch.Tensor
    positions: torch.Tensor
    cu_seqlens: torch.Tensor
    hidden: torch.Tensor
    upstream: torch.Tensor
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph


class TrainingGraphs:
    """The graphs of a model, recorded at the first use of a length.

    Every `backward` adds to `gradients`, which are in the order of `parameters`.
    """

    def __init__(
        self,
        decode: Decode,
        parameters: Sequence[torch.nn.Parameter],
        dropout: CudaDropout | None,
        *,
        device: torch.device,
        max_rows: int,
        is_dropping: Callable[[], bool],
    ) -> None:
        self.gradients = [torch.zeros_like(parameter) for parameter in parameters]
        self._decode = decode
        self._parameters = list(parameters)
        self._dropout = dropout
        self._slots = max_rows + 2  # the starts of rows and padding, and the end
        self._is_dropping = is_dropping
        # One stream for all recordings, because the pool's free memory belongs to a stream.
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._recordings: dict[tuple[int, bool], _Recording] = {}

    def forward(self, pack: Pack) -> torch.Tensor:
        """Compute the hidden states (N, H) of a pack; valid until the next call."""
        recording = self._recording_for(pack)
        assert isinstance(pack.layout, VarlenSpans)
        count = pack.token_count
        length = recording.ids.shape[1]
        for buffer, values in ((recording.ids, pack.input_ids), (recording.positions, pack.positions)):
            buffer.zero_()
            buffer[:, :count].copy_(values[:, :count])
        rows = len(pack.indices)
        recording.cu_seqlens.fill_(length)
        recording.cu_seqlens[: rows + 1].copy_(pack.layout.cu_seqlens_q[: rows + 1])
        recording.forward.replay()
        return recording.hidden

    def backward(self, pack: Pack, sources: torch.Tensor, upstream: torch.Tensor) -> None:
        """Add the last pack's gradients, from those (T, H) of its states at `sources`."""
        recording = self._recording_for(pack)
        recording.upstream.zero_().index_copy_(0, sources, upstream)
        recording.backward.replay()

    def _recording_for(self, pack: Pack) -> _Recording:
        length = -(-pack.token_count // LENGTH_STEP) * LENGTH_STEP
        is_dropping = self._is_dropping()
        for needed in (LONGEST, length):
            if (needed, is_dropping) not in self._recordings:
                self._recordings[needed, is_dropping] = self._record(needed, pack.input_ids.device)
        return self._recordings[length, is_dropping]

    def _record(self, length: int, device: torch.device) -> _Recording:
        """Record a length; gradients and the dropout's stream stay as they are."""
        ids, positions = (torch.zeros(1, length, dtype=torch.int64, device=device) for _ in range(2))
        cu_seqlens = torch.full((self._slots,), length, dtype=torch.int32, device=device)
        cu_seqlens[0] = 0
        spans = VarlenSpans(cu_seqlens, cu_seqlens, key_indices=None, max_seqlens=(length, length))
        # Warm up, because libraries initialize at first use, which must not be recorded. The warm-up allocates outside
        # the pool, so free the allocator's cache for it.
        torch.cuda.empty_cache()
        self._stream.wait_stream(torch.cuda.current_stream(device))
        state = None if self._dropout is None else self._dropout.generator.get_state()
        with torch.cuda.stream(self._stream):
            hidden = self._decode(ids, positions, spans)
            upstream = torch.zeros_like(hidden)
            torch.autograd.grad(hidden, self._parameters, upstream)
        torch.cuda.current_stream(device).wait_stream(self._stream)
        if self._dropout is not None and state is not None:
            self._dropout.generator.set_state(state)
        del hidden
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        for graph in (forward, backward):
            if self._dropout is not None:
                graph.register_generator_state(self._dropout.generator)
        # thread_local: other threads of the process may use their own streams during the capture.
        options: dict[str, Any] = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(forward, **options):
            hidden = self._decode(ids, positions, spans)
        with torch.cuda.graph(backward, **options):
            torch._foreach_add_(self.gradients, torch.autograd.grad(hidden, self._parameters, upstream))
        return _Recording(ids, positions, cu_seqlens, hidden.detach(), upstream, forward, backward)
