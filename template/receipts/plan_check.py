"""Plan a round again from the files of the rounds before it. Pure."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

from template.receipts.findings import Finding, Kind
from template.receipts.history import CheckedRound
from template.receipts.round_file import RoundHeader
from template.records import ContentKey, LedgerLine, Rank
from template.rules.evaluations import newcomer_blocks, plan_evaluations
from template.rules.ledger import Content, read_ledger
from template.rules.stands import align
from template.rules.table import tie_break

# Slots of a plan with all evaluations that may be done.
_ALL_SLOTS = 1 << 20


def check_plan(
    header: RoundHeader, checked: CheckedRound, block_hash: Callable[[int], str] | None
) -> Iterator[Finding]:
    """Compare the evaluations of a round with the plan of the rules.

    A dataset that was still to be downloaded may have come after the plan. Then, without the files of the last day, or
    without a chain for equal ranks, only evaluations that no plan has are found.

    Args:
        block_hash: Returns the hash of a rank block, None without a chain.
    """
    actual = [(ContentKey(line.hotkey, line.digest), line.number) for line in header.evaluations]
    done = {key for key, _ in actual}
    shown = {
        ContentKey(line.hotkey, line.digest) for line in header.table if line.digest is not None and line.reason is None
    }
    in_ledger = {ContentKey(line.hotkey, line.digest): line for line in header.ledger}
    if not _has_all_losses(header, checked):
        return
    contents = {
        key: content
        for key in shown | done | in_ledger.keys()
        if (content := _make_content(key, in_ledger.get(key), header, checked, block_hash)) is not None
    }
    late = {key for key in (shown & contents.keys()) - done if not contents[key].losses and key.hotkey in header.queue}
    recent = _recent_runs(header, checked)
    is_exact = not late and recent is not None and block_hash is not None
    rules = header.incentives if is_exact else dataclasses.replace(header.incentives, slots=_ALL_SLOTS)
    ledger = read_ledger([contents[key] for key in in_ledger.keys() & contents.keys()], header.competition, rules)
    present = [contents[key] for key in ((shown | done) & contents.keys()) - late]
    plan = plan_evaluations(present, ledger, recent or {}, header.start_block, header.competition, rules)
    expected = [(planned.content.key, planned.number) for planned in plan]
    for key, number in actual:
        if (key, number) not in expected:
            yield Finding(Kind.PLAN, f"{key.hotkey}: evaluation {number} of {key.digest[:12]} is not in the plan")
    for key, number in expected if is_exact else ():
        # A file that was read after the plan can end another dataset's refusal.
        if (key, number) not in actual and key.hotkey not in checked.refused_before:
            yield Finding(Kind.PLAN, f"{key.hotkey}: evaluation {number} of {key.digest[:12]} is left out")


def _has_all_losses(header: RoundHeader, checked: CheckedRound) -> bool:
    """Check that these files have every evaluation that the round rests on."""
    return all(
        line.runs <= len(checked.season.first_losses(ContentKey(line.hotkey, line.digest), line.runs))
        for line in header.estimates
        if line.digest is not None
    )


def _make_content(
    key: ContentKey,
    confirmed: LedgerLine | None,
    header: RoundHeader,
    checked: CheckedRound,
    block_hash: Callable[[int], str] | None,
) -> Content | None:
    """Return a dataset as it was before the round; None for one that no entry has."""
    version = checked.versions.get(key)
    source = checked.season.ledger.get(key) or confirmed or version
    if source is None:
        return None
    public_block = version.public_block if version else source.rank_block
    seed = "" if block_hash is None else block_hash(public_block)
    is_confirmed = checked.is_confirmed(key, header.incentives.evaluations)
    later_seed_block = checked.season.seed_blocks.get(key, max(source.rank_block, public_block))
    return Content(
        key=key,
        rank=Rank(source.rank_block, source.commit_block, tie_break(seed, key)),
        registration_block=source.registration_block,
        losses=tuple(loss for _, loss in sorted(checked.earlier.get(key, {}).items())),
        seed_block=version.seed_block if version and not is_confirmed else later_seed_block,
    )


def _recent_runs(header: RoundHeader, checked: CheckedRound) -> Counter[str] | None:
    """Count each hotkey's recent evaluations; None if a file is missing."""
    period = header.incentives.blocks_per_epoch
    since = header.start_block - newcomer_blocks(len(header.entries), header.incentives)
    planned = [(block, runs) for block, runs in checked.season.planned if block < header.start_block]
    day = [(block, runs) for block, runs in planned if block > since]
    blocks = [*(block for block, _ in day), header.start_block]
    first = planned[0][0] if planned else header.start_block
    opening = max(header.incentives.start_block, header.incentives.season_block)
    if first > max(since, align(opening, period)) or any(
        later - earlier != period for earlier, later in pairwise(blocks)
    ):
        return None
    return sum((runs for _, runs in day), Counter())
