"""Say in words why a dataset has its verdict, loss and weight. Pure."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from template.competition import Reward
from template.constants import DAY_BLOCKS, DROPPED_MARK, MAX_SHARED_PERCENT
from template.errors import Reason
from template.receipts.round_file import RoundHeader, TableLine, WeightsLine
from template.records import LedgerLine
from template.rules.entries import MISSING
from template.rules.leaderboard import COUNTS_LATER
from template.rules.ledger import live_records, paid_loss
from template.rules.scoring import score_of

# Verdicts besides the reasons of a rejection.
RECORD, CONFIRMED, RUNNING, DROPPED, WAITING = "record", "confirmed", "in_progress", "dropped", "waiting"

# What the message of a duplicate says about the earlier dataset besides its hotkey: digest and block.
_COPIED_DATASET = re.compile(r" \(rows [0-9a-f]{12}, block ([0-9]+)\)$")

# Records of a paid hotkey that are described.
_SHOWN_RECORDS = 2


@dataclass(frozen=True)
class Verdict:
    """code: a `Reason`, or one of the five above. why: sentences."""

    code: str
    why: str

    @property
    def is_rejection(self) -> bool:
        return self.code not in (RECORD, CONFIRMED, RUNNING, DROPPED, WAITING)


def ledger_line(line: TableLine, header: RoundHeader) -> LedgerLine | None:
    """Return the ledger's line of the dataset in the table, None before it is confirmed."""
    key = (line.hotkey, line.digest)
    return next((own for own in header.ledger if (own.hotkey, own.digest) == key), None)


def explain_verdict(line: TableLine, header: RoundHeader, own: LedgerLine | None) -> Verdict:
    """Return the verdict on a dataset, and why. own: its line in the ledger."""
    if line.reason is not None:
        text = _COPIED_DATASET.sub(r", which counts since block \1", line.message or "rejected")
        return Verdict(line.reason.value, f"{_sentence(text)}{_explain_rule(line.reason)}")
    needed = header.incentives.evaluations
    if line.runs == 0:
        return Verdict(WAITING, _explain_wait(line, header))
    if own is None and DROPPED_MARK in line.message:
        done, _, rest = line.message.partition(DROPPED_MARK)
        why, _, unpaid = rest.partition("; ")
        more = f" {_sentence(unpaid)}" if unpaid else ""
        return Verdict(DROPPED, f"{done} are done. {_sentence(why)} So validators evaluate it no more.{more}")
    if own is None:
        return Verdict(RUNNING, f"{line.runs} of {needed} evaluations are done. A dataset is paid after all of them.")
    epsilon, gap = header.incentives.epsilon, own.frontier - own.loss
    if own.credit > 0.0:
        absent = " It is not paid now: its file is missing for more than a day." if own.is_absent else ""
        text = f"Its loss {own.loss:.6f} is {gap:.6f} below the loss to beat, {own.frontier:.6f}."
        return Verdict(RECORD, f"{text} {_explain_record(own, header)}{absent}")
    if gap < 0.0:
        text = f"Its loss {own.loss:.6f} is {-gap:.6f} above the loss to beat, {own.frontier:.6f}."
    else:
        text = f"Its loss {own.loss:.6f} is only {gap:.6f} below the loss to beat, and no more than {epsilon:g}."
    return Verdict(CONFIRMED, f"{text} So it is no record and adds no credit.")


def _explain_wait(line: TableLine, header: RoundHeader) -> str:
    """Say what a dataset without an evaluation waits for, and how many others wait for the same."""
    if line.message.startswith(COUNTS_LATER):
        return f"Not evaluated yet: it {line.message}."
    if line.digest is None and line.hotkey in header.missing:
        return "Not downloaded yet: its file is not on the Hub."
    step = "downloaded" if line.digest is None else "evaluated"
    waiting = sum(
        other.runs == 0
        and other.reason is None
        and (other.digest is None) == (line.digest is None)
        and other.hotkey not in header.missing
        and not other.message.startswith(COUNTS_LATER)
        for other in header.table
    )
    more = f" {_count(waiting - 1, 'other dataset')} wait{'s' if waiting == 2 else ''} for the same."
    return f"Not {step} yet.{more if waiting > 1 else ''}"


