"""Build the pages of a leaderboard from the histories of validators. Pure.

Every page holds its answer as text. Long tables and charts are drawn by a script from compact data beside it, since
hundreds of rounds of hundreds of hotkeys as HTML would be too much.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from template.receipts.round_file import RoundHeader, TableLine
from template.site.archive import History, Names, file_name, round_name
from template.site.compare import compare_histories
from template.site.extract import Evaluation, Extract
from template.site.render import ASSETS, label, read_asset, render, script, table_csv
from template.site.words import RECORD, explain_loss, explain_pay, explain_weight, paid_for

Page = tuple[str, bytes]
"""A path in the site, and its content."""

ReadReceipt = Callable[[str, int], bytes]
"""Return one line of a round file, by `round_name` and the line's number."""

# Receipts as files, the newest of each hotkey first. The others are in the round files.
RECEIPT_BYTES = 4 * 10**6
# Lines of a chart.
_SERIES = 8


class Site:
    """The pages of some histories; the first one is the start page's."""

    def __init__(self, histories: Sequence[History], hub_url: str, read_receipt: ReadReceipt) -> None:
        self._histories = histories
        self._names = Names(histories, hub_url)
        self._read_receipt = read_receipt
        self._receipts: dict[str, str] = {}

    def pages(self) -> Iterator[Page]:
        """Yield every file of the site."""
        yield from ((f"assets/{name}", read_asset(name)) for name in ASSETS)
        yield from self._receipt_files()
        yield "data/names.js", script("NAMES", self._shared_data())
        for index, history in enumerate(self._histories):
            yield from self._standings(index, history)
            yield from self._history(index, history)
            for extract in history.rounds:
                yield from self._round(index, history, extract)
        for index, other in enumerate(self._histories[1:], start=1):
            comparison = compare_histories(self._histories[0], other)
            yield self._page("compare.html", _numbered("compare", index - 1), index, comparison=comparison, other=other)
        for hotkey in self._names.hotkeys:
            yield from self._hotkey(hotkey)

    def _page(self, template: str, path: str, index: int, **values: Any) -> Page:
        depth = path.count("/")
        shared = {
            "root": "../" * depth,
            "histories": self._histories,
            "history": self._histories[index],
            "index": index,
            "numbered": _numbered,
            "file_name": file_name,
            "round_name": round_name,
            "dataset": self._names.dataset,
            "linked": self._names.linked,
            "path": path,
        }
        return path, render(template, **{**shared, **values})

    def _shared_data(self) -> dict[str, Any]:
        return {
            "hotkeys": [[hotkey, file_name(hotkey)] for hotkey in self._names.hotkeys],
            "datasets": [self._names.dataset(entry) for entry in self._names.datasets],
            "verdicts": list(self._names.verdicts),
            "labels": [label(code) for code in self._names.verdicts],
            "validators": [
                {
                    "hotkey": history.signer,
                    "blocks": [extract.start_block for extract in history.rounds],
                    "files": [round_name(extract) for extract in history.rounds],
                    "best": [round(extract.best, 6) for extract in history.rounds],
                    "evaluations": [len(extract.evaluations) for extract in history.rounds],
                    "paid": [sum(row.weight > 0.0 for row in extract.rows) for extract in history.rounds],
                    "sources": [history.source(extract) for extract in history.rounds],
                    "flags": history.last.verify_flags,
                }
                for history in self._histories
            ],
        }

    def _standings(self, index: int, history: History) -> Iterator[Page]:
        rows = sorted(history.last.rows, key=lambda row: (-row.weight, -row.score, row.loss is None, row.loss, row.uid))
        paid = [row for row in rows if row.weight > 0.0]
        yield self._page(
            "standings.html", _numbered("index", index), index,
            paid=paid, others=rows[len(paid) :],
            paid_for={line.hotkey: paid_for(line, history.newest) for line in history.newest.table if line.weight},
            csv=_numbered("standings", index, "csv"), how=explain_pay(history.newest),
        )  # fmt: skip
        columns = ("rank", "hotkey", "uid", "dataset", "verdict", "why", "runs", "loss", "error", "score", "credit",
                   "weight", "paid_since_block")  # fmt: skip
        yield _numbered("standings", index, "csv"), table_csv(
            columns,
            (
                (rank, row.hotkey, row.uid, row.entry, row.verdict, row.why, row.runs, row.loss, row.error, row.score,
                 row.credit, row.weight, history.since.get(row.hotkey))
                for rank, row in enumerate(rows, start=1)
            ),
        )  # fmt: skip

    def _history(self, index: int, history: History) -> Iterator[Page]:
        first, last = history.rounds[0], history.last
        top = sorted(last.rows, key=lambda row: (-row.weight, row.loss is None, row.loss))[:_SERIES]
        top = [row for row in top if row.loss is not None]
        records = []
        for extract, before in zip(history.rounds[1:], history.rounds, strict=False):
            if extract.best < before.best:
                gains = (row for row in extract.rows if row.verdict == RECORD and row.loss == extract.best)
                records.append((extract, before.best, next(gains, None)))
        yield self._page(
            "history.html", _numbered("history", index), index,
            first=first, last=last, top=top, records=records[::-1], data=_numbered("data/history", index, "js"),
        )  # fmt: skip
        series = [self._series(history, row.hotkey) for row in top]
        yield _numbered("data/history", index, "js"), script("HISTORY", {"validator": index, "series": series})

    def _series(self, history: History, hotkey: str) -> dict[str, Any]:
        """Return the losses and weights of a hotkey, one for each round."""
        losses: list[float | None] = [None] * len(history.rounds)
        weights = list[float](map(float, [0] * len(history.rounds)))
        for index, row in history.by_hotkey.get(hotkey, ()):
            losses[index] = None if row.loss is None else round(row.loss, 6)
            weights[index] = round(row.weight, 6)
        return {"hotkey": self._names.hotkeys[hotkey], "loss": losses, "weight": weights}

    def _round(self, index: int, history: History, extract: Extract) -> Iterator[Page]:
        name = round_name(extract)
        uids = {row.uid: row.hotkey for row in extract.rows}
        yield self._page("round.html", f"rounds/{name}.html", index, extract=extract, uids=uids)
        names = self._names
        rows = [
            [
                names.hotkeys[row.hotkey], names.datasets[row.entry], names.verdicts[row.verdict], row.runs,
                _rounded(row.loss), _rounded(row.error), round(row.score, 6), round(row.credit, 6),
                round(row.weight, 6),
            ]
            for row in extract.rows
        ]  # fmt: skip
        runs = [[names.hotkeys[run.hotkey], *self._evaluation(run)] for run in extract.evaluations]
        yield f"data/rounds/{name}.js", script("ROUND", {"rows": rows, "evaluations": runs})

    def _evaluation(self, run: Evaluation) -> list[Any]:
        digest = run.receipt or ""
        return [run.number, run.seed, _rounded(run.loss), digest[:16], self._receipts.get(digest, "")]

    def _hotkey(self, hotkey: str) -> Iterator[Page]:
        name = file_name(hotkey)
        views: list[dict[str, Any]] = []
        data: list[dict[str, Any]] = []
        for index, history in enumerate(self._histories):
            found = history.by_hotkey.get(hotkey)
            if not found:
                continue
            row, line = found[-1][1], _find_line(history.newest, hotkey)
            changes = history.changes(hotkey)
            has_weight = any(own.weight > 0.0 for _, own in found)
            views.append({
                "history": history, "row": row, "index": index, "changes": changes, "has_weight": has_weight,
                "has_loss": any(own.loss is not None for _, own in found), "is_listed": line is not None,
                **_explain(line, history.newest),
            })  # fmt: skip
            evaluations = [[number, *self._evaluation(run)] for number, run in history.evaluations.get(hotkey, ())]
            data.append({"validator": index, **self._series(history, hotkey), "evaluations": evaluations[::-1]})
        path = f"hotkeys/{name}.html"
        seen = {view["row"].verdict for view in views}
        yield self._page(
            "hotkey.html", path, views[0]["index"], hotkey=hotkey, views=views, name=name, agree=len(seen) == 1
        )
        yield f"data/hotkeys/{name}.js", script("HOTKEY", data)

    def _receipt_files(self) -> Iterator[Page]:
        """Yield the newest receipts, as many as fit."""
        size = 0
        for extract, run in _newest_receipts(self._histories):
            assert run.line is not None and run.receipt is not None
            content = self._read_receipt(round_name(extract), run.line)
            size += len(content)
            if size > RECEIPT_BYTES:
                return
            self._receipts[run.receipt] = f"{file_name(run.hotkey)[:12]}-{run.number}-{run.receipt[:8]}.json"
            yield f"receipts/{self._receipts[run.receipt]}", content


def _newest_receipts(histories: Sequence[History]) -> list[tuple[Extract, Evaluation]]:
    """Return the evaluations with a receipt: the newest of each hotkey, then the second newest, and so on."""
    found = []
    for history in histories:
        for runs in history.evaluations.values():
            own = [(history.rounds[number], run) for number, run in reversed(runs) if run.line is not None]
            found += [(turn, -extract.start_block, extract, run) for turn, (extract, run) in enumerate(own)]
    return [(extract, run) for _, _, extract, run in sorted(found, key=lambda item: item[:2])]


def _explain(line: TableLine | None, header: RoundHeader) -> dict[str, str]:
    if line is None:
        return {"loss_why": "", "weight_why": ""}
    return {"loss_why": explain_loss(line, header), "weight_why": explain_weight(line, header)}


def _find_line(header: RoundHeader, hotkey: str) -> TableLine | None:
    return next((line for line in header.table if line.hotkey == hotkey), None)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _numbered(name: str, index: int, kind: str = "html") -> str:
    """Return the name of a validator's page; the first one's has no number."""
    return f"{name}.{kind}" if index == 0 else f"{name}-{index + 1}.{kind}"
