"""Publish the files of --round_dir in a dataset repo, and announce the repo on chain.

An upload runs in a thread beside the loop and compares the folder with the repo, so a failure, a restart or a day
without the Hub loses nothing: the next upload sends what the repo lacks. The announcement is the hotkey's commitment,
which the chain takes from registered hotkeys only.
"""

import threading
from pathlib import Path

from loguru import logger

from template.chain.protocols import ValidatorChain
from template.chain_records import ChainCommitment, ChainView
from template.errors import RemoteError, SubnetError
from template.hub.repo_files import upload_new_files
from template.validator.config import ValidatorConfig

# Seconds until a failed upload or announcement is tried again.
_RETRY_S = 300.0
# Seconds for the last upload of a validator that ends by itself.
_LAST_UPLOAD_S = 60.0


class RoundPublisher:
    """Uploads the round files of one validator.

    problem: why the newest files are not in the repo, or the repo is not announced; None if all is well.
    """

    def __init__(self, config: ValidatorConfig, chain: ValidatorChain) -> None:
        self.problem: str | None = None
        self._config = config
        self._chain = chain
        self._thread: threading.Thread | None = None
        # Time and size of each file that the repo has, so that only other ones are compared with it.
        self._uploaded: dict[Path, tuple[int, int]] = {}
        self._is_new = True
        self._upload_problem: str | None = None
        self._announcement_problem: str | None = None
        self._retry_at = self._announce_at = float("-inf")

    def notice(self) -> None:
        """Take note of a new or changed round file."""
        self._is_new = True

    def update(self, view: ChainView, now: float) -> None:
        """Start an upload or the announcement if either is due."""
        repo = self._config.publish_rounds
        if repo is None:
            return
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
            if self._upload_problem is not None:
                self._is_new, self._retry_at = True, now + _RETRY_S
        # After the clock was set back, the retry would lie too far in the future.
        if self._thread is None and self._is_new and not 0.0 < self._retry_at - now <= _RETRY_S:
            self._is_new = False
            self._start(repo)
        announcement = self._announce(repo, view, now) if self._uploaded else None
        self.problem = self._upload_problem or announcement

    def finish(self, view: ChainView | None, now: float) -> None:
        """Wait for the last upload, which a validator that ends by itself would cut off."""
        if self._config.publish_rounds is None or view is None:
            return
        # The upload that runs, one of the files since, and the announcement.
        for _ in range(3):
            self.update(view, now)
            if self._thread is not None:
                self._thread.join(_LAST_UPLOAD_S)
        if self.problem is not None:
            logger.warning("--publish_rounds: {}; the next start tries again", self.problem)

    def _start(self, repo: str) -> None:
        hotkey = self._chain.hotkey
        self._thread = threading.Thread(target=self._upload, args=(repo, hotkey), name="publish-rounds", daemon=True)
        self._thread.start()

    def _upload(self, repo: str, hotkey: str) -> None:
        folder, token = self._config.round_dir or Path(), self._config.hub_token
        try:
            # Other files in the folder are of other hotkeys or of no round.
            found = sorted(folder.glob(f"round-*-{hotkey[:8]}-*.jsonl"))
            stamps = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in found}
            paths = [path for path in found if self._uploaded.get(path) != stamps[path]]
            count = upload_new_files(paths, repo, token=token)
        except (SubnetError, OSError) as error:
            problem = f"round files wait for their upload to {repo}: {error}"
            if self._upload_problem is None:
                logger.warning("--publish_rounds: {}", problem)
            self._upload_problem = problem
            return
        if count:
            logger.info("published {} round files repo={}", count, repo)
        self._upload_problem, self._uploaded = None, stamps

    def _announce(self, repo: str, view: ChainView, now: float) -> str | None:
        """Announce the repo unless the chain has it; return the problem."""
        own = next((item for item in view.commitments if item.hotkey == self._chain.hotkey), None)
        if own is not None and own.rounds_repo == repo:
            return None
        if own is not None and _is_dataset(own):
            return (
                f"{repo} is not announced: the commitment of this hotkey is a dataset, which the announcement would"
                " replace; mine with another hotkey"
            )
        if not 0.0 < self._announce_at - now <= _RETRY_S:
            self._announce_at = now + _RETRY_S
            self._announcement_problem = self._send_announcement(repo)
        return self._announcement_problem

    def _send_announcement(self, repo: str) -> str | None:
        try:
            outcome = self._chain.announce_rounds(repo)
            problem = None if outcome.is_accepted else f"{outcome.error} {outcome.message}".strip()
        except RemoteError as error:
            problem = str(error)
        if problem is not None:
            logger.warning("--publish_rounds: {} is not announced on chain: {}", repo, problem)
            return f"{repo} is not announced on chain: {problem}"
        logger.info("announced the repo of the round files repo={}", repo)
        return None


def _is_dataset(commitment: ChainCommitment) -> bool:
    return commitment.text is not None or commitment.reveal_round is not None
