"""Replay missed rounds with the signed round files of another validator.

A missed round runs like any other: its datasets are downloaded, its evaluations planned, its table made. Only data that
this validator cannot obtain comes from the files: the subnet at a block whose state every node dropped, and losses with
their receipts. So the replay checks each file, and every difference is logged.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from loguru import logger

from template.chain_records import ChainCommitment, ChainSnapshot, ChainView, Neuron
from template.competition import Competition, Incentives
from template.errors import ConfigError, RemoteError
from template.files import write_atomic
from template.receipts.files import read_round
from template.receipts.receipt import Receipt
from template.receipts.round_file import EvaluationLine, RoundFile, RoundHeader
from template.receipts.verify import check_across_files, check_consistency, check_signatures, different_rules
from template.records import ContentKey, EvaluationResult, Leaderboard, RoundEvaluation, SubmissionKey
from template.rules.entries import CommitBlocks

Verify = Callable[[str, bytes, str], bool]

# Differences of one round that are logged.
_SHOWN = 5


class RoundHistory:
    """The checked round files of one validator; empty without --bootstrap_rounds."""

    def __init__(self, files: Iterable[RoundFile] = ()) -> None:
        self._files = {file.header.start_block: file for file in files}
        self._evaluations: dict[tuple[ContentKey, int], tuple[EvaluationLine, str]] = {}
        self._receipts: dict[str, Receipt] = {}
        self._missing_blocks: dict[SubmissionKey, int] = {}
        for start_block, file in sorted(self._files.items()):
            self._missing_blocks.update(
                (SubmissionKey(line.hotkey, line.entry), start_block)
                for line in file.header.entries
                if line.hotkey in file.header.missing
            )
            self._receipts.update({receipt.digest: receipt for receipt in file.receipts})
            for line in file.header.evaluations:
                key = (ContentKey(line.hotkey, line.digest), line.number)
                self._evaluations.setdefault(key, (line, file.header.model))

    @property
    def first_block(self) -> int | None:
        """The start block of the oldest round."""
        return min(self._files, default=None)

    def check_signer(self, view: ChainView) -> None:
        """Check that the files are of a hotkey of the subnet: anyone can sign some. Raises: ConfigError."""
        for signer in {str(file.header.signer) for file in self._files.values()} - view.by_hotkey.keys():
            raise ConfigError(
                f"--bootstrap_rounds: {signer} signed the files, and is not on netuid {view.netuid}; take the files of"
                " a validator that you trust"
            )

    def next_block(self, block: int) -> int | None:
        """Return the first start block from `block` on."""
        return min((start for start in self._files if start >= block), default=None)

    @property
    def models(self) -> list[str]:
        """The models of the losses."""
        return sorted({model for _, model in self._evaluations.values()})

    @property
    def seeds(self) -> dict[tuple[ContentKey, int], int]:
        """The seed of each evaluation, by dataset and number."""
        return {key: line.lucky_num for key, (line, _) in self._evaluations.items()}

    def snapshot(self, netuid: int, block: int, block_hash: str) -> tuple[ChainSnapshot, CommitBlocks] | None:
        """Return the subnet at a round's start, None without a file.

        It comes with the commit blocks of its entries, and has only the hotkeys with a commitment.

        Raises:
            RemoteError: If the file is of another chain.
        """
        file = self._files.get(block)
        if file is None:
            return None
        header = file.header
        if header.start_block_hash.lower() != block_hash.lower():
            raise RemoteError(f"the round file of block {block} is of another chain: remove it from --bootstrap_rounds")
        neurons = [
            Neuron(uid=line.uid, hotkey=line.hotkey, registration_block=line.registration_block, last_update_block=0)
            for line in header.entries
        ]
        commitments = [
            ChainCommitment(
                hotkey=line.hotkey, block=line.block, text=line.entry, is_revealed=line.commit_block != line.block
            )
            for line in header.entries
        ]
        snapshot = ChainSnapshot(
            netuid=netuid,
            block=block,
            block_hash=block_hash,
            neurons=tuple(neurons),
            commitments=tuple(sorted(commitments, key=lambda commitment: (commitment.block, commitment.hotkey))),
            owner_hotkey="",
            owner_uid=None,
        )
        return snapshot, {(line.hotkey, line.block): line.commit_block for line in header.entries}

    def missing_block(self, key: SubmissionKey) -> int:
        """Return the last round in which a file was missing before it came, else 0.

        No chain shows this.
        """
        return self._missing_blocks.get(key, 0)

    def result(self, evaluation: RoundEvaluation, model: str) -> EvaluationResult | None:
        """Return the loss of an evaluation with the same seed and model.

        Returns:
            None without a receipt of it.
        """
        line, by_model = self._evaluations.get((evaluation.content, evaluation.number), (None, ""))
        receipt = None if line is None or line.receipt is None else self._receipts.get(line.receipt)
        if line is None or receipt is None or (line.lucky_num, by_model) != (evaluation.lucky_num, model):
            return None
        result = receipt.result
        return EvaluationResult(
            loss=result.loss,
            seconds=result.train_seconds + result.eval_seconds,
            receipt=receipt.to_json(),
            receipt_digest=receipt.digest,
        )

    def log_differences(self, block: int, leaderboard: Leaderboard) -> None:
        """Log where a round's table differs from the file's."""
        if block not in self._files:
            return
        header = self._files[block].header
        theirs = {line.hotkey: (line.reason, line.digest, line.runs, line.loss) for line in header.table}
        ours = {row.hotkey: (row.reason, row.digest, row.runs, row.loss) for row in leaderboard.rows}
        different = sorted(key for key in theirs | ours if theirs.get(key) != ours.get(key))
        for hotkey in different[:_SHOWN]:
            logger.warning(
                "round file of block {} differs for hotkey={}: (reason, dataset, runs, loss) is {} there, {} here",
                block, hotkey, theirs.get(hotkey), ours.get(hotkey),
            )  # fmt: skip
        if different:
            logger.warning("round file of block {} differs for {} of {} hotkeys", block, len(different), len(ours))


def read_history(
    paths: Iterable[Path],
    *,
    netuid: int,
    competition: Competition,
    incentives: Incentives,
    hyperparameters_digest: str,
    verify: Verify,
    round_dir: Path | None = None,
) -> RoundHistory:
    """Read round files; skip and log faulty ones.

    Copies the others to `round_dir`: there they have the receipts that this validator's files refer to.
    verify(signer, message, signature) returns whether a signature is valid. Raises: ConfigError when no file can be
    used, or the files are of several validators.
    """
    files: dict[str, RoundFile] = {}
    for path in sorted(paths):
        try:
            files[str(path)] = read_round(path)
        except ConfigError as error:
            logger.warning("round file left out: {}", error)
    contradictions = check_across_files({name: file.header for name, file in files.items()})
    receipts = {receipt.digest: receipt for file in files.values() for receipt in file.receipts}
    usable: dict[str, RoundFile] = {}
    for name, file in files.items():
        faults = [
            *_find_other_rules(file.header, netuid, competition, incentives, hyperparameters_digest),
            *_find_bad_signatures(file, verify),
            *contradictions[name],
            *check_consistency(file, receipts),
        ]
        if faults:
            logger.warning("round file left out: {}: {} ({} faults)", name, faults[0], len(faults))
        else:
            usable[name] = file
    signers = sorted({str(file.header.signer) for file in usable.values()})
    if len(signers) != 1:
        names = ", ".join(signers) or "none that can be used"
        raise ConfigError(f"--bootstrap_rounds must hold the round files of one validator, and has {names}")
    if round_dir is not None:
        _copy_files(usable, round_dir)
    blocks = [file.header.start_block for file in usable.values()]
    logger.warning(
        "--bootstrap_rounds: {} round files of {}, blocks {} to {}. Checked: signatures, rules, arithmetic, hashes."
        " Not checked: losses (replay them with scripts/audit.py), and entries where no node has the block's state",
        len(usable), signers[0], min(blocks), max(blocks),
    )  # fmt: skip
    return RoundHistory(usable.values())


def _copy_files(paths: Iterable[str], folder: Path) -> None:
    try:
        for path in map(Path, paths):
            if path.parent.resolve() != folder.resolve():
                write_atomic(folder / path.name, [path.read_bytes()], mode=0o644)
    except OSError as error:
        # The copies are for readers of the folder: no round needs them.
        logger.warning("--round_dir misses files of --bootstrap_rounds: {}: {}", folder, error.strerror or error)


def _find_other_rules(
    header: RoundHeader, netuid: int, competition: Competition, incentives: Incentives, hyperparameters_digest: str
) -> list[str]:
    ours: Mapping[str, object] = {
        "netuid": netuid,
        "competition": competition,
        "hyperparameters_digest": hyperparameters_digest,
    }
    names = [name for name, value in ours.items() if getattr(header, name) != value]
    return [f"its {name} is another" for name in names + different_rules(header.incentives, incentives)]


def _find_bad_signatures(file: RoundFile, verify: Verify) -> list[str]:
    if file.header.signer is None:
        return ["it is unsigned"]
    fault, receipt_faults = check_signatures(file, verify)
    return [*([fault] if fault else []), *receipt_faults.values()]
