"""Processes that compete with an evaluation for the machine.

    python -m tests.campaigns.stress.external_load products
    python -m tests.campaigns.stress.external_load memory 4000000000
    python -m tests.campaigns.stress.external_load cuda_memory cuda:0 8000000000

Each writes a line once it works, and goes on until it or its parent is killed.
"""

import sys
import time
from collections.abc import Iterator, Sequence

from template.workers.worker import set_parent_death_signal


def products() -> Iterator[None]:
    """Use the widest vector units of one core."""
    import torch

    torch.set_num_threads(1)
    matrix = torch.randn(512, 512)
    while True:
        matrix @ matrix
        yield


def bandwidth() -> Iterator[None]:
    """Copy more than any cache holds."""
    import torch

    torch.set_num_threads(1)
    source, target = torch.ones(32_000_000), torch.zeros(32_000_000)
    while True:
        target.copy_(source)
        yield


def memory(size: str) -> Iterator[None]:
    """Allocate `size` bytes, and write each page again and again."""
    content = bytearray(int(size))
    while True:
        content[::4096] = b"\1" * len(range(0, len(content), 4096))
        yield


def cuda_products(device: str) -> Iterator[None]:
    """Use a GPU's matrix units."""
    import torch

    matrix = torch.randn(4096, 4096, device=device, dtype=torch.bfloat16)
    while True:
        for _ in range(20):
            matrix @ matrix
        torch.cuda.synchronize(device)
        yield


def cuda_memory(device: str, left_bytes: str) -> Iterator[None]:
    """Allocate all of a GPU's memory but `left_bytes`."""
    import torch

    tensors = [torch.zeros(1, dtype=torch.uint8, device=device)]
    while (size := min(torch.cuda.mem_get_info(device)[0] - int(left_bytes), 2**30)) > 2**21:
        tensors.append(torch.ones(size, dtype=torch.uint8, device=device))
    while True:
        time.sleep(0.1)
        yield


def main(argv: Sequence[str]) -> None:
    set_parent_death_signal()
    load: Iterator[None] = globals()[argv[0]](*argv[1:])
    next(load)
    print("at work", flush=True)
    for _ in load:
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
