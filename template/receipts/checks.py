"""Run all checks of an audit that need no training, on the files of each signer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from template.chain.protocols import AuditChain
from template.chain_records import ChainSnapshot
from template.competition import Competition, Incentives
from template.receipts.chain_check import (
    WeightsCheck,
    check_burns,
    check_claimed_ranks,
    check_entries,
    check_rules,
    read_or_report,
)
from template.receipts.findings import Finding, Kind
from template.receipts.history import CheckedRound, History
from template.receipts.plan_check import check_plan
from template.receipts.receipt import Receipt
from template.receipts.refusals import RefusalCheck, check_commitments
from template.receipts.round_file import RoundFile, RoundHeader
from template.receipts.sequence import SequenceCheck
from template.receipts.verify import check_against_chain


@dataclass(kw_only=True)
class FileReport:
    """Findings about one file.

    unanswered: failed reads of the chain or the Hub.
    """

    path: Path
    title: str = ""
    findings: list[Finding] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: Kind, texts: Sequence[str]) -> None:
        self.findings += [Finding(kind, text) for text in texts]


class CachedChain:
    """A chain whose reads of past blocks are cached, since they never change."""

    def __init__(self, chain: AuditChain) -> None:
        self._chain = chain
        self._snapshot = cache(chain.snapshot)
        self._block_hash = cache(chain.block_hash)
        self._commit_blocks: dict[tuple[str, int], int | None] = {}
        self._newest: int | None = None

    def snapshot(self, block: int) -> ChainSnapshot:
        return self._snapshot(block)

    def block(self) -> int:
        self._newest = self._chain.block() if self._newest is None else self._newest
        return self._newest

    def block_hash(self, block: int) -> str:
        return self._block_hash(block)

    def commit_blocks_of_revealed(self, reveals: Mapping[str, int]) -> dict[str, int]:
        missing = {hotkey: block for hotkey, block in reveals.items() if (hotkey, block) not in self._commit_blocks}
        answer = self._chain.commit_blocks_of_revealed(missing) if missing else {}
        self._commit_blocks.update({(hotkey, block): answer.get(hotkey) for hotkey, block in missing.items()})
        blocks = {hotkey: self._commit_blocks[(hotkey, block)] for hotkey, block in reveals.items()}
        return {hotkey: block for hotkey, block in blocks.items() if block is not None}

    def weights(self, uid: int, block: int) -> dict[int, int]:
        return self._chain.weights(uid, block)

    def weight_commits(self, hotkey: str, block: int) -> list[int]:
        return self._chain.weight_commits(hotkey, block)


def check_signers(
    files: Mapping[Path, RoundFile],
    reports: Mapping[Path, FileReport],
    receipts: Mapping[str, Receipt],
    competition: Competition,
    incentives: Incentives,
    chains: Mapping[int, AuditChain],
    refusals: Mapping[int, RefusalCheck],
) -> None:
    """Check each signer's files in the order of rounds; add to their reports.

    Args:
        receipts: Of all files, by digest.
        competition, incentives: As the auditor names them.
        chains, refusals: By netuid; no chain without --subtensor.network.
    """
    for netuid, signer in {(file.header.netuid, file.header.signer): None for file in files.values()}:
        # A round that was done again after a loss of the state has two versions. The first has the weights.
        rounds = {
            (file.header.start_block, file.header.season): (path, file.header)
            for path, file in sorted(files.items(), key=lambda item: item[1].header.opened_block, reverse=True)
            if (file.header.netuid, file.header.signer) == (netuid, signer)
        }
        chain = chains.get(netuid)
        history, sequence = History(receipts), SequenceCheck()
        weights = WeightsCheck(chain, signer) if chain is not None and signer is not None else None
        for path, header in sorted(rounds.values(), key=lambda item: (item[1].start_block, item[1].opened_block)):
            report = reports[path]
            checked = history.add(header)
            report.findings += sequence.check(header, checked)
            report.notes += sequence.notes(header)
            _check_round(report, header, checked, competition, incentives, chain, refusals[netuid])
            if weights is not None:
                report.findings += read_or_report(weights.check(header), report.unanswered)
                report.notes += weights.notes


def _check_round(
    report: FileReport,
    header: RoundHeader,
    checked: CheckedRound,
    competition: Competition,
    incentives: Incentives,
    chain: AuditChain | None,
    refusals: RefusalCheck,
) -> None:
    report.findings += [*check_rules(header, competition, incentives), *check_commitments(header), *checked.findings]
    report.findings += refusals.check(header, checked)
    report.notes += refusals.notes
    report.unanswered += refusals.unanswered
    plan = check_plan(header, checked, None if chain is None else chain.block_hash)
    report.findings += read_or_report(plan, report.unanswered)
    if chain is None:
        report.notes += [
            f"{claim.key.hotkey}: rank block {claim.rank_block} is from before these files: audit with a chain"
            for claim in checked.claimed_ranks
        ]
        return
    for findings in (
        _check_hashes(header, chain),
        check_entries(header, checked, chain),
        check_claimed_ranks(header, checked.claimed_ranks, chain),
        check_burns(checked.burns, chain),
    ):
        report.findings += read_or_report(findings, report.unanswered)


def _check_hashes(header: RoundHeader, chain: AuditChain) -> Iterator[Finding]:
    yield from (Finding(Kind.SEED, fault) for fault in check_against_chain(header, chain.block_hash))
