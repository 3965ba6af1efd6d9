"""The runtime metadata that the bittensor client keeps on disk.

The client keeps what one node sent, by chain and runtime version, and reads it again in every process. Damaged metadata
that can still be parsed would make every later answer invalid, whatever node sends it.
"""

from contextlib import suppress

from bittensor._transport.runtime import _disk_cache_dir


def forget_runtimes() -> None:
    """Delete the stored metadata, so that the next connection asks its node for it."""
    # Path.home fails without a home, and then nothing is stored.
    with suppress(OSError, RuntimeError):
        for path in _disk_cache_dir().glob("md*.bin"):
            path.unlink(missing_ok=True)
