"""What `scripts/check_dataset.py` found, in words and as JSON. Pure."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import islice

from template import constants
from template.competition import CommitmentRecord
from template.errors import Reason
from template.miner.check import Inspection
from template.miner.competitors import Competitor, DatasetComparison, Overlap, SubnetSnapshot

_SHOWN = 20
_MISSING = (Reason.MISSING_REPO, Reason.MISSING_FILE)


class CheckOutcome(StrEnum):
    """What it comes to."""

    OK = "nothing_found"
    INCONCLUSIVE = "cannot_say"
    REJECTED = "refused"


_VERDICTS = {
    CheckOutcome.OK: "NOTHING FOUND against it",
    CheckOutcome.INCONCLUSIVE: "CANNOT SAY: too little could be read",
    CheckOutcome.REJECTED: "REFUSED: a validator would not count it",
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found of the file, of the subnet's datasets, and of the commitment it would get.

    subnet and comparison are None when they were not asked for, and when the chain could not be read: then `unread`
    says why. commitment: its text with zeros for the commit, None when no repo is given or `bad_commitment` says what
    is wrong with it.
    """

    file: Inspection
    subnet: SubnetSnapshot | None = None
    comparison: DatasetComparison | None = None
    unread: str = ""
    commitment: str | None = None
    bad_commitment: str = ""

    @property
    def outcome(self) -> CheckOutcome:
        """Refused only where nothing that could not be read can change it."""
        is_doubtful = self.comparison is not None and bool(self.comparison.unknowns)
        is_copy = self.comparison is not None and self.comparison.copy_of is not None and not is_doubtful
        if self.file.faults or self.bad_commitment or is_copy:
            return CheckOutcome.REJECTED
        return CheckOutcome.INCONCLUSIVE if self.unread or self.file.undecided_lines or is_doubtful else CheckOutcome.OK


def describe(report: Report) -> str:
    """The report for a person."""
    lines = _describe_file(report.file)
    if report.subnet is not None and report.comparison is not None:
        lines += ["", *_describe_subnet(report.subnet, report.comparison)]
    if report.unread:
        lines += ["", f"not compared with any other dataset: {report.unread}"]
    if report.commitment:
        repo_and_id = report.commitment.rpartition(":")[0]
        size = f"{len(report.commitment)} of {constants.MAX_COMMITMENT_BYTES} bytes"
        lines += ["", f"commitment {repo_and_id}:COMMIT, {size}"]
    if report.bad_commitment:
        lines += ["", f"{Reason.BAD_COMMITMENT}: {report.bad_commitment}"]
    return "\n".join([*lines, "", _VERDICTS[report.outcome]])


def _describe_file(file: Inspection) -> list[str]:
    lines = [f"{file.row_count} rows, {len(file.counted)} well formed of those that count, {len(file.faults)} faults"]
    lines += _shorten(
        f"{'file' if fault.line is None else f'line {fault.line}'}: {fault.reason}: {fault.message}"
        for fault in file.faults
    )
    if file.undecided_lines:
        where = f"line {_ranges(file.undecided_lines)}: is there an answer within {constants.MAX_TOKENS} tokens?"
        lines.append(f"not known: {where} {file.undecided_why}")
    if file.repeats:
        lines.append(f"rows that stand there again: {len(file.repeats)}")
        lines += _shorten(f"line {line} is line {first} again" for line, first in file.repeats)
    if file.spare_lines:
        lines.append(f"rows that do not count, beyond those that do: line {_ranges(file.spare_lines)}")
    return lines


def _describe_subnet(subnet: SubnetSnapshot, comparison: DatasetComparison) -> list[str]:
    read = [one for one in subnet.others if one.is_read]
    refused = [one for one in subnet.others if one.rejection is not None]
    idle = [one for one in subnet.others if one.unknown_reason is not None and one not in comparison.unknowns]
    lines = [
        f"other hotkeys with a commitment at block {subnet.block}: {len(subnet.others)};"
        f" datasets compared: {len(read)}, with this one {_place(subnet, comparison)}"
    ]
    if subnet.own is not None and subnet.own.rejection is not None:
        lines.append(f"of no account itself, {_name(subnet.own)}: {subnet.own.rejection}")
    lines += _shorten(_describe_overlap(one, comparison.row_count) for one in comparison.overlaps)
    if comparison.copy_of is not None:
        lines.append(f"{Reason.DUPLICATE}: {comparison.copy_of.to_error()}")
    if comparison.unknowns:
        lines.append(f"not known, and may decide: {len(comparison.unknowns)}")
        lines += _shorten(f"{_name(one)}: {_unknown(one)}" for one in comparison.unknowns)
    if idle:
        lines.append(f"not known, but committed later: {len(idle)}")
        lines += _shorten(f"{_name(one)}: {_unknown(one)}" for one in idle)
    if refused:
        counts = Counter(str(one.rejection.reason) for one in refused if one.rejection)
        lines.append(
            "of no account themselves: " + ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        )
        lines += _shorten(f"{_name(one)}: {one.rejection}" for one in refused)
        if any(map(_may_appear, refused)):
            lines.append("a commit that is missing may yet appear, and counts from the block of its commitment then")
    return lines