def _explain_rule(reason: Reason) -> str:
    if reason in MISSING:
        return " The validator looks for the file again."
    if reason is Reason.DUPLICATE:
        return f" At most {MAX_SHARED_PERCENT}% of a dataset's distinct rows may be in one earlier dataset."
    return ""


def _explain_record(own: LedgerLine, header: RoundHeader) -> str:
    epsilon = header.incentives.epsilon
    paid, beaten = score_of(own.loss + epsilon, header.competition), score_of(own.frontier, header.competition)
    added = f" ({epsilon:g} is added)" if epsilon else ""
    return (
        f"The score of {own.loss + epsilon:.6f}{added} is {paid:.4f}, that of {own.frontier:.6f} is {beaten:.4f}."
        f" The difference {own.credit:.4f} is the record's credit."
    )


def explain_loss(line: TableLine, header: RoundHeader) -> str:
    """Say how the loss follows from the evaluations."""
    if line.mean is None:
        return "No evaluation is done."
    if line.spread is None:
        return f"It is of {_count(line.runs, 'evaluation')}."
    penalty = paid_loss(line.mean, line.spread, line.runs, header.incentives.sd) - line.mean
    text = f"The mean of {line.runs} evaluations is {line.mean:.6f}, their standard deviation {line.spread:.6f}."
    if penalty > 0.0:
        return f"{text} That is more than {header.incentives.sd:g}, which adds {penalty:.6f} to the loss."
    return f"{text} More than {header.incentives.sd:g} would add to the loss."


def explain_weight(line: TableLine, header: RoundHeader) -> str:
    """Say why a hotkey has its share of the weights."""
    match header.incentives.reward:
        case Reward.PROPORTIONAL:
            total = sum(row.score for row in header.table if row.weight > 0.0)
            if line.weight > 0.0:
                return f"Its score {line.score:.4f} is {line.weight:.2%} of all paid scores, {total:.4f}."
            return "It is paid after all its evaluations, if its score is above 0."
        case Reward.WINNER:
            return "The newest record takes all weight." + ("" if line.weight > 0.0 else " It is another's.")
        case _:
            return _explain_credit(line, header)


def _explain_credit(line: TableLine, header: RoundHeader) -> str:
    total = sum(row.credit for row in header.table)
    live = live_records(header.start_block, header.ledger, header.registrations, header.incentives)
    own = [(record, credit) for record, credit in live if record.hotkey == line.hotkey and not record.is_absent]
    if line.weight <= 0.0:
        return "The hotkey has a record and is not paid now." if own else "The hotkey has no record, so no credit."
    text = f"Its credit {line.credit:.4f} is {line.weight:.2%} of the credits of all hotkeys, {total:.4f}."
    left = [f"{credit:.4f} of {record.credit:.4f} since block {record.rank_block}" for record, credit in own]
    halving = f"A credit halves every {_half_life(header)} from the block since which its dataset counts"
    return f"{text} {halving}. What is left at block {header.start_block}: {', '.join(left)}."


