"""The adapters' dropout: which elements of a layer's input are zero in a training step.

Everything is drawn from streams of its own, begun anew for each pack of rows: the global stream belongs to the process,
and packs that are worked on at the same time must not feel each other.
"""

import threading
from collections.abc import Callable
from typing import Protocol

import torch

from template.training import determinism

# A CPU compares 16 random bits of each element with a threshold.
_DRAWS = 2**16

Again = Callable[[torch.Tensor], torch.Tensor]
"""The same masks once more: on x (N, I) or (G, N, I), the result (G, N, I)."""


class Dropout(Protocol):
    """What an adapted product needs of it. scale: by which results are still to be multiplied, for what is dropped."""

    scale: float

    def seed(self, value: int) -> None:
        """Begins the stream `value`, 0 <= value < 2**63, for the calling thread."""

    def drop(self, x: torch.Tensor, count: int) -> tuple[torch.Tensor, Again]:
        """`count` fresh masks on x (N, I): the results (count, N, I), and how to put the same masks on again."""


def make_dropout(p: float, device: torch.device) -> Dropout:
    """The dropout of probability 0 < `p` < 1 for tensors on the device."""
    return CudaDropout(p, device) if device.type == "cuda" else CpuDropout(p)


class CudaDropout:
    """By torch's fused kernel, which draws, drops and scales in one pass. A byte of each element of a mask is kept.

    generator: all that is drawn comes from it. A CUDA graph that drops must have it registered.
    """

    scale = 1.0

    def __init__(self, p: float, device: torch.device) -> None:
        self._kept_share = 1.0 - p
        self.generator = torch.Generator(device=device)

    def seed(self, value: int) -> None:
        """As `Dropout`, for all threads."""
        determinism.begin_stream(self.generator, value)

    def drop(self, x: torch.Tensor, count: int) -> tuple[torch.Tensor, Again]:
        """As `Dropout`."""
        dropped, mask = torch._fused_dropout(x.expand(count, *x.shape), self._kept_share, self.generator)
        return dropped, lambda other: torch._masked_scale(other.expand(mask.shape), mask, 1.0 / self._kept_share)


class CpuDropout:
    """By 16 random bits for each element, four elements a draw. A byte of each element of a mask is kept.

    An element is dropped with the probability nearest to `p` that 16 bits can have, never 0 nor 1; `kept_share` is what
    remains.
    """

    def __init__(self, p: float) -> None:
        self.kept_share = min(max(round((1.0 - p) * _DRAWS), 1), _DRAWS - 1) / _DRAWS
        self.scale = 1.0 / self.kept_share
        self._own = threading.local()

    def seed(self, value: int) -> None:
        """As `Dropout`."""
        self._own.generator = determinism.begin_stream(torch.Generator(), value)

    def drop(self, x: torch.Tensor, count: int) -> tuple[torch.Tensor, Again]:
        """As `Dropout`."""
        mask = self.draw(torch.Size([count, *x.shape]))
        kept = mask.to(torch.int8)  # one byte is enough: all its bits are the same
        return apply_mask(x, mask), lambda other: apply_mask(other, kept)

    def draw(self, shape: torch.Size) -> torch.Tensor:
        """A fresh mask: int16, -1 (all bits set) where an element is kept and 0 where it is dropped."""
        count = shape.numel()
        words = torch.empty(-(-count // 4), dtype=torch.int64)
        bits = words.random_(-(2**63), None, generator=self._own.generator).view(torch.int16)[:count]
        first_dropped = round(self.kept_share * _DRAWS) - _DRAWS // 2
        # Clamped to the two numbers at the threshold, then moved to -1 and 0: cheaper than to compare and to convert.
        return bits.clamp_(first_dropped - 1, first_dropped).sub_(first_dropped).view(shape)


def apply_mask(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`x` with exact zeros where the mask has them. By its bits, because that is the cheapest way to multiply by 0."""
    bits = torch.int16 if x.element_size() == 2 else torch.int32
    return (x.view(bits) & mask.to(bits)).view(x.dtype)