def _may_appear(one: Competitor) -> bool:
    is_missing = one.rejection is not None and one.rejection.reason in _MISSING
    return is_missing and one.entry is not None and not CommitmentRecord.parse(one.entry).is_content_addressed


def _place(subnet: SubnetSnapshot, comparison: DatasetComparison) -> str:
    earliest, latest = comparison.ranks
    if earliest > subnet.block:
        return "as if committed now, later than all"
    if latest > subnet.block:
        return f"committed in block {earliest} or not yet: that commitment could not be read"
    return f"committed in block {latest}" + ("" if earliest == latest else " or before, under seal")


def _describe_overlap(overlap: Overlap, row_count: int) -> str:
    order = "earlier" if overlap.is_earlier else "later"
    limit = f"{'over ' if overlap.is_over_limit else ''}limit {constants.DEFAULT_DUPLICATE_COUNT}"
    shared = f"shares {overlap.shared} of {row_count} rows ({limit}), line {_ranges(overlap.lines)}"
    return f"{_name(overlap.neighbour)}, {order}: {shared}"


def _name(one: Competitor) -> str:
    what = "" if one.entry is None else f" {one.entry!r}"
    return f"{one.hotkey} (uid {one.uid}, block {one.block}){what}"


def _unknown(one: Competitor) -> str:
    return one.unknown_reason or "the chain has opened it and no longer tells when it was committed"


def _shorten(lines: Iterable[str]) -> list[str]:
    """The first lines, indented, and how many more there are."""
    rest = iter(lines)
    shown = [f"  {line}" for line in islice(rest, _SHOWN)]
    more = sum(1 for _ in rest)
    return [*shown, f"  and {more} more"] if more else shown


def _ranges(lines: Iterable[int]) -> str:
    """Line numbers in ascending order, neighbouring ones as a range: `1-4, 9`, and how many more lines there are."""
    spans: list[list[int]] = []
    for line in lines:
        if spans and line == spans[-1][1] + 1:
            spans[-1][1] = line
        else:
            spans.append([line, line])
    shown = ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in spans[:_SHOWN])
    more = sum(last - first + 1 for first, last in spans[_SHOWN:])
    return f"{shown} and {more} more" if more else shown


def to_json(report: Report) -> dict[str, object]:
    """The report for a program, nothing left out."""
    file = {name: value for name, value in asdict(report.file).items() if name != "counted"}
    subnet = None
    if report.subnet is not None and report.comparison is not None:
        subnet = _subnet_to_json(report.subnet, report.comparison)
    return {
        "outcome": report.outcome,
        "file": {**file, "counted_lines": [row.line for row in report.file.counted]},
        "subnet": subnet,
        "unread": report.unread or None,
        "commitment_bytes": len(report.commitment) if report.commitment else None,
        "bad_commitment": report.bad_commitment or None,
    }


def _subnet_to_json(subnet: SubnetSnapshot, comparison: DatasetComparison) -> dict[str, object]:
    return {
        "block": subnet.block,
        "limit": constants.DEFAULT_DUPLICATE_COUNT,
        "committed_between": comparison.ranks,
        "row_count": comparison.row_count,
        "copy_of": asdict(comparison.copy_of) if comparison.copy_of else None,
        "overlaps": [
            {
                "hotkey": one.neighbour.hotkey,
                "shared": one.shared,
                "lines": one.lines,
                "is_earlier": one.is_earlier,
                "is_over_limit": one.is_over_limit,
            }
            for one in comparison.overlaps
        ],
        "doubtful_hotkeys": [one.hotkey for one in comparison.unknowns],
        "own": _neighbour_to_json(subnet.own) if subnet.own else None,
        "others": [_neighbour_to_json(one) for one in subnet.others],
    }


def _neighbour_to_json(one: Competitor) -> dict[str, object]:
    return {
        "hotkey": one.hotkey,
        "uid": one.uid,
        "block": one.block,
        "entry": one.entry,
        "is_revealed": one.is_revealed,
        "is_read": one.is_read,
        "doubt": one.unknown_reason,
        "refusal": str(one.rejection) if one.rejection else None,
        "reason": one.rejection.reason if one.rejection else None,
    }
