"""The transaction pool: validity, inclusion and statuses of extrinsics.

A valid call goes into the next block at once. Source: the pool's RPC errors in sc-rpc-api (author/error.rs), and
sp_runtime::transaction_validity for their texts.
"""

from dataclasses import dataclass, field
from typing import Any

from template.localnet.chain import pallets
from template.localnet.chain.chain import runtime_upgrades
from template.localnet.chain.ledger import Ledger
from template.localnet.chain.scale_codec import Call, decode_call
from template.localnet.node.extrinsics import Extrinsic, parse_extrinsic
from template.localnet.node.items import nonce_of
from template.localnet.node.metadata import SPEC_VERSION
from template.localnet.node.state import BLOCK_HASH_COUNT
from template.localnet.node.validity import find_refusal

_INVALID, _IMPORTED, _LOW_PRIORITY, _BAD_FORMAT = 1010, 1013, 1014, 1001
_LOW_PRIORITY_DETAIL = "The transaction has too low priority to replace another transaction already in the pool."
_FINALITY_TIMEOUT_BLOCKS = 512
_ENDED = {"finalized", "finalityTimeout", "invalid", "usurped", "dropped"}

Status = str | dict[str, Any]


class PoolError(Exception):
    """The pool refuses an extrinsic."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message if data is None else f"{message}: {data}")
        self.code = code
        self.message = message
        self.data = data


@dataclass
class Transaction:
    """An extrinsic in the pool, and its statuses so far.

    block: the block that holds it, None for one with a later nonce.
    """

    extrinsic: Extrinsic
    call: Call
    block: int | None = None
    included_in: str | None = None
    statuses: list[Status] = field(default_factory=list)

    @property
    def is_ended(self) -> bool:
        if not self.statuses:
            return False
        last = self.statuses[-1]
        return (last if isinstance(last, str) else next(iter(last))) in _ENDED


class Pool:
    """The extrinsics that are not final yet."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._transactions: dict[str, Transaction] = {}
        self._refusals: list[PoolError] = []

    def refuse(self, code: int, message: str, data: str | None = None, calls: int = 1) -> None:
        """Refuse the next `calls` extrinsics with this error."""
        self._refusals = [PoolError(code, message, data)] * calls

    def submit(self, data: bytes) -> Transaction:
        """Check an extrinsic, and put it into the next block.

        One with a later nonce waits for the nonces before. Raises: PoolError.
        """
        self.maintain()
        if self._refusals:
            raise self._refusals.pop()
        try:
            extrinsic = parse_extrinsic(data)
        except ValueError as error:
            raise PoolError(_BAD_FORMAT, f"Extrinsic has invalid format: {error}") from error
        if extrinsic.hash in self._transactions:
            raise PoolError(_IMPORTED, "Transaction Already Imported", extrinsic.hash)
        transaction = Transaction(extrinsic, self._decode(extrinsic))
        self._check_signature(extrinsic)
        expected = self.next_nonce(extrinsic.signer)
        if extrinsic.nonce < expected:
            if self._is_waiting(extrinsic):
                raise PoolError(_LOW_PRIORITY, "Priority is too low: (0 vs 0)", _LOW_PRIORITY_DETAIL)
            raise _invalid("Transaction is outdated")
        number = find_refusal(self._ledger.pending(), self._ledger.netuid, extrinsic.signer, transaction.call)
        if number is not None:
            raise _invalid(f"Custom error: {number}")
        self._transactions[extrinsic.hash] = transaction
        if extrinsic.nonce == expected:
            self._include(transaction)
            self.maintain()
        else:
            transaction.statuses.append("future")
        return transaction

    def next_nonce(self, account: str) -> int:
        """Return the nonce of an account's next call, after those that wait for a block."""
        return nonce_of(self._ledger.pending(), account)

    def maintain(self) -> None:
        """Bring every status up to date with the chain."""
        head, final = self._ledger.block(), self._ledger.finalized()
        for transaction in list(self._transactions.values()):
            if transaction.block is None:
                if transaction.extrinsic.nonce <= self.next_nonce(transaction.extrinsic.signer):
                    self._include(transaction)
            else:
                self._follow(transaction, head, final)
            if transaction.is_ended:
                del self._transactions[transaction.extrinsic.hash]

    def _decode(self, extrinsic: Extrinsic) -> Call:
        try:
            return decode_call(extrinsic.call)
        except ValueError as error:
            # The error of a runtime that filters a call out. The local chain has no rules for other calls.
            raise _invalid("Transaction call is not expected") from error

    def _check_signature(self, extrinsic: Extrinsic) -> None:
        head, genesis = self._ledger.block(), self._ledger.hash_of(0)
        birth = 0 if extrinsic.era is None else extrinsic.era.birth(head + 1)
        if birth > head or (extrinsic.era is not None and birth < head - BLOCK_HASH_COUNT):
            raise _invalid("Transaction has an ancient birth block")
        spec_version = SPEC_VERSION + runtime_upgrades(self._ledger.at())
        if not extrinsic.is_signed(spec_version=spec_version, genesis=genesis, birth=self._ledger.hash_of(birth)):
            raise _invalid("Transaction has a bad signature")

    def _is_waiting(self, extrinsic: Extrinsic) -> bool:
        """Tell whether a call with the same nonce waits for its block."""
        head = self._ledger.block()
        return any(
            (other.extrinsic.signer, other.extrinsic.nonce) == (extrinsic.signer, extrinsic.nonce)
            and (other.block is None or other.block > head)
            for other in self._transactions.values()
        )

    def _include(self, transaction: Transaction) -> None:
        """Run a call in the next block; end it if it is not valid any more."""
        extrinsic = transaction.extrinsic
        with self._ledger.write() as state:
            if extrinsic.nonce != nonce_of(state, extrinsic.signer):
                transaction.statuses.append("invalid")
                return
            state.put("Nonce", extrinsic.signer, extrinsic.nonce + 1)
            failure = None
            try:
                pallets.dispatch(state, self._ledger.netuid, extrinsic.signer, transaction.call)
            except pallets.DispatchError as error:
                failure = error.name
            state.record_extrinsic(extrinsic.call, extrinsic.signer, failure, extrinsic.data)
            transaction.block = state.block
        transaction.statuses.append("ready")

    def _follow(self, transaction: Transaction, head: int, final: int) -> None:
        """Compare a call with its block, which a reorganisation may have taken back."""
        block = transaction.block
        assert block is not None
        if not self._is_in(transaction, block):
            if transaction.included_in is not None:
                transaction.statuses.append({"retracted": transaction.included_in})
            transaction.block = transaction.included_in = None
            try:
                self._check_signature(transaction.extrinsic)
            except PoolError:
                transaction.statuses.append("invalid")
                return
            self._include(transaction)
            block = transaction.block
            if block is None:
                return
            head, final = self._ledger.block(), self._ledger.finalized()
        if block > head:
            return
        if transaction.included_in is None:
            transaction.included_in = self._ledger.hash_of(block)
            transaction.statuses.append({"inBlock": transaction.included_in})
        if block <= final:
            transaction.statuses.append({"finalized": transaction.included_in})
        elif head - block > _FINALITY_TIMEOUT_BLOCKS:
            transaction.statuses.append({"finalityTimeout": transaction.included_in})

    def _is_in(self, transaction: Transaction, block: int) -> bool:
        if not any(record.wire == transaction.extrinsic.data for record in self._ledger.records(block)):
            return False
        return transaction.included_in is None or transaction.included_in == self._ledger.hash_of(block)


def _invalid(reason: str) -> PoolError:
    return PoolError(_INVALID, "Invalid Transaction", reason)
