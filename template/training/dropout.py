"""Dropout of the adapters' input, drawn from private streams.

Each pack of rows has its own stream, because the global one belongs to the process and packs may run in parallel.
"""

import threading
from collections.abc import Callable

import torch

# The CPU compares 16 random bits per element with a threshold.
_DRAWS = 2**16

Reapply = Callable[[torch.Tensor], torch.Tensor]
"""Applies the same masks again: x (N, I) or (G, N, I) to (G, N, I)."""


class CudaDropout:
    """Dropout by torch's fused kernel; a CUDA graph must register `generator`."""

    scale = 1.0

    def __init__(self, p: float, device: torch.device) -> None:
        self._keep_rate = 1.0 - p
        self.generator = torch.Generator(device=device)

    def seed(self, value: int) -> None:
        """Start the stream, which all threads share."""
        self.generator.manual_seed(value)

    def drop(self, x: torch.Tensor, count: int) -> tuple[torch.Tensor, Reapply]:
        """Drop like `CpuDropout.drop`, and scale the result."""
        dropped, mask = torch._fused_dropout(x.expand(count, *x.shape), self._keep_rate, self.generator)
        return dropped, lambda other: torch._masked_scale(other.expand(mask.shape), mask, 1.0 / self._keep_rate)


class CpuDropout:
    """Dropout by 16 random bits per element; `keep_rate` is 1 - p, rounded to 2**-16."""

    def __init__(self, p: float) -> None:
        self.keep_rate = min(max(round((1.0 - p) * _DRAWS), 1), _DRAWS - 1) / _DRAWS
        self.scale = 1.0 / self.keep_rate
        self._thread = threading.local()

    def seed(self, value: int) -> None:
        """Start the calling thread's stream from a seed, 0 <= value < 2**63."""
        self._thread.generator = torch.Generator().manual_seed(value)

    def drop(self, x: torch.Tensor, count: int) -> tuple[torch.Tensor, Reapply]:
        """Apply `count` masks to x (N, I); returns (count, N, I) and how to reapply them.

        The result must still be multiplied by `scale`.
        """
        mask = self.draw(torch.Size([count, *x.shape]))
        compact = mask.to(torch.int8)  # all bits of an element are equal
        return apply_mask(x, mask), lambda other: apply_mask(other, compact)

    def draw(self, shape: torch.Size) -> torch.Tensor:
        """Draw an int16 mask: -1 (all bits set) keeps an element, 0 drops it."""
        count = shape.numel()
        words = torch.empty(-(-count // 4), dtype=torch.int64)  # four elements per draw
        bits = words.random_(-(2**63), None, generator=self._thread.generator).view(torch.int16)[:count]
        first_dropped = round(self.keep_rate * _DRAWS) - _DRAWS // 2
        # Clamp to the two values at the threshold, then shift to -1 and 0: cheaper than to compare and convert.
        return bits.clamp_(first_dropped - 1, first_dropped).sub_(first_dropped).view(shape)


def apply_mask(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Zero the masked elements by a bitwise and, the cheapest way to multiply by 0."""
    bits = torch.int16 if x.element_size() == 2 else torch.int32
    return (x.view(bits) & mask.to(bits)).view(x.dtype)


Dropout = CpuDropout | CudaDropout
