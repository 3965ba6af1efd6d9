"""Commitments recorded from the chain and their duplicates, cached."""

from collections.abc import Iterable, Mapping

from loguru import logger

from template.errors import RemoteError
from template.records import ChainView, Entry, EvalConfig, Submission, SubmissionKey, Verdict
from template.rules.duplicates import (
    Datasets,
    Duplicate,
    eligible_datasets,
    find_duplicates,
    find_possible_duplicates,
)
from template.rules.entries import CommitBlocks, current_submissions, missing_commit_blocks, prune_commit_blocks
from template.validator.context import Context

# Blocks after which a revealed commitment ranks by its reveal, when no node has its commit block.
COMMIT_BLOCK_TIMEOUT_BLOCKS = 50

Duplicates = Mapping[SubmissionKey, Duplicate]


class SubmissionIndex:
    """Submissions of the newest view and of downloaded datasets.

    commit_blocks: of revealed commitments, by hotkey and reveal block.
    """

    def __init__(self, context: Context) -> None:
        self.submissions: Mapping[SubmissionKey, Submission] = {}
        self.commit_blocks: CommitBlocks = context.store.commit_blocks()
        self._chain = context.chain
        self._store = context.store
        self._recorded: object = None
        self._duplicates: tuple[Duplicates, Duplicates] = ({}, {})
        self._duplicates_of: object = None

    def record(self, view: ChainView, datasets: Iterable[SubmissionKey]) -> None:
        """Record the commitments of `view`, unless this process recorded the same last."""
        registration_blocks = {neuron.hotkey: neuron.registration_block for neuron in view.neurons}
        missing = missing_commit_blocks(view, self.commit_blocks)
        if missing:
            self.commit_blocks = {**self.commit_blocks, **self._find_commit_blocks(missing, view)}
        recorded = (view.commitments, registration_blocks, self.commit_blocks)
        if recorded != self._recorded:
            current = current_submissions(view, self.commit_blocks)
            self._store.record_submissions(current, registration_blocks)
            self.submissions = self._store.submissions({*(submission.key for submission in current), *datasets})
            self._recorded = recorded

    def reload(self, datasets: Iterable[SubmissionKey]) -> None:
        """Read the submissions again, with those of `datasets`."""
        self.submissions = self._store.submissions({*self.submissions, *datasets})

    def prune(self, *, before_block: int) -> None:
        """Drop old commit blocks; see `template.rules.entries.prune_commit_blocks`."""
        self.commit_blocks = prune_commit_blocks(self.commit_blocks, before_block=before_block)

    def _find_commit_blocks(self, missing: Mapping[str, int], view: ChainView) -> dict[tuple[str, int], int]:
        """Read the commit blocks of revealed commitments and record them.

        They are in the chain's state of the block before the reveal. While no node returns that state, the commitments
        are left out, and after a while they rank by their reveal until this process ends.
        """
        try:
            found = self._chain.commit_blocks_of_revealed(missing)
        except RemoteError as error:
            logger.warning("commit block unknown for {} revealed commitments: {}", len(missing), error)
            late = view.block - COMMIT_BLOCK_TIMEOUT_BLOCKS
            return {(hotkey, block): block for hotkey, block in missing.items() if block < late}
        commit_blocks = {(hotkey, block): found.get(hotkey, block) for hotkey, block in missing.items()}
        self._store.record_commit_blocks(commit_blocks)
        return commit_blocks

    def find_duplicates(
        self,
        eval_config: EvalConfig,
        entries: Mapping[SubmissionKey, Entry],
        datasets: Datasets,
        verdicts: Mapping[SubmissionKey, Verdict],
    ) -> tuple[Duplicates, Duplicates]:
        """Return duplicates and possible duplicates; a new loss keeps them cached."""
        eligible = eligible_datasets(datasets, verdicts)
        blocks = {key: self.submissions[key].first_block if key in self.submissions else None for key in eligible}
        inputs = (eval_config, entries, blocks)
        if inputs != self._duplicates_of:
            self._duplicates = (
                find_duplicates(entries, self.submissions, eligible),
                find_possible_duplicates(entries, self.submissions, eligible),
            )
            self._duplicates_of = inputs
        return self._duplicates
