"""Blocks at which a sealed commitment is revealed and its file uploaded."""

import pytest

from template.miner.sealed import MARGIN_BLOCKS, SEAL_LEAD_BLOCKS, after_blocks, at_round_start


def test_reveal_skips_a_round_that_is_too_near() -> None:
    opens = at_round_start(360).reveal_block
    last = 360 - SEAL_LEAD_BLOCKS - MARGIN_BLOCKS
    assert [opens(block) for block in (0, last, last + 1, 360)] == [345, 345, 705, 705]
    assert at_round_start(10).reveal_block(100) == 125
    assert after_blocks(50).reveal_block(7) == after_blocks(50).upload_block(57) == 57


@pytest.mark.parametrize(
    ("period", "revealed", "uploaded"),
    [
        pytest.param(360, 345, 360, id="in time"),
        pytest.param(360, 360, 360, id="in the round's own block, which holds it"),
        pytest.param(360, 361, 361, id="late, and the next round is out of reach"),
        pytest.param(100, 361, 400, id="late, and the next round is near"),
        pytest.param(360, 110, 360, id="early, as far as the time for the upload allows"),
        pytest.param(360, 109, 109, id="too early"),
    ],
)
def test_upload_block_is_a_round_start_within_the_grace(period: int, revealed: int, uploaded: int) -> None:
    assert at_round_start(period).upload_block(revealed) == uploaded
