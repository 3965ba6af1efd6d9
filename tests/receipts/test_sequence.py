"""Lies that only the rounds before show."""

from typing import Any

import pytest

from template.receipts.findings import Kind
from template.receipts.verify import check_consistency
from template.rules.evaluations import derive_seed
from tests.fixtures.audit import Edit, Season
from tests.receipts.test_lies import accused, row, row_of, texts


def waiting(season: Season, name: str, message: str = "waits for its download") -> Edit:
    unknown = dict.fromkeys(("digest", "mean", "spread", "loss"))
    return accused(season, name, **unknown, runs=0, score=0.0, credit=0.0, message=message)


def test_credit_withheld_while_a_download_waits_is_found(season: Season) -> None:
    report = season.check(season.edited({80: waiting(season, "alice")}))
    alice = season.net.hotkey("alice")
    text = f"{alice}: no credit is paid, and a dataset of it was readable at block 80"
    assert texts(report.findings, Kind.INCONSISTENT) == [text]
    assert f"{alice}: waits for its download, and the Hub has its file now" in report.notes


def test_rival_that_is_to_count_much_later_is_found(season: Season) -> None:
    bob = season.net.hotkey("bob")
    assert texts(season.find({100: waiting(season, "bob", "counts from block 120")}), Kind.RANK) == []
    late = "counts from block 200; unpaid records (rows 0123456789ab): the file is missing on the Hub"
    (text,) = texts(season.find({140: waiting(season, "bob", late)}), Kind.RANK)
    assert text == f"{bob}: counts from block 200 in the table, by the entries of these files from 160 at most"


@pytest.mark.parametrize("is_missing", [True, False])
def test_file_that_comes_in_its_round_counts_two_later(season: Season, is_missing: bool) -> None:
    bob = season.net.hotkey("bob")
    edit = waiting(season, "bob", "counts from block 180")

    def edit_round(content: dict[str, Any]) -> None:
        edit(content)
        content["missing"] = [bob] if is_missing else []

    found = texts(season.find({140: edit_round}), Kind.RANK)
    assert [text for text in found if text.startswith(f"{bob}: counts from")] == (
        []
        if is_missing
        else [f"{bob}: counts from block 180 in the table, by the entries of these files from 160 at most"]
    )


def test_new_season_is_a_note(season: Season) -> None:
    """A validator could begin one each round, and submit old shares for ever."""
    report = season.check(season.edited({160: lambda content: content.update(model=f"{content['model']} v2")}))
    assert any(note.startswith("a new season: losses are of ") for note in report.notes)


@pytest.mark.parametrize(
    "changes", [{"included_block": 4_000_000_000}, {"block": 4_000_000_000}, {"included_block": 1}], ids=str
)
def test_weights_in_an_impossible_block_are_found(season: Season, changes: dict[str, int]) -> None:
    """A read of that block fails each time, so the audit had no finding."""
    report = season.check(season.edited({60: lambda content: content["weights"][0].update(changes)}))
    assert report.unanswered == []
    assert any("no call of then can be in block" in text for text in texts(report.findings, Kind.WEIGHTS))


def test_duplicate_of_a_future_dataset_is_found(season: Season) -> None:
    original = f"{season.net.hotkey('alice')} (rows {'a' * 12}, block 4000000)"
    edit = accused(season, "bob", reason="duplicate", message=f"shares 30 rows with the earlier dataset of {original}")
    report = season.check(season.edited({60: edit}))
    assert report.unanswered == []
    assert texts(report.findings, Kind.REFUSAL)[0].endswith("block 4000000, which is not in the past")


def test_rival_that_stays_in_the_queue_is_found(season: Season) -> None:
    """Its evaluations may be missing while it is downloaded."""
    bob = season.net.hotkey("bob")

    def starve(content: dict[str, Any]) -> None:
        content["queue"] = [bob]
        content["evaluations"] = [line for line in content["evaluations"] if line["hotkey"] != bob]
        content["ledger"] = [line for line in content["ledger"] if (line["hotkey"], line["rank_block"]) != (bob, 100)]
        row(content, "table", bob).update(runs=0, mean=None, spread=None, loss=None, score=0.0)

    faults = texts(season.find(dict.fromkeys((100, 120, 140, 160), starve)), Kind.PLAN)
    assert faults == [f"{bob}: in the queue, and its dataset was read in the round before"] * 3


def move_seed(season: Season, number: int, block: int) -> Edit:
    """Take the seed of an evaluation of alice from another block."""

    def edit(content: dict[str, Any]) -> None:
        line = next(line for line in content["evaluations"] if line["number"] == number)
        lucky_num = derive_seed(season.chain.block_hash(block), line["digest"], number)
        line.update(seed_block=block, lucky_num=lucky_num)

    return edit


def test_seed_of_another_block_beside_a_true_one_is_found(season: Season) -> None:
    """Two evaluations of a dataset in one round: one seed is chosen among many blocks."""
    lie = season.find({20: move_seed(season, 1, 20), 40: move_seed(season, 2, 40)})
    expected = f"{season.net.hotkey('alice')}: evaluation 2 has a seed that counts from block 40, others from 20"
    assert texts(lie, Kind.SEED) == [expected]
    lie = season.find({60: move_seed(season, 3, 60)})
    assert texts(lie, Kind.RANK) == [] and len(texts(lie, Kind.SEED)) == 1


def test_seed_chosen_after_a_file_was_called_missing_is_found(season: Season) -> None:
    missing = accused(season, "bob", reason="missing_file", message="gone")

    def shift(content: dict[str, Any]) -> None:
        line = row(content, "evaluations", season.net.hotkey("bob"))
        line.update(seed_block=120, lucky_num=derive_seed(season.chain.block_hash(120), line["digest"], 2))

    lie = season.find({20: missing, 120: shift})
    assert texts(lie, Kind.RANK) == [] and len(texts(lie, Kind.SEED)) == 1


def test_duplicate_of_a_duplicate_is_found(season: Season) -> None:
    """Only an original can make another dataset a duplicate."""
    carol = season.net.hotkey("carol")
    digest = next(line.digest for line in season.files[160].header.table if line.hotkey == carol)
    message = f"shares 30 rows with the earlier dataset of {carol} (rows {str(digest)[:12]}, block 140)"

    def edit(content: dict[str, Any]) -> None:
        accused(season, "bob", reason="duplicate", message=message)(content)
        accused(season, "carol", reason="duplicate", message="x")(content)

    bob = season.net.hotkey("bob")
    expected = f"{bob}: duplicate of a dataset that is refused itself: {carol} (rows {str(digest)[:12]})"
    assert expected in texts(season.find({160: edit}), Kind.REFUSAL)


def test_replaced_record_called_missing_is_a_note(season: Season) -> None:
    bob = season.net.hotkey("bob")

    def hide(content: dict[str, Any]) -> None:
        (first, *_) = [line for line in content["ledger"] if line["hotkey"] == bob]
        first["is_absent"] = True

    digest = next(line.digest for line in season.files[160].header.ledger if line.hotkey == bob)
    assert digest != row_of(season, 160, bob).digest
    report = season.check(season.edited({160: hide}))
    assert report.notes == [f"{bob}: record {digest[:12]} unpaid for a missing file, and the Hub has the file now"]


def test_paid_record_called_missing_is_inconsistent(season: Season) -> None:
    alice = season.net.hotkey("alice")
    file = season.edited({160: lambda content: row(content, "ledger", alice).update(is_absent=True)})[160]
    credit = row_of(season, 160, alice).credit
    assert f"{alice}: credit {credit!r} in the table, 0.0 by the rules" in check_consistency(file, {})
