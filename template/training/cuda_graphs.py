"""A training pack's way through the decoder and back as CUDA graphs: one launch in place of thousands.

A GPU does such a pack in a tenth of the time that it takes to launch its operations one by one. So they are recorded
once for each length, in steps of `LENGTH_STEP` tokens, and replayed: a pack is copied to where the recorded operations
read it, filled up with tokens that no row sees and whose gradient is zero. The output head stands between the two
graphs, launched as ever, for its size depends on the targets. All graphs use one pool of memory, since no two of them
are ever in flight. Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from template.constants import MAX_TOKENS
from template.training.attention import VarlenSpans
from template.training.dropout import CudaDropout
from template.training.packing import Pack

# Lengths of graphs. Fewer would compute more filling, more would be more to record.
LENGTH_STEP = 256

# Of the longest one, as long as a row can be. It is recorded first, so that all others find room in its memory.
LONGEST = MAX_TOKENS

Decode = Callable[[torch.Tensor, torch.Tensor, VarlenSpans], torch.Tensor]
"""Token ids and positions (1, N), and who sees whom, to hidden states (N, H)."""


@dataclass(frozen=True)
class _Recording:
    """Two graphs, and what they read and write: ids and positions (1, N), cuts (S + 1,), hidden and upstream (N, H)."""

    ids: torch.Tensor
    positions: torch.Tensor
    cuts: torch.Tensor
    hidden: torch.Tensor
    upstream: torch.Tensor
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph


class TrainingGraphs:
    """The graphs of one model, recorded when a length is met for the first time.

    gradients: of `parameters`, in their order, to which every `backward` adds. most_rows: of one pack.
    is_dropping: whether `decode` drops at the time.
    """

    def __init__(
        self,
        decode: Decode,
        parameters: Sequence[torch.nn.Parameter],
        dropout: CudaDropout | None,
        *,
        device: torch.device,
        most_rows: int,
        is_dropping: Callable[[], bool],
    ) -> None:
        self.gradients = [torch.zeros_like(parameter) for parameter in parameters]
        self._decode = decode
        self._parameters = list(parameters)
        self._dropout = dropout
        self._slots = most_rows + 2  # where rows begin, where the filling does, and the end
        self._is_dropping = is_dropping
        # One stream for all recordings: what the pool has free is each stream's own.
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._recordings: dict[tuple[int, bool], _Recording] = {}

    def forward(self, pack: Pack) -> torch.Tensor:
        """The hidden states (N, H) of the pack's tokens, until the next call."""
        recording = self._recording_for(pack)
        assert pack.spans is not None
        count = pack.token_count
        length = recording.ids.shape[1]
        for held, given in ((recording.ids, pack.input_ids), (recording.positions, pack.positions)):
            held.zero_()
            held[:, :count].copy_(given[:, :count])
        rows = len(pack.indices)
        recording.cuts.fill_(length)
        recording.cuts[: rows + 1].copy_(pack.spans.queries[: rows + 1])
        recording.forward.replay()
        return recording.hidden

    def backward(self, pack: Pack, sources: torch.Tensor, upstream: torch.Tensor) -> None:
        """Adds the gradient of the pack that went forward last; upstream (T, H): of the hidden states at `sources`."""
        recording = self._recording_for(pack)
        recording.upstream.zero_().index_copy_(0, sources, upstream)
        recording.backward.replay()

    def _recording_for(self, pack: Pack) -> _Recording:
        length = -(-pack.token_count // LENGTH_STEP) * LENGTH_STEP
        is_dropping = self._is_dropping()
        for wanted in (LONGEST, length):
            if (wanted, is_dropping) not in self._recordings:
                self._recordings[wanted, is_dropping] = self._record(wanted, pack.input_ids.device)
        return self._recordings[length, is_dropping]

    def _record(self, length: int, device: torch.device) -> _Recording:
        """The graphs for packs of that many tokens. Gradients and the dropout's stream are left as they were."""
        ids, positions = (torch.zeros(1, length, dtype=torch.int64, device=device) for _ in range(2))
        cuts = torch.full((self._slots,), length, dtype=torch.int32, device=device)
        cuts[0] = 0
        spans = VarlenSpans(queries=cuts, keys=cuts, places=None, longest=(length, length))
        # Libraries prepare themselves at first use, which no recording may hold. That run is outside the pool, so what
        # the allocator keeps in reserve makes room for it.
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
        # Other threads of the process may use their own streams meanwhile.
        how: dict[str, Any] = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(forward, **how):
            hidden = self._decode(ids, positions, spans)
        with torch.cuda.graph(backward, **how):
            torch._foreach_add_(self.gradients, torch.autograd.grad(hidden, self._parameters, upstream))
        return _Recording(ids, positions, cuts, hidden.detach(), upstream, forward, backward)
