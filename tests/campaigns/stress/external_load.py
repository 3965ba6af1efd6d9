"""Processes that take from a machine what a score beside them would like to have.

    python -m tests.campaigns.stress.external_load products
    python -m tests.campaigns.stress.external_load memory 4000000000
    python -m tests.campaigns.stress.external_load cuda_memory cuda:0 8000000000

Each writes a line when it is at work, and goes on until it or its parent is killed.
"""

import sys
from collections.abc import Callable, Iterator, Sequence

from template.workers.worker import set_parent_death_signal


def products() -> Iterator[None]:
    """The widest vector units of one core."""
    import torch

    torch.set_num_threads(1)
    left = torch.randn(512, 512)
    while True:
        left @ left
        yield


def bandwidth() -> Iterator[None]:
    """The way to memory, by copies that no cache holds."""
    import torch

    torch.set_num_threads(1)
    one, other = torch.ones(32_000_000), torch.zeros(32_000_000)
    while True:
        other.copy_(one)
        yield


def memory(size: str) -> Iterator[None]:
    """That many bytes, each page of which is written again and again."""
    held = bytearray(int(size))
    page = b"\1"
    while True:
        for at in range(0, len(held), 4096):
            held[at : at + 1] = page
        yield


def cuda_products(device: str) -> Iterator[None]:
    """A GPU's matrix units and its scheduler."""
    import torch

    left = torch.randn(4096, 4096, device=device, dtype=torch.bfloat16)
    while True:
        for _ in range(20):
            left @ left
        torch.cuda.synchronize(device)
        yield


def cuda_memory(device: str, left_bytes: str) -> Iterator[None]:
    """All of a GPU's memory but that many bytes."""
    import time

    import torch

    held = []
    torch.zeros(1, device=device)
    while (take := min(torch.cuda.mem_get_info(device)[0] - int(left_bytes), 2**30)) > 2**21:
        held.append(torch.ones(take, dtype=torch.uint8, device=device))
    while True:
        time.sleep(0.1)
        yield


KINDS: dict[str, Callable[..., Iterator[None]]] = {
    "products": products,
    "bandwidth": bandwidth,
    "memory": memory,
    "cuda_products": cuda_products,
    "cuda_memory": cuda_memory,
}


def main(argv: Sequence[str]) -> None:
    """Works until it is killed, or its parent is."""
    set_parent_death_signal()
    work = KINDS[argv[0]](*argv[1:])
    next(work)
    print("at work", flush=True)
    for _ in work:
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
