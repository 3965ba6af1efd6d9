"""The report of `scripts/check_dataset.py`, as text and as JSON. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from template import constants
from template.competition import CommitmentRecord
from template.console import BAD, GOOD, OPEN, make_table
from template.errors import Reason
from template.miner.check import Inspection, Problem
from template.miner.competitors import Competitor, DatasetComparison, Overlap, SubnetSnapshot
from template.rules.duplicates import max_shared
from template.terminal import escape, format_duration

_SHOWN = 20
_NO_COMMIT_BLOCK = "revealed; the chain no longer has the block of its commitment"
_MISSING = (Reason.MISSING_REPO, Reason.MISSING_FILE)


class CheckOutcome(StrEnum):
    """Overall result, in the words of the JSON report."""

    OK = "nothing_found"
    INCONCLUSIVE = "cannot_say"
    REJECTED = "refused"


_SUMMARIES = {
    CheckOutcome.OK: "OK: no problem found",
    CheckOutcome.INCONCLUSIVE: "INCONCLUSIVE: not enough could be read",
    CheckOutcome.REJECTED: "REJECTED: a validator would not count this dataset",
}
_STYLES = {CheckOutcome.OK: GOOD, CheckOutcome.INCONCLUSIVE: OPEN, CheckOutcome.REJECTED: BAD}


@dataclass(frozen=True, kw_only=True)
class Report:
    """Results of checking the file, the subnet's other datasets, and the commitment.

    subnet and comparison: None if not requested, or if the chain could not be read for the reason `unread`.
    counts_from: the block from which the dataset counts at the earliest. commitment: its text with zeros for the
    digest; None without a repo, or if `bad_commitment` has an error.
    """

    file: Inspection
    subnet: SubnetSnapshot | None = None
    comparison: DatasetComparison | None = None
    counts_from: int | None = None
    unread: str = ""
    commitment: str | None = None
    bad_commitment: str = ""

    @property
    def outcome(self) -> CheckOutcome:
        """Rejected only where nothing that is unknown could change it."""
        has_unknowns = self.comparison is not None and bool(self.comparison.unknowns)
        is_duplicate = self.comparison is not None and self.comparison.copy_of is not None and not has_unknowns
        if self.file.faults or self.bad_commitment or is_duplicate:
            return CheckOutcome.REJECTED
        is_open = self.unread or self.file.undecided_lines or has_unknowns
        return CheckOutcome.INCONCLUSIVE if is_open else CheckOutcome.OK


def describe(report: Report) -> str:
    """Return the report as text."""
    faults = [f"{_place(fault)}: {fault.reason}: {fault.message}" for fault in report.file.faults]
    lines = [*_section(_file_title(report.file), faults), *_file_notes(report.file)]
    if report.subnet is not None and report.comparison is not None:
        lines += ["", *describe_comparison(report.subnet, report.comparison)]
    return "\n".join([*lines, *_other_notes(report), "", _SUMMARIES[report.outcome]])


def report_tables(report: Report) -> Iterator[RenderableType]:
    """Yield what a terminal shows of the report."""
    yield Text(_file_title(report.file), style="bold")
    if report.file.faults:
        table = make_table("line", "problem", "message")
        for fault in report.file.faults[:_SHOWN]:
            table.add_row(_place(fault), Text(str(fault.reason), style=BAD), escape(fault.message))
        yield table
    yield from (escape(line) for line in [*_more(report.file.faults), *_file_notes(report.file)])
    if report.subnet is not None and report.comparison is not None:
        yield from ("", Text(_comparison_title(report.subnet, report.comparison), style="bold"))
        if report.comparison.overlaps:
            yield _overlap_table(report.comparison.overlaps)
        notes = [*_more(report.comparison.overlaps), *_comparison_notes(report.subnet, report.comparison)]
        yield from map(escape, notes)
    yield from map(escape, _other_notes(report))
    yield from ("", Text(_SUMMARIES[report.outcome], style=_STYLES[report.outcome]))


def _overlap_table(overlaps: Sequence[Overlap]) -> Table:
    table = make_table("hotkey", "block", "rank", "shared", "limit", "lines", numbers=("block", "shared", "limit"))
    for overlap in overlaps[:_SHOWN]:
        table.add_row(
            escape(overlap.competitor.hotkey),
            str(overlap.competitor.block),
            "earlier" if overlap.is_earlier else "later",
            Text(str(overlap.shared), style=BAD if overlap.is_over_limit else ""),
            str(overlap.limit),
            _ranges(overlap.lines),
        )
    return table


def _other_notes(report: Report) -> list[str]:
    lines = []
    if report.subnet is not None and report.counts_from is not None:
        lines.append(describe_counting(report.subnet, report.counts_from))
    if report.unread:
        lines += ["", f"not compared with other datasets: {report.unread}"]
    if report.commitment:
        size = f"{len(report.commitment)} of {constants.MAX_COMMITMENT_BYTES} bytes"
        lines += ["", f"commitment {report.commitment.rpartition(':')[0]}:DIGEST, {size}"]
    if report.bad_commitment:
        lines += ["", f"{Reason.BAD_COMMITMENT}: {report.bad_commitment}"]
    return lines


def _file_title(file: Inspection) -> str:
    return f"{file.row_count} rows, {len(file.counted)} of them well formed and counted, {len(file.faults)} problems"


def _place(fault: Problem) -> str:
    return "file" if fault.line is None else f"line {fault.line}"


def _file_notes(file: Inspection) -> list[str]:
    lines = []
    if file.undecided_lines:
        question = f"answer within {constants.MAX_TOKENS} tokens unknown"
        lines.append(f"line {_ranges(file.undecided_lines)}: {question}: {file.undecided_why}")
    if file.repeats:
        repeats = [f"line {line} repeats line {first}" for line, first in file.repeats]
        lines += _section(f"{len(repeats)} repeated rows", repeats)
    if file.spare_lines:
        lines.append(f"line {_ranges(file.spare_lines)}: beyond the rows that count")
    return lines


def describe_comparison(subnet: SubnetSnapshot, comparison: DatasetComparison) -> list[str]:
    """Return the lines about the subnet's other datasets."""
    overlaps = [_describe_overlap(overlap, comparison.row_count) for overlap in comparison.overlaps]
    return [*_section(_comparison_title(subnet, comparison), overlaps), *_comparison_notes(subnet, comparison)]


