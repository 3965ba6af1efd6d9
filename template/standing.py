"""Who stands where: from one view of the chain and what is known of each submission to a table with weights. Pure.

Facts about a dataset are found once and kept (`Verdict`); whether it counts now depends on the chain as well and is
derived anew each time: which commitment of a hotkey is current, when the hotkey registered, who committed first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from template.admission import Candidate, DuplicateOf, check_competition, check_registration, find_duplicates
from template.competition import CommitmentRecord, Competition
from template.constants import DEFAULT_DUPLICATE_COUNT
from template.errors import SubmissionError
from template.records import ChainView
from template.scoring import compute_score, weights_from_scores
from template.state import Standing, Submission, SubmissionKey, Verdict

# Earlier versions of one hotkey's dataset that are held against copies of them.
MAX_VERSIONS = 8


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A registered hotkey's current commitment.

    rank_block is what earlier and later are judged by: the earliest block at which this hotkey was seen to commit this,
    unless that was before its registration_block. record is None exactly when `refusal` is not, with the reason.
    """

    key: SubmissionKey
    uid: int
    rank_block: int
    registration_block: int
    record: CommitmentRecord | None
    refusal: SubmissionError | None


def current_submissions(view: ChainView) -> list[Submission]:
    """The readable commitments in `view`, of registered hotkeys and others, as of its block."""
    return [
        Submission(hotkey=one.hotkey, entry=one.text, first_block=one.block, block=one.block)
        for one in view.commitments
        if one.text is not None
    ]


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
        record, refusal = _read_entry(now, neuron.registration_block, competition)
        is_old_life = first_block <= neuron.registration_block
        entrant = Entrant(
            key=now.key,
            uid=neuron.uid,
            rank_block=now.block if is_old_life else first_block,
            registration_block=neuron.registration_block,
            record=record,
            refusal=refusal,
        )
        entrants[now.key] = entrant
    return entrants


def _read_entry(
    submission: Submission, registration_block: int, competition: Competition
) -> tuple[CommitmentRecord | None, SubmissionError | None]:
    """What the commitment says, or why it does not count."""
    try:
        record = CommitmentRecord.parse(submission.entry)
        check_competition(record, competition)
        check_registration(submission.block, registration_block)
    except SubmissionError as refusal:
        return None, refusal
    return record, None


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
    view: ChainView,
    competition: Competition,
    entrants: Mapping[SubmissionKey, Entrant],
    verdicts: Mapping[SubmissionKey, Verdict],
    copies: Mapping[SubmissionKey, DuplicateOf],
) -> tuple[list[Standing], dict[int, float] | None]:
    """One line per entrant, and the weights by uid; None when there is nobody to give weight to."""
    judged = [_judge(entrant, competition, verdicts, copies) for entrant in entrants.values()]
    weights = weights_from_scores(
        {line.key.hotkey: line.score for line in judged},
        {neuron.hotkey: neuron.uid for neuron in view.neurons},
        view.owner_uid,
    )
    has_scores = any(line.score > 0.0 for line in judged)
    return [_with_weight(line, weights if has_scores else None) for line in judged], weights


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


def _with_weight(line: Standing, weights: Mapping[int, float] | None) -> Standing:
    """The line with the share its uid gets for its score; a burn to the owner's uid is no miner's share."""
    share = weights.get(line.uid, 0.0) if weights else 0.0
    return Standing(**{**vars(line), "weight": share})


def order_entries(
    entrants: Iterable[Entrant], last_tried: Mapping[SubmissionKey, float], limit: int
) -> Sequence[SubmissionKey]:
    """At most `limit` submissions in the order of their turns: never tried before by rank block, then longest wait."""
    ready = sorted(
        (entrant for entrant in entrants if entrant.refusal is None),
        key=lambda entrant: (last_tried.get(entrant.key, float("-inf")), entrant.rank_block, entrant.key),
    )
    return [entrant.key for entrant in ready[:limit]]
