"""Find the entries of a subnet: one parsed, checked entry per hotkey."""

from collections.abc import Iterable, Mapping, Sequence

from template.chain_records import ChainSnapshot
from template.competition import CommitmentRecord, Competition
from template.constants import SEAL_GRACE_BLOCKS
from template.errors import Reason, SubmissionError
from template.records import Entry, Stand, SubmissionKey

# Reasons that the miner can still mend, by an upload or by making the repo public.
MISSING = (Reason.MISSING_REPO, Reason.MISSING_FILE)

CommitBlocks = Mapping[tuple[str, int], int]
"""Commit blocks of revealed commitments, by hotkey and reveal block."""


def check_competition(record: CommitmentRecord, competition_id: str) -> None:
    """Reject a commitment to another competition (SubmissionError)."""
    if record.competition_id != competition_id:
        raise SubmissionError(
            Reason.WRONG_COMPETITION,
            f"the commitment is for competition {record.competition_id!r}, and this one is {competition_id!r}",
        )


def check_registration(block: int, registration_block: int) -> None:
    """Reject a commitment that is not after the registration (SubmissionError).

    Commitments from before a new registration of the hotkey stay on chain and do not count.
    """
    if block <= registration_block:
        raise SubmissionError(
            Reason.BEFORE_REGISTRATION,
            f"committed in block {block}, but the hotkey registered in block {registration_block}; commit again",
        )


def is_within_upload_grace(record: CommitmentRecord, reason: Reason, *, reveal_block: int, block: int) -> bool:
    """Check that a file committed by its digest may still be uploaded.

    block: the newest block when the download began.
    """
    return record.is_content_addressed and reason in MISSING and block <= reveal_block + SEAL_GRACE_BLOCKS


def missing_commit_blocks(view: ChainSnapshot, commit_blocks: CommitBlocks) -> dict[str, int]:
    """Return the reveal blocks, by hotkey, whose commit block is unknown."""
    registered = view.by_hotkey
    return {
        commitment.hotkey: commitment.block
        for commitment in view.commitments
        if commitment.is_revealed
        and commitment.hotkey in registered
        and (commitment.hotkey, commitment.block) not in commit_blocks
    }


def prune_commit_blocks(commit_blocks: CommitBlocks, *, before_block: int) -> CommitBlocks:
    """Drop reveals before that block, except each hotkey's newest."""
    newest: dict[str, int] = {}
    for hotkey, block in commit_blocks:
        if block < before_block:
            newest[hotkey] = max(block, newest.get(hotkey, block))
    return {
        (hotkey, block): commit_block
        for (hotkey, block), commit_block in commit_blocks.items()
        if block >= before_block or block == newest[hotkey]
    }


def find_entries(
    view: ChainSnapshot, competition: Competition, commit_blocks: CommitBlocks | None = None
) -> dict[SubmissionKey, Entry]:
    """Return the entry of every readable commitment in `view`.

    A revealed commitment without an entry in `commit_blocks` is left out; with None it counts from its reveal.
    """
    entries, neurons = {}, view.by_hotkey
    for commitment in view.commitments:
        neuron, block = neurons.get(commitment.hotkey), commitment.block
        if commitment.text is None or neuron is None:
            continue
        commit_block: int | None = block
        if commitment.is_revealed and commit_blocks is not None:
            commit_block = commit_blocks.get((commitment.hotkey, block))
        if commit_block is not None:
            key = SubmissionKey(commitment.hotkey, commitment.text)
            entries[key] = parse_entry(
                key,
                competition.id,
                uid=neuron.uid,
                reveal_block=block,
                commit_block=block if commit_block <= neuron.registration_block else commit_block,
                registration_block=neuron.registration_block,
            )
    return entries


def keep_sealed(
    view: ChainSnapshot, newest: Mapping[str, Stand], competition: Competition, period: int
) -> dict[SubmissionKey, Entry]:
    """Return the last entry of each hotkey whose commitment is sealed.

    The entry stays until the reveal.
    newest: the newest stand of each hotkey. It counts if it includes the last aligned block before the seal.
    """
    entries, neurons = {}, view.by_hotkey
    for commitment in view.commitments:
        neuron, stand = neurons.get(commitment.hotkey), newest.get(commitment.hotkey)
        if commitment.reveal_round is None or neuron is None or stand is None:
            continue
        sealed_after = (commitment.block - 1) // period * period
        if stand.registration_block == neuron.registration_block and stand.last_block >= sealed_after:
            entries[stand.key] = parse_entry(
                stand.key,
                competition.id,
                uid=neuron.uid,
                reveal_block=stand.reveal_block,
                commit_block=stand.commit_block,
                registration_block=neuron.registration_block,
            )
    return entries


def parse_entry(
    key: SubmissionKey,
    competition_id: str,
    *,
    uid: int,
    reveal_block: int,
    commit_block: int,
    registration_block: int,
) -> Entry:
    """Parse a commitment and check its competition and registration."""
    record: CommitmentRecord | None = None
    rejection: SubmissionError | None = None
    try:
        record = CommitmentRecord.parse(key.commitment, key.hotkey)
        check_competition(record, competition_id)
        check_registration(reveal_block, registration_block)
    except SubmissionError as error:
        record, rejection = None, error
    return Entry(
        key=key,
        uid=uid,
        reveal_block=reveal_block,
        commit_block=commit_block,
        registration_block=registration_block,
        record=record,
        rejection=rejection,
    )


def order_entries(
    entries: Iterable[Entry], failures: Mapping[SubmissionKey, int], limit: int
) -> Sequence[SubmissionKey]:
    """Return at most `limit` accepted entries in the order of their commit blocks.

    Entries that failed to download fill at most half of the queue while others wait, fewest failures first. So
    unreachable repos do not block the queue, and no entry loses its turn in an outage of the Hub.
    failures: number of failed downloads by submission.
    """
    ready = sorted(
        (entry for entry in entries if entry.rejection is None), key=lambda entry: (entry.commit_block, entry.key)
    )
    failed = [entry.key for entry in ready if failures.get(entry.key)]
    others = len(ready) - len(failed)
    queued = set(sorted(failed, key=lambda key: failures[key])[: max(limit // 2, limit - others)])
    return [entry.key for entry in ready if entry.key in queued or not failures.get(entry.key)][:limit]