def explain_pay(header: RoundHeader) -> str:
    """Say how weights are earned in this competition."""
    competition, rules = header.competition, header.incentives
    losses = (
        "A dataset is a choice of rows of the competition's evaluation set. One that shares more than"
        f" {MAX_SHARED_PERCENT}% of its rows with an earlier one is a duplicate. Validators train the"
        " same model on every dataset that is no duplicate, and measure the loss on the whole evaluation set, under"
        f" {_count(rules.evaluations, 'seed')}. A lower loss is better. From the benchmark,"
        f" {competition.bench:g}, down to {competition.minb:g}, a loss L scores {competition.bheight:g} +"
        f" {1.0 - competition.bheight:g} (({competition.bench:g} - L) / {competition.bench - competition.minb:g})"
        f"^{competition.pow:g}."
    )
    if rules.reward is Reward.PROPORTIONAL:
        falls = f"Above the benchmark the score falls to 0 at {competition.maxb:g}."
        return f"{losses} {falls} A weight is the share of a dataset's score in the sum of all scores."
    by = f" by more than {rules.epsilon:g}" if rules.epsilon else ""
    record = (
        "Datasets are compared in the order of the rounds in which they were first committed and readable, then of"
        " their commit blocks. The loss to beat is that of the last record, before the first one the benchmark. A"
        f" dataset that beats it{by} is a record."
    )
    if rules.reward is Reward.WINNER:
        return f"{losses} {record} The newest record has all weight."
    paid = f"(loss + {rules.epsilon:g})" if rules.epsilon else "its loss"
    credit = (
        f"Its credit is the score of {paid}, minus the score of the loss to beat. A"
        f" credit halves every {_half_life(header)}. A weight is a hotkey's share of all credits."
    )
    return f"{losses} {record} {credit}"


def _half_life(header: RoundHeader) -> str:
    blocks = header.incentives.half_life_blocks
    return f"{blocks:,} blocks ({blocks / DAY_BLOCKS:.3g} days)"


def paid_for(line: TableLine, header: RoundHeader) -> str:
    """Say in few words what a paid hotkey is paid for."""
    if header.incentives.reward is Reward.PROPORTIONAL:
        return f"Its score, {line.score:.4f}."
    live = live_records(header.start_block, header.ledger, header.registrations, header.incentives)
    own = [record for record, _ in live if record.hotkey == line.hotkey][::-1]
    texts = [
        f"A record that counts since block {record.rank_block}: loss {record.loss:.6f},"
        f" {record.frontier - record.loss:.6f} below the loss to beat."
        for record in own[:_SHOWN_RECORDS]
    ]
    more = [f"And {_count(len(own) - _SHOWN_RECORDS, 'earlier record')}."] if len(own) > _SHOWN_RECORDS else []
    return " ".join([*texts, *more])


def weights_outcome(header: RoundHeader) -> str:
    """Say what became of the round's weights."""
    own = [line for line in header.weights if not line.is_repeat]
    last = next(reversed([line for line in own if line.is_accepted] or own), None)
    if last is not None:
        return _outcome(last) + _name_burn(last, header)
    repeats = [line for line in header.weights if line.is_accepted]
    if repeats:
        return f"Earlier weights were submitted again, in block {repeats[-1].included_block or repeats[-1].block}."
    return "The round was over when it opened, so it has none." if header.is_past else "None were submitted."


def _outcome(line: WeightsLine) -> str:
    if line.is_accepted:
        return f"On chain since block {line.included_block or line.block}."
    if line.is_accepted is None:
        return f"Submitted in block {line.block}; the outcome was not known yet."
    return f"The chain refused them in block {line.block}: {line.error}."


def _name_burn(line: WeightsLine, header: RoundHeader) -> str:
    """Name the hotkey that gets everything where no dataset is paid: the file cannot tell whether it is the owner's."""
    if not line.is_accepted or len(line.shares) != 1 or any(row.weight > 0.0 for row in header.table):
        return ""
    return (
        f" No dataset of this round is paid: all weight is for {next(iter(line.shares))}. If that is the subnet owner's"
        " hotkey, the chain burns it."
    )


def paid_since(hotkey: str, headers: Iterator[RoundHeader]) -> int | None:
    """Return the start of the first round of the latest unbroken pay of a hotkey.

    headers: newest first.
    """
    since = None
    for header in headers:
        if not any(line.hotkey == hotkey and line.weight > 0.0 for line in header.table):
            break
        since = header.start_block
    return since


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
