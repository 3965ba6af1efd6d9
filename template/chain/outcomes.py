"""Read what the client reports about a call: the chain's error, the block, the pause before a retry."""

import bittensor as bt


def error_name(result: bt.ExtrinsicResult) -> str | None:
    """Return the chain's name of a failed call's error."""
    return None if result.error is None else result.error.name


def block_of(result: bt.ExtrinsicResult) -> int | None:
    """Return the block that includes a call."""
    number = (result.extrinsic_id or "").partition("-")[0]
    return int(number) if number.isdecimal() else None


def retry_after_s(exc: BaseException) -> float | None:
    """Return the pause that a node asks for, in seconds."""
    text = getattr(exc, "retry_after", None)
    return float(text) if isinstance(text, str) and text.isdecimal() else None