def _comparison_title(subnet: SubnetSnapshot, comparison: DatasetComparison) -> str:
    compared = sum(other.is_read for other in subnet.others)
    limit = max_shared(comparison.row_count)
    return (
        f"block {subnet.block}: {len(subnet.others)} other hotkeys with a commitment, {compared} datasets compared;"
        f" this one counts as {_describe_rank(subnet, comparison)}, and may share {limit} of its"
        f" {comparison.row_count} different rows with an earlier one"
    )


def _comparison_notes(subnet: SubnetSnapshot, comparison: DatasetComparison) -> list[str]:
    lines = []
    if subnet.own is not None and subnet.own.rejection is not None:
        lines.append(f"your present commitment is rejected: {_name(subnet.own)}: {subnet.own.rejection}")
    if comparison.copy_of is not None:
        lines.append(f"{Reason.DUPLICATE}: {comparison.copy_of.to_error()}")
    later = [other for other in subnet.others if other.unknown_reason and other not in comparison.unknowns]
    for title, unknown in (("unknown, and may decide", comparison.unknowns), ("unknown, but committed later", later)):
        reasons = [f"{_name(other)}: {other.unknown_reason or _NO_COMMIT_BLOCK}" for other in unknown]
        lines += _section(f"{title}: {len(reasons)}", reasons) if reasons else []
    rejected = [(other, other.rejection) for other in subnet.others if other.rejection is not None]
    if rejected:
        counts = Counter(str(error.reason) for _, error in rejected)
        title = "rejected: " + ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        lines += _section(title, [f"{_name(other)}: {error}" for other, error in rejected])
        if any(_may_appear(other) for other, _ in rejected):
            lines.append("a missing commit may still be uploaded; it then counts from the round after it is read")
    return lines


