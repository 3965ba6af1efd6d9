"""TODO"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from template.competition import CommitmentRecord, Competition
from template.constants import SEAL_GRACE_BLOCKS
from template.errors import Reason, SubmissionError
from template.records import ChainView, RoundEntry, Submission, SubmissionKey

_MISSING = (Reason.MISSING_REPO, Reason.MISSING_FILE)


CommitBlocks = Mapping[tuple[str, int], int]
"""The blocks of sealed commitments by hotkey and the block at which the chain opened them."""


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A registered hotkey's current commitment.

    block is the earliest at which everybody could read it, rank_block what earlier and later are judged by: the
    earliest block at which this hotkey was seen to commit this, in the open or sealed, but later than any at which its
    file was looked for in vain. Neither counts from before the hotkey's registration_block. record is None exactly when
    `refusal` is not, with the reason.
    """

    key: SubmissionKey
    uid: int
    block: int
    rank_block: int
    registration_block: int
    record: CommitmentRecord | None
    refusal: SubmissionError | None

    def ranked_last(self, block: int) -> "Entrant":
        """This entrant ranked behind all who stand at `block`: its file was not there when it was looked for."""
        return dataclasses.replace(self, rank_block=max(self.rank_block, block + 1))

    def to_entry(self, *, lucky_num: int | None, seed_block: int | None) -> RoundEntry:
        """The entry in a round that `read_entry` makes this entrant of."""
        return RoundEntry(
            key=self.key,
            uid=self.uid,
            block=self.block,
            rank_block=self.rank_block,
            registration_block=self.registration_block,
            lucky_num=lucky_num,
            seed_block=seed_block,
        )


def check_competition(record: CommitmentRecord, competition: Competition) -> None:
    """Raises: SubmissionError (WRONG_COMPETITION) when the record enters another competition."""
    if record.competition_id != competition.id:
        raise SubmissionError(
            Reason.WRONG_COMPETITION,
            f"the commitment is for competition {record.competition_id!r}, and this one is {competition.id!r}",
        )


def check_registration(block: int, registration_block: int) -> None:
    """Raises: SubmissionError (BEFORE_REGISTRATION) when a commitment of `block` is not later than the registration.

    A hotkey that registers again competes anew: what it committed in an earlier life stays on chain and is old.
    """
    if block <= registration_block:
        raise SubmissionError(
            Reason.BEFORE_REGISTRATION,
            f"committed in block {block}, but the hotkey registered in block {registration_block}; commit again",
        )


def is_within_upload_grace(record: CommitmentRecord, reason: Reason, *, commit_block: int, block: int) -> bool:
    """True for a file that is promised by its digest alone and not there, while its time to come is not over.

    commit_block: where the chain shows the commitment, or its opening. block: where its file was looked for.
    """
    return record.is_content_addressed and reason in _MISSING and block <= commit_block + SEAL_GRACE_BLOCKS


def current_submissions(view: ChainView, commit_blocks: CommitBlocks | None = None) -> list[Submission]:
    """The readable commitments of registered hotkeys in `view`, as of its block.

    What others left behind is not looked at: whatever was committed before a registration stands for nothing after it.
    openings: where the ones were made that the chain has opened, {(hotkey, reveal block): block}, which it no longer
    tells itself; one that is not among them is left out. None: they count from their opening.
    """
    found, registered = [], view.by_hotkey
    for one in view.commitments:
        opened = (one.hotkey, one.block)
        if one.text is None or one.hotkey not in registered:
            continue
        if one.is_revealed and commit_blocks is not None and opened not in commit_blocks:
            continue
        first_block = commit_blocks[opened] if one.is_revealed and commit_blocks is not None else one.block
        now = Submission(
            hotkey=one.hotkey, entry=one.text, first_block=first_block, block=one.block, open_block=one.block
        )
        found.append(now)
    return found


def missing_commit_blocks(view: ChainView, commit_blocks: CommitBlocks) -> dict[str, int]:
    """The reveal blocks, by registered hotkey, of opened commitments of which it is not known where they were made."""
    registered = view.by_hotkey
    return {
        one.hotkey: one.block
        for one in view.commitments
        if one.is_revealed and one.hotkey in registered and (one.hotkey, one.block) not in commit_blocks
    }


def prune_commit_blocks(commit_blocks: CommitBlocks, *, before_block: int) -> CommitBlocks:
    """Those from that block on, and each hotkey's newest of before it, which may stand still."""
    newest: dict[str, int] = {}
    for hotkey, block in commit_blocks:
        if block < before_block:
            newest[hotkey] = max(block, newest.get(hotkey, block))
    return {
        (hotkey, block): commit_block
        for (hotkey, block), commit_block in commit_blocks.items()
        if block >= before_block or block == newest[hotkey]
    }


def find_entrants(
    view: ChainView,
    seen: Mapping[SubmissionKey, Submission],
    competition: Competition,
    commit_blocks: CommitBlocks | None = None,
) -> dict[SubmissionKey, Entrant]:
    """The entrants of `view`; `seen` is every submission ever recorded, those of `view` among them."""
    neurons = view.by_hotkey
    entrants = {}
    for now in current_submissions(view, commit_blocks):
        neuron = neurons[now.hotkey]
        born = neuron.registration_block
        past = seen.get(now.key, now)
        # A snapshot of the past may show a commitment that was only recorded when it was set again, later.
        first_block = min(past.first_block, now.first_block)
        open_block = min(past.open_block, now.open_block)
        rank_block = now.open_block if first_block <= born else first_block
        entry = RoundEntry(
            key=now.key,
            uid=neuron.uid,
            block=now.open_block if open_block <= born else open_block,
            rank_block=max(rank_block, past.missing_block + 1) if past.missing_block else rank_block,
            registration_block=born,
        )
        entrants[now.key] = read_entry(entry, competition)
    return entrants


def read_entry(entry: RoundEntry, competition: Competition) -> Entrant:
    """The entrant that a round's entry stands for."""
    try:
        record: CommitmentRecord | None = CommitmentRecord.parse(entry.key.entry)
        assert record is not None
        check_competition(record, competition)
        check_registration(entry.block, entry.registration_block)
        refusal = None
    except SubmissionError as error:
        record, refusal = None, error
    return Entrant(
        key=entry.key,
        uid=entry.uid,
        block=entry.block,
        rank_block=entry.rank_block,
        registration_block=entry.registration_block,
        record=record,
        refusal=refusal,
    )


def order_entries(
    entrants: Iterable[Entrant], failures: Mapping[SubmissionKey, int], limit: int
) -> Sequence[SubmissionKey]:
    """At most `limit` submissions in the order of their turns, which is that of their rank blocks.

    failures: how often the network withheld them. Those that it did take at most half of the places while others wait,
    whoever was withheld least often first: what cannot be had, however early it was committed, starves nobody, and an
    outage of the Hub costs nobody his turn.
    """
    ready = sorted(
        (entrant for entrant in entrants if entrant.refusal is None),
        key=lambda entrant: (entrant.rank_block, entrant.key),
    )
    withheld = [entrant.key for entrant in ready if failures.get(entrant.key)]
    others = len(ready) - len(withheld)
    taken = set(sorted(withheld, key=lambda key: failures[key])[: max(limit // 2, limit - others)])
    return [entrant.key for entrant in ready if entrant.key in taken or not failures.get(entrant.key)][:limit]
