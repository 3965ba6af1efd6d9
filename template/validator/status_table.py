"""A round's table in words. Pure."""

from collections.abc import Sequence

from template.state import Round, Standing, WeightIntent
from template.terminal import align, plain, plain_cell

_HEADER = ("hotkey", "uid", "dataset", "verdict", "loss", "score", "weight")


def describe_round(
    current: Round, standings: Sequence[Standing], intents: Sequence[WeightIntent], *, rows: int | None = None
) -> str:
    """The round's table, at most so many rows of it, why some do not count, and what became of the weights.

    `verdict` is why a submission does not count, or that it was scored, or that it still waits.
    """
    shown = standings[:rows]
    table = align([_HEADER, *map(_format_line, shown)], has_header=True)
    if len(standings) > len(shown):
        table.append(f"... and {len(standings) - len(shown)} more, --all shows them")
    notes = [f"{_short(line.key.hotkey)}: {plain(line.message)}" for line in shown if line.reason is not None]
    title = f"round {current.id}, blocks {current.start_block} to {current.end_block}, lucky_num {current.lucky_num}"
    return "\n".join([title, "", *table, "", *notes, _describe_weights(intents)])


def shorten(lines: Sequence[str], most: int) -> list[str]:
    """The first lines, and how many more there are."""
    more = len(lines) - most
    return [*lines[:most], f"and {more} more"] if more > 0 else list(lines)


def _format_line(line: Standing) -> tuple[str, ...]:
    """One row of the table: text for every column of the header."""
    scored = "scored" if line.loss is not None else "waiting"
    return (
        _short(line.key.hotkey),
        str(line.uid),
        plain_cell(line.key.entry.split(":", 1)[0], 40),
        str(line.reason) if line.reason is not None else scored,
        "-" if line.loss is None else f"{line.loss:.6f}",
        f"{line.score:.4f}",
        f"{line.weight:.4f}",
    )


def _describe_weights(intents: Sequence[WeightIntent]) -> str:
    """What became of the round's weights, in a sentence."""
    if not intents:
        return "weights: none submitted in this round"
    last = intents[-1]
    whose = " (an earlier round's, given again)" if last.is_repeat else ""
    if last.outcome is None:
        return f"weights: decided at block {last.block}, outcome not known yet{whose}"
    if last.outcome.is_accepted:
        return f"weights: on chain since block {last.outcome.block or last.block}{whose}"
    why = plain(f"{last.outcome.error}: {last.outcome.message}")
    return f"weights: refused at block {last.block}{whose}: {why}"


def _short(hotkey: str) -> str:
    """The two ends of an address, enough to tell hotkeys apart in a table."""
    return f"{hotkey[:6]}..{hotkey[-4:]}"
