"""The datasets that are committed on the subnet now, read as a validator would read them that starts now.

What a hotkey committed before and has replaced is not on chain any more, so nothing is known of it here. Datasets are
kept, one for each hotkey, so that a second look downloads only what changed.
"""

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from loguru import logger

from template import constants
from template.competition import CommitmentRecord, Competition
from template.data.eval_set import PoolIndex
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError
from template.hub import datasets
from template.miner.check import Neighbour, Neighbourhood
from template.records import ChainCommitment, ChainView
from template.rules.duplicates import may_yet_come
from template.rules.leaderboard import Entrant, find_entrants

_DOWNLOADS_AT_ONCE = 4
_TELL_EVERY = 20


def survey(
    view: ChainView, competition: Competition, pool: PoolIndex, folder: Path, hotkey: str | None
) -> Neighbourhood:
    """The neighbours in `view`, with the datasets of those that enter the competition, kept in `folder`.

    hotkey: whose own commitment is set apart; None for nobody's. A dataset that the Hub does not deliver is a
    neighbour's doubt, one that a validator refuses its refusal.
    Raises: ConfigError when the hotkey is not registered; HostError.
    """
    if hotkey is not None and hotkey not in view.by_hotkey:
        raise ConfigError(f"the hotkey {hotkey} is not registered on netuid {view.netuid}")
    _remove_strangers(folder, view)
    entrants = {key.hotkey: entrant for key, entrant in find_entrants(view, {}, competition).items()}
    uids = {neuron.hotkey: neuron.uid for neuron in view.neurons}
    met = [_meet(one, uids[one.hotkey], entrants.get(one.hotkey)) for one in view.commitments if one.hotkey in uids]

    def read(one: Neighbour) -> Neighbour:
        entrant = entrants.get(one.hotkey)
        if entrant is None or entrant.record is None:
            return one
        try:
            return _read(one, entrant.record, competition, pool, folder)
        except SubmissionError as error:
            if may_yet_come(entrant.record, error.reason, commit_block=entrant.block, block=view.block):
                return replace(one, doubt=f"its file may still come: {error}")
            return replace(one, refusal=error)
        except RemoteError as error:
            return replace(one, doubt=str(error))

    known = _each(met, read)
    return Neighbourhood(
        block=view.block,
        others=tuple(one for one in known if one.hotkey != hotkey),
        own=next((one for one in known if one.hotkey == hotkey), None),
    )


def _meet(commitment: ChainCommitment, uid: int, entrant: Entrant | None) -> Neighbour:
    """What the chain alone says of a commitment."""
    neighbour = Neighbour(
        hotkey=commitment.hotkey,
        uid=uid,
        block=commitment.block,
        entry=commitment.text,
        is_revealed=commitment.is_revealed,
    )
    if entrant is not None:
        return replace(neighbour, block=entrant.rank_block, refusal=entrant.refusal)
    if commitment.reveal_round is not None:
        return replace(neighbour, doubt=f"it is sealed until round {commitment.reveal_round} of the drand beacon")
    why = "the commitment on chain cannot be read: it is not one field of text"
    return replace(neighbour, refusal=SubmissionError(Reason.BAD_COMMITMENT, why))


def _read(
    one: Neighbour, record: CommitmentRecord, competition: Competition, pool: PoolIndex, folder: Path
) -> Neighbour:
    """The neighbour with its dataset. Raises: SubmissionError when a validator would refuse it; RemoteError; HostError.

    Without a token: what only some may read cannot be checked by all.
    """
    held = datasets.download_dataset(record.namespace, record.commit, folder / one.hotkey)
    try:
        content = held.path.read_bytes()
    except OSError as error:
        raise HostError(f"{folder / one.hotkey}: cannot be read: {error.strerror or error}") from error
    row_keys = pool.check(content, name=constants.DATA_FILE, max_rows=competition.rows)
    return replace(one, sha256=held.sha256, row_keys=row_keys)


def _each(neighbours: Sequence[Neighbour], read: Callable[[Neighbour], Neighbour]) -> list[Neighbour]:
    """`read` of each, a few at a time, in order; the first that raises ends it."""
    with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE, thread_name_prefix="neighbour") as workers:
        jobs = [workers.submit(read, one) for one in neighbours]
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                job.result()
                if done % _TELL_EVERY == 0 or done == len(jobs):
                    logger.info("read {} of {} commitments and their datasets", done, len(jobs))
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            raise
        return [job.result() for job in jobs]


def _remove_strangers(folder: Path, view: ChainView) -> None:
    """Frees the disk of datasets whose hotkeys have left the subnet."""
    for held in folder.glob("*"):
        if held.name not in view.by_hotkey:
            shutil.rmtree(held, ignore_errors=True)
