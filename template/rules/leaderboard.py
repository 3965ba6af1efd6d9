"""Who stands where: from one view of the chain and what is known of each submission to a table with weights. Pure.

Facts about a dataset are found once and kept (`Verdict`); whether it counts now depends on the chain as well and is
derived anew each time: which commitment of a hotkey is current, when the hotkey registered, who committed first.
"""

import dataclasses
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from template.competition import CommitmentRecord, Competition
from template.constants import DEFAULT_DUPLICATE_COUNT
from template.errors import SubmissionError
from template.records import ChainView
from template.rules.duplicates import Candidate, DuplicateOf, check_competition, check_registration, find_duplicates
from template.rules.scoring import compute_score, shares_from_scores, weights_from_scores
from template.state import RoundEntry, Standing, Submission, SubmissionKey, Verdict

# Earlier versions of one hotkey's dataset that are held against copies of them.
MAX_VERSIONS = 8

Openings = Mapping[tuple[str, int], int]
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


def current_submissions(view: ChainView, openings: Openings | None = None) -> list[Submission]:
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
        if one.is_revealed and openings is not None and opened not in openings:
            continue
        first_block = openings[opened] if one.is_revealed and openings is not None else one.block
        now = Submission(
            hotkey=one.hotkey, entry=one.text, first_block=first_block, block=one.block, open_block=one.block
        )
        found.append(now)
    return found


def unknown_openings(view: ChainView, openings: Openings) -> dict[str, int]:
    """The reveal blocks, by registered hotkey, of opened commitments of which it is not known where they were made."""
    registered = view.by_hotkey
    return {
        one.hotkey: one.block
        for one in view.commitments
        if one.is_revealed and one.hotkey in registered and (one.hotkey, one.block) not in openings
    }


def recent_openings(openings: Openings, *, before_block: int) -> Openings:
    """Those from that block on, and each hotkey's newest of before it, which may stand still."""
    newest: dict[str, int] = {}
    for hotkey, block in openings:
        if block < before_block:
            newest[hotkey] = max(block, newest.get(hotkey, block))
    return {
        (hotkey, block): commit_block
        for (hotkey, block), commit_block in openings.items()
        if block >= before_block or block == newest[hotkey]
    }


def find_entrants(
    view: ChainView,
    seen: Mapping[SubmissionKey, Submission],
    competition: Competition,
    openings: Openings | None = None,
) -> dict[SubmissionKey, Entrant]:
    """The entrants of `view`; `seen` is every submission ever recorded, those of `view` among them."""
    neurons = view.by_hotkey
    entrants = {}
    for now in current_submissions(view, openings):
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


def find_doubts(
    entrants: Mapping[SubmissionKey, Entrant],
    seen: Mapping[SubmissionKey, Submission],
    datasets: Mapping[SubmissionKey, tuple[bytes, ...]],
) -> dict[SubmissionKey, DuplicateOf]:
    """What might be a copy once the present rows of an entrant are known of which only earlier versions are.

    They would count then, if they are related to it. Whose rows have nothing to do with them is in no doubt, however
    many commit anew all the time.
    """
    unread = {key.hotkey: key for key, entrant in entrants.items() if entrant.refusal is None and key not in datasets}
    versions = _earlier_versions(unread, entrants, seen, datasets).values()
    if not versions:
        return {}
    some = {key for one in versions for key in (*one[:MAX_VERSIONS], *one[-MAX_VERSIONS:])}
    candidates = [_as_candidate(key, seen[key].first_block, datasets[key]) for key in some]
    present = [key for key, entrant in entrants.items() if entrant.refusal is None and key in datasets]
    candidates += [_as_candidate(key, entrants[key].rank_block, datasets[key]) for key in present]
    found = {SubmissionKey(*identity): copy for identity, copy in find_duplicates(candidates).items()}
    return {key: copy for key, copy in found.items() if key in entrants and copy.hotkey in unread}


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


def eligible_datasets(
    datasets: Mapping[SubmissionKey, tuple[bytes, ...]], verdicts: Mapping[SubmissionKey, Verdict]
) -> dict[SubmissionKey, tuple[bytes, ...]]:
    """Those that can be originals or copies: what was refused after its check is neither."""
    return {key: rows for key, rows in datasets.items() if key not in verdicts or verdicts[key].reason is None}


def make_standings(
    competition: Competition,
    entrants: Mapping[SubmissionKey, Entrant],
    verdicts: Mapping[SubmissionKey, Verdict],
    copies: Mapping[SubmissionKey, DuplicateOf],
    datasets: Container[SubmissionKey],
) -> list[Standing]:
    """One line per entrant, with the share that its score is of all scores as its weight.

    datasets: those whose rows are known. A loss alone counts for nothing: nobody could tell whether it is a copy's.
    """
    # Of the few that stand here, not of all that there ever were.
    held = {key: verdicts[key] for key in entrants if key in verdicts}
    known = {key: verdict for key, verdict in held.items() if verdict.loss is None or key in datasets}
    lines = [_judge(entrant, competition, known, copies) for entrant in entrants.values()]
    shares = shares_from_scores({line.key.hotkey: line.score for line in lines})
    return [dataclasses.replace(line, weight=shares.get(line.key.hotkey, 0.0)) for line in lines]


def choose_shares(
    lines: Sequence[Standing],
    last_shares: Mapping[str, float],
    owner_hotkey: str,
    *,
    stuck: Container[SubmissionKey] = (),
) -> Mapping[str, float]:
    """What each hotkey gets, summing to 1; empty when nothing can be said yet.

    The table's own weights where there are any. While some still wait for their turn, a table in which nobody has a
    score says nothing: then the shares that were given last are given again. When all were judged and nobody has a
    score, all goes to the subnet owner, which burns it. stuck: those that are waited for no longer, provided that some
    other has a loss; a machine that can score none burns nothing.
    """
    if any(line.weight > 0.0 for line in lines):
        return {line.key.hotkey: line.weight for line in lines if line.weight > 0.0}
    waiting = [line.key for line in lines if line.reason is None and line.loss is None]
    can_score = any(line.loss is not None for line in lines)
    if any(not can_score or key not in stuck for key in waiting):
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
