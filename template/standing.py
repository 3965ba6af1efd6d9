"""Who stands where: from one view of the chain and what is known of each submission to a table with weights. Pure.

Facts about a dataset are found once and kept (`Verdict`); whether it counts now depends on the chain as well and is
derived anew each time: which commitment of a hotkey is current, when the hotkey registered, who committed first.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from template.admission import Candidate, DuplicateOf, check_competition, check_registration, find_duplicates
from template.competition import CommitmentRecord, Competition
from template.constants import DEFAULT_DUPLICATE_COUNT
from template.errors import SubmissionError
from template.records import ChainCommitment, ChainView
from template.scoring import compute_score, shares_from_scores, weights_from_scores
from template.state import RoundEntry, Standing, Submission, SubmissionKey, Verdict

# Earlier versions of one hotkey's dataset that are held against copies of them.
MAX_VERSIONS = 8


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A registered hotkey's current commitment, which the chain last saw set (or opened, when sealed) at `block`.

    rank_block is what earlier and later are judged by: the earliest block at which this hotkey was seen to commit this,
    unless that was before its registration_block. record is None exactly when `refusal` is not, with the reason.
    """

    key: SubmissionKey
    uid: int
    block: int
    rank_block: int
    registration_block: int
    record: CommitmentRecord | None
    refusal: SubmissionError | None

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


def current_submissions(view: ChainView, seals: Mapping[str, Sequence[int]] = MappingProxyType({})) -> list[Submission]:
    """The readable commitments in `view`, of registered hotkeys and others, as of its block.

    seals: blocks at which each hotkey was seen to commit under seal, earliest first. What the chain has opened counts
    from the last of them before it did, since it no longer tells itself; from the opening where none was seen.
    """
    return [
        Submission(hotkey=one.hotkey, entry=one.text, first_block=_commit_block(one, seals), block=one.block)
        for one in view.commitments
        if one.text is not None
    ]


def _commit_block(commitment: ChainCommitment, seals: Mapping[str, Sequence[int]]) -> int:
    """The block at which the hotkey made the commitment, as far as is known."""
    if not commitment.is_revealed:
        return commitment.block
    sealed = [block for block in seals.get(commitment.hotkey, ()) if block <= commitment.block]
    return max(sealed, default=commitment.block)


def current_seals(view: ChainView) -> dict[str, tuple[int, int]]:
    """The commitments in `view` that are still sealed: (block, reveal round) by hotkey."""
    return {
        one.hotkey: (one.block, one.reveal_round)
        for one in view.commitments
        if one.text is None and one.reveal_round is not None
    }