def describe_counting(subnet: SubnetSnapshot, counts_from: int) -> str:
    """Return the line about the block from which the rows count."""
    if counts_from <= subnet.block:
        return f"its rows, in any order, count since block {counts_from}: a new commitment to them changes nothing"
    wait = format_duration((counts_from - subnet.block) * constants.BLOCK_S)
    own = "" if subnet.own is None else ": the dataset after your present one has to wait"
    return f"committed now, it counts from block {counts_from} at the earliest, in {wait}{own}"


def _section(title: str, lines: Sequence[str]) -> list[str]:
    """Indent the first lines under a title, and count the rest."""
    return [title, *(f"  {line}" for line in lines[:_SHOWN]), *_more(lines)]


def _more(items: Sequence[object]) -> list[str]:
    return [f"  and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []


def _may_appear(competitor: Competitor) -> bool:
    if competitor.rejection is None or competitor.rejection.reason not in _MISSING or competitor.entry is None:
        return False
    return not CommitmentRecord.parse(competitor.entry).is_content_addressed


def _describe_rank(subnet: SubnetSnapshot, comparison: DatasetComparison) -> str:
    earliest, latest = comparison.ranks
    if earliest > subnet.block:
        return "committed now, after all others"
    if latest > subnet.block:
        return f"committed in block {earliest} or now: your present commitment could not be read"
    return f"committed in block {latest}" + ("" if earliest == latest else " or, sealed, before")


def _describe_overlap(overlap: Overlap, row_count: int) -> str:
    order = "earlier" if overlap.is_earlier else "later"
    limit = f"{'over ' if overlap.is_over_limit else ''}limit {overlap.limit}"
    shared = f"shares {overlap.shared} of {row_count} rows ({limit}), line {_ranges(overlap.lines)}"
    return f"{_name(overlap.competitor)}, {order}: {shared}"


def _name(competitor: Competitor) -> str:
    commitment = "" if competitor.entry is None else f" {competitor.entry!r}"
    return f"{competitor.hotkey} (uid {competitor.uid}, block {competitor.block}){commitment}"


def _ranges(lines: Iterable[int]) -> str:
    """Format ascending line numbers like `1-4, 9`, at most `_SHOWN` ranges."""
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
    """Return the whole report for a program."""
    file = {name: value for name, value in asdict(report.file).items() if name != "counted"}
    subnet = None
    if report.subnet is not None and report.comparison is not None:
        subnet = _subnet_to_json(report.subnet, report.comparison)
    return {
        "outcome": report.outcome,
        "file": {**file, "counted_lines": [row.line for row in report.file.counted]},
        "subnet": subnet,
        "counts_from": report.counts_from,
        "unread": report.unread or None,
        "commitment_bytes": len(report.commitment) if report.commitment else None,
        "bad_commitment": report.bad_commitment or None,
    }


def _subnet_to_json(subnet: SubnetSnapshot, comparison: DatasetComparison) -> dict[str, object]:
    names = ("shared", "lines", "is_earlier", "limit", "is_over_limit")
    return {
        "block": subnet.block,
        "committed_between": comparison.ranks,
        "row_count": comparison.row_count,
        "limit": max_shared(comparison.row_count),
        "copy_of": asdict(comparison.copy_of) if comparison.copy_of else None,
        "overlaps": [
            {"hotkey": overlap.competitor.hotkey, **{name: getattr(overlap, name) for name in names}}
            for overlap in comparison.overlaps
        ],
        "doubtful_hotkeys": [other.hotkey for other in comparison.unknowns],
        "own": _competitor_to_json(subnet.own) if subnet.own else None,
        "others": [_competitor_to_json(other) for other in subnet.others],
    }


def _competitor_to_json(competitor: Competitor) -> dict[str, object]:
    names = ("hotkey", "uid", "block", "entry", "is_revealed", "is_read")
    return {
        **{name: getattr(competitor, name) for name in names},
        "doubt": competitor.unknown_reason,
        "refusal": str(competitor.rejection) if competitor.rejection else None,
        "reason": competitor.rejection.reason if competitor.rejection else None,
    }