def find_entrants(
    view: ChainView, seen: Mapping[SubmissionKey, Submission], competition: Competition
) -> dict[SubmissionKey, Entrant]:
    """The entrants of `view`; `seen` is every submission ever recorded, those of `view` among them."""
    neurons = view.by_hotkey
    entrants = {}
    for now in current_submissions(view):
        neuron = neurons.get(now.hotkey)
        if neuron is None:
            continue
        first_block = seen[now.key].first_block if now.key in seen else now.block
        is_old_life = first_block <= neuron.registration_block
        entry = RoundEntry(
            key=now.key,
            uid=neuron.uid,
            block=now.block,
            rank_block=now.block if is_old_life else first_block,
            registration_block=neuron.registration_block,
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


def find_copies(
    entrants: Mapping[SubmissionKey, Entrant],
    seen: Mapping[SubmissionKey, Submission],
    datasets: Mapping[SubmissionKey, tuple[bytes, ...]],
) -> dict[SubmissionKey, DuplicateOf]:
    """The copies among the entrants' datasets and the versions they grew from.

    An entrant's own earlier versions stand beside it, or a copy of the first would refuse the second. Only those that
    the rule itself would call copies of the present one do, and only the earliest few: nobody can hold the pool with
    datasets that are not in the competition. What a hotkey committed before its registration stands for nothing.
    """
    current = {key.hotkey: key for key, entrant in entrants.items() if entrant.refusal is None and key in datasets}
    candidates = [_as_candidate(key, entrants[key].rank_block, datasets[key]) for key in current.values()]
    for hotkey, versions in _earlier_versions(current, entrants, seen, datasets).items():
        rows = set(datasets[current[hotkey]])
        related = [key for key in versions if len(rows.intersection(datasets[key])) > DEFAULT_DUPLICATE_COUNT]
        candidates += [_as_candidate(key, seen[key].first_block, datasets[key]) for key in related[:MAX_VERSIONS]]
    return {SubmissionKey(*identity): copy for identity, copy in find_duplicates(candidates).items()}


def _earlier_versions(
    current: Mapping[str, SubmissionKey],
    entrants: Mapping[SubmissionKey, Entrant],
    seen: Mapping[SubmissionKey, Submission],
    datasets: Mapping[SubmissionKey, tuple[bytes, ...]],
) -> dict[str, list[SubmissionKey]]:
    """What each hotkey with a present dataset committed before it in its present life, earliest first."""
    versions: dict[str, list[SubmissionKey]] = {}
    for key in sorted(seen.keys() & datasets.keys(), key=lambda key: (seen[key].first_block, key)):
        now = current.get(key.hotkey)
        if now is not None and key != now and seen[key].first_block > entrants[now].registration_block:
            versions.setdefault(key.hotkey, []).append(key)
    return versions


def _as_candidate(key: SubmissionKey, block: int, row_keys: tuple[bytes, ...]) -> Candidate:
    return Candidate(hotkey=key.hotkey, commit=key.entry, block=block, row_keys=row_keys)


def make_standings(
    competition: Competition,
    entrants: Mapping[SubmissionKey, Entrant],
    verdicts: Mapping[SubmissionKey, Verdict],
    copies: Mapping[SubmissionKey, DuplicateOf],
) -> list[Standing]:
    """One line per entrant, with the share that its score is of all scores as its weight."""
    lines = [_judge(entrant, competition, verdicts, copies) for entrant in entrants.values()]
    shares = shares_from_scores({line.key.hotkey: line.score for line in lines})
    return [dataclasses.replace(line, weight=shares.get(line.key.hotkey, 0.0)) for line in lines]


def choose_shares(
    lines: Sequence[Standing], last_shares: Mapping[str, float], owner_hotkey: str
) -> Mapping[str, float]:
    """What each hotkey gets, summing to 1; empty when nothing can be said yet.

    The table's own weights where there are any. While some still wait for their turn, a table in which nobody has a
    score says nothing: then the shares that were given last are given again. When all were judged and nobody has a
    score, all goes to the subnet owner, which burns it.
    """
    if any(line.weight > 0.0 for line in lines):
        return {line.key.hotkey: line.weight for line in lines if line.weight > 0.0}
    if any(line.reason is None and line.loss is None for line in lines):
        return last_shares
    return {owner_hotkey: 1.0}


def align_shares(shares: Mapping[str, float], view: ChainView, registrations: Mapping[str, int]) -> dict[int, float]:
    """The shares by uid as of `view`, summing to 1; empty when none of the hotkeys and no owner is left to burn to.

    registrations: the block at which a hotkey had its uid when it earned its share; one that lost it and came back is
    another neuron, and what it left behind goes to the others.
    """
    if not shares:
        return {}
    uids = {
        hotkey: neuron.uid
        for hotkey, neuron in view.by_hotkey.items()
        if registrations.get(hotkey, neuron.registration_block) == neuron.registration_block
    }
    return weights_from_scores(shares, uids, view.owner_uid) or {}


def _judge(
    entrant: Entrant,
    competition: Competition,
    verdicts: Mapping[SubmissionKey, Verdict],
    copies: Mapping[SubmissionKey, DuplicateOf],
) -> Standing:
    """The entrant's line without its weight."""
    verdict = verdicts.get(entrant.key)
    loss = verdict.loss if verdict else None
    reason, message, score = None, "waits for its turn", 0.0
    if entrant.refusal is not None:
        reason, message, loss = entrant.refusal.reason, str(entrant.refusal), None
    elif entrant.key in copies:
        error = copies[entrant.key].to_error()
        reason, message = error.reason, str(error)
    elif verdict is not None and verdict.reason is not None:
        reason, message = verdict.reason, verdict.message
    elif loss is not None:
        message = ""
        score = score_of(loss, competition)
    return Standing(
        key=entrant.key, uid=entrant.uid, reason=reason, message=message, loss=loss, score=score, weight=0.0
    )


def score_of(loss: float, competition: Competition) -> float:
    """The score of a loss in its own competition."""
    return compute_score(
        loss,
        competition.bench,
        competition.minb,
        competition.maxb,
        competition.pow,
        competition.bheight,
        competition.id,
        competition.id,
    )


def order_entries(
    entrants: Iterable[Entrant], last_tried: Mapping[SubmissionKey, float], limit: int
) -> Sequence[SubmissionKey]:
    """At most `limit` submissions in the order of their turns: never tried before by rank block, then longest wait."""
    ready = sorted(
        (entrant for entrant in entrants if entrant.refusal is None),
        key=lambda entrant: (last_tried.get(entrant.key, float("-inf")), entrant.rank_block, entrant.key),
    )
    return [entrant.key for entrant in ready[:limit]]
