"""Lies of a validator, each in honest files that it signed again."""

import dataclasses
from typing import Any

import pytest

from template.errors import Reason
from template.receipts.findings import Finding, Kind, worst_status
from template.receipts.round_file import RoundFile
from template.rules.evaluations import derive_seed
from tests.fixtures.audit import MINERS, PERIOD, RULES, Edit, Season


def texts(findings: list[Finding], kind: Kind) -> list[str]:
    """Return the texts of the findings of a kind."""
    return [finding.text for finding in findings if finding.kind is kind]


def row(content: dict[str, Any], part: str, hotkey: str) -> dict[str, Any]:
    """Return a hotkey's last line in a part of a header."""
    last: dict[str, Any] = next(line for line in reversed(content[part]) if line["hotkey"] == hotkey)
    return last


def drop(part: str, hotkey: str) -> Edit:
    return lambda content: content[part].remove(row(content, part, hotkey))


def test_honest_files_are_clean(season: Season) -> None:
    assert len(season.files) == 8
    report = season.check(season.files)
    assert (report.findings, report.unanswered, report.notes) == ([], [], [])


def test_honest_files_are_clean_without_a_chain(season: Season) -> None:
    assert season.check(season.files, has_chain=False).findings == []


def test_later_files_alone_only_miss_the_earlier_ones(season: Season) -> None:
    later = {block: file for block, file in season.files.items() if block > 60}
    kinds = {finding.kind for finding in season.check(later).findings}
    assert kinds == {Kind.RECEIPT} and worst_status(kinds) == 14


def test_each_kind_has_a_status_of_its_own() -> None:
    assert len({int(kind) for kind in Kind}) == len(Kind)
    assert [worst_status({kind}) for kind in Kind] == [int(kind) for kind in Kind]
    assert worst_status({Kind.MEAN, Kind.WEIGHTS}) == 11 and worst_status(set()) == 0


def test_other_weights_on_chain_are_found(season: Season) -> None:
    """The file names weights for a friend, and the chain has the table's weights."""
    uid = str(season.net.uid("bob"))
    lie = season.find({60: lambda content: content["weights"][0].update(weights={uid: 1.0}, sent={uid: 65535})})
    assert any("on chain they are {2: 65535}, in the file {3: 65535}" in text for text in texts(lie, Kind.WEIGHTS))


def test_weights_in_no_file_are_found(season: Season) -> None:
    block = season.files[60].header.weights[0].included_block
    lie = season.find({60: lambda content: content["weights"].clear()})
    assert f"weights of block {block}, equal to the ones before, are in no file here" not in texts(lie, Kind.WEIGHTS)
    first = season.files[40].header.weights[0].included_block
    lie = season.find({40: lambda content: content["weights"].clear()})
    assert texts(lie, Kind.WEIGHTS) == [f"weights of block {first}: on chain, and in no file here"]


def test_accepted_weights_that_never_landed_are_found(season: Season) -> None:
    def invent(content: dict[str, Any]) -> None:
        content["weights"].append({**content["weights"][0], "block": 76, "included_block": 77})

    lie = season.find({60: invent})
    assert "weights of block 76: the chain has none of this signer in block 77" in texts(lie, Kind.WEIGHTS)


def repeated(season: Season, name: str) -> Edit:
    """Give all weight to one hotkey, as if it had been submitted before."""
    hotkey, uid = season.net.hotkey(name), str(season.net.uid(name))

    def edit(content: dict[str, Any]) -> None:
        line = {**content["weights"][0], "is_repeat": True, "shares": {hotkey: 1.0}}
        content["weights"].append({**line, "weights": {uid: 1.0}, "sent": {uid: 65535}})

    return edit


def test_weights_again_for_a_friend_are_found(season: Season) -> None:
    assert texts(season.find({60: repeated(season, "alice")}), Kind.REPEAT) == []
    (text,) = texts(season.find({60: repeated(season, "bob")}), Kind.REPEAT)
    assert text.endswith(f"not the last ones of this signer: {season.net.hotkey('bob')}")


def test_weights_again_without_an_earlier_file_are_found(season: Season) -> None:
    files = {60: season.edited({60: repeated(season, "bob")})[60]}
    files[60] = dataclasses.replace(files[60], header=without_own_weights(files[60]))
    (text,) = texts(season.check(files).findings, Kind.REPEAT)
    assert text.endswith("no file here has earlier weights of this signer")


def without_own_weights(file: RoundFile) -> Any:
    weights = tuple(line for line in file.header.weights if line.is_repeat)
    return dataclasses.replace(file.header, weights=weights)


def unpaid(shares: dict[str, float]) -> Edit:
    """Edit a round to have no shares in its table, and submit these."""

    def edit(content: dict[str, Any]) -> None:
        for line in content["table"]:
            line["weight"] = 0.0
        content["weights"][0]["shares"] = shares

    return edit


def share_with_bob(season: Season, **changes: object) -> Edit:
    """Give half to bob in the shares, and nothing in the weights."""
    shares = dict.fromkeys((season.net.hotkey("alice"), season.net.hotkey("bob")), 0.5)
    return lambda content: content["weights"][0].update(shares=shares, **changes)


@pytest.mark.parametrize("is_repeat", [False, True])
def test_rival_left_out_of_the_weights_is_found(season: Season, is_repeat: bool) -> None:
    edits = {60: share_with_bob(season), 80: share_with_bob(season, is_repeat=is_repeat)}
    block = season.files[80].header.weights[0].block
    expected = f"weights of block {block}: by uid they are {{2: 1.0}}, by the shares {{2: 0.5, 3: 0.5}}"
    assert expected in texts(season.find(edits), Kind.WEIGHTS)


def test_burn_to_another_than_the_owner_is_found(season: Season) -> None:
    owner, bob = season.net.hotkey("owner"), season.net.hotkey("bob")
    assert texts(season.find({60: unpaid({owner: 1.0})}), Kind.REPEAT) == []
    (text,) = texts(season.find({60: unpaid({bob: 1.0})}), Kind.REPEAT)
    assert f"all weight to {bob}" in text and owner in text


def accused(season: Season, name: str, **changes: object) -> Edit:
    hotkey = season.net.hotkey(name)
    return lambda content: row(content, "table", hotkey).update(changes)


def test_rival_called_a_duplicate_is_found(season: Season) -> None:
    alice, bob = season.net.hotkey("alice"), season.net.hotkey("bob")
    prefix = row_of(season, 60, alice).digest[:12]
    message = f"shares 30 rows with the earlier dataset of {alice} (rows {prefix}, block 20)"
    lie = season.find({60: accused(season, "bob", reason="duplicate", message=message)})
    expected = f"{bob}: duplicate that shares 0 rows with the dataset of {alice}, not 30; 16 are allowed"
    assert texts(lie, Kind.REFUSAL) == [expected]


def test_duplicate_of_later_rows_is_found(season: Season) -> None:
    alice, carol = season.net.hotkey("alice"), season.net.hotkey("carol")
    prefix = row_of(season, 60, carol).digest[:12]
    message = f"shares 58 rows with the earlier dataset of {carol} (rows {prefix}, block 40)"
    lie = season.find({60: accused(season, "alice", reason="duplicate", message=message)})
    assert any(
        text.startswith(f"{alice}: duplicate of rows that were public later") for text in texts(lie, Kind.REFUSAL)
    )


def test_duplicate_without_an_original_is_found(season: Season) -> None:
    lie = season.find({60: accused(season, "bob", reason="duplicate", message="a copy")})
    assert texts(lie, Kind.REFUSAL)[0].endswith("duplicate of no dataset that the message names")


@pytest.mark.parametrize("reason", [Reason.NOT_IN_POOL, Reason.MALFORMED, Reason.TOO_LARGE])
def test_rival_refused_for_its_rows_is_found(season: Season, reason: Reason) -> None:
    lie = season.find({60: accused(season, "bob", reason=reason.value, digest=None)})
    expected = f"{season.net.hotkey('bob')}: {reason} in the table, and its dataset passes the check"
    assert texts(lie, Kind.REFUSAL) == [expected]


@pytest.mark.parametrize("reason", [Reason.BAD_COMMITMENT, Reason.WRONG_COMPETITION, Reason.BEFORE_REGISTRATION])
def test_rival_refused_for_its_commitment_is_found(season: Season, reason: Reason) -> None:
    lie = season.find({60: accused(season, "bob", reason=reason.value, digest=None)})
    assert texts(lie, Kind.REFUSAL) == [f"{season.net.hotkey('bob')}: {reason} in the table, by its commitment valid"]


def test_rival_called_missing_is_a_note(season: Season) -> None:
    """A validator cannot prove later that a file was present."""
    report = season.check(season.edited({140: accused(season, "bob", reason="missing_file", digest=None)}))
    assert f"{season.net.hotkey('bob')}: missing_file in the table, and the Hub has its file now" in report.notes


def test_paid_copy_is_found_when_asked(season: Season) -> None:
    """The validator does not see that its friend's dataset is a copy."""
    assert season.check(season.files, finds_copies=True).findings == []
    alice, carol = season.net.hotkey("alice"), season.net.hotkey("carol")
    edit = accused(season, "carol", reason=None, message="", weight=0.5)
    findings = season.check(season.edited({60: edit}), finds_copies=True).findings
    assert texts(findings, Kind.COPY) == [
        f"{carol}: has a share, and 58 of its 60 rows are in the earlier dataset of {alice}"
    ]


def test_credit_of_a_refused_dataset_is_found(season: Season) -> None:
    carol = season.net.hotkey("carol")
    lie = season.find({60: accused(season, "carol", credit=0.1)})
    assert texts(lie, Kind.INCONSISTENT)[0] == f"{carol}: credit is paid, and its dataset is refused: duplicate"


def row_of(season: Season, block: int, hotkey: str) -> Any:
    return next(line for line in season.files[block].header.table if line.hotkey == hotkey)


def test_loss_on_a_receipt_in_no_file_is_found(season: Season) -> None:
    file = season.files[60]
    cut = {**season.files, 60: dataclasses.replace(file, receipts=file.receipts[1:])}
    (text,) = texts(season.check(cut).findings, Kind.RECEIPT)
    assert text == f"{season.net.hotkey('alice')}: evaluation 3: its receipt is in no file here"


def test_loss_on_a_withheld_file_is_found(season: Season) -> None:
    rest = {block: file for block, file in season.files.items() if block != 20}
    assert f"{season.net.hotkey('alice')}, table: 1 of 2 evaluations are in no file here" in texts(
        season.check(rest).findings, Kind.RECEIPT
    )


def test_seed_of_another_block_is_found(season: Season) -> None:
    """The validator claims another rank block, whose hash gives a seed that it likes."""

    def shift(content: dict[str, Any]) -> None:
        line = row(content, "evaluations", season.net.hotkey("bob"))
        line["seed_block"] -= PERIOD
        line["lucky_num"] = derive_seed(season.chain.block_hash(line["seed_block"]), line["digest"], 1)

    (text,) = texts(season.find({100: shift}), Kind.RANK)
    assert "has seeds from block 80, by the entries of these files from block 100" in text


def test_seed_of_no_block_is_found(season: Season) -> None:
    bob = season.net.hotkey("bob")
    lie = season.find({100: lambda content: row(content, "evaluations", bob).update(lucky_num=7)})
    (text,) = texts(lie, Kind.SEED)
    assert text.startswith(f"{bob}: block 100 gives lucky_num")


@pytest.mark.parametrize("source", ["random", "fixed"])
def test_seeds_of_another_source_are_found(season: Season, source: str) -> None:
    def draw(content: dict[str, Any]) -> None:
        content["lucky_num_from"] = source
        for line in content["evaluations"]:
            line.update(seed_block=None, lucky_num=7)

    lie = season.find({60: draw})
    assert texts(lie, Kind.SEED) == [f"seeds are {source} in the file, by the competition chain"]


def test_seed_of_a_sealed_dataset_from_its_commitment_is_found(season: Season) -> None:
    """Its author could know such a seed before it reveals the dataset."""
    carol = season.net.hotkey("carol")
    sealed = next(line for line in season.files[160].header.entries if line.hotkey == carol)
    honest = next(line for line in season.files[160].header.evaluations if line.hotkey == carol)
    assert sealed.commit_block < 140 < sealed.block < honest.seed_block == 160

    def draw(content: dict[str, Any]) -> None:
        seed = derive_seed(season.chain.block_hash(140), honest.digest, honest.number)
        row(content, "evaluations", carol).update(seed_block=140, lucky_num=seed)

    lie = season.find({160: draw})
    right = f"by the entries of these files from block 160 (committed in {sealed.commit_block})"
    assert f"{carol}: dataset {honest.digest[:12]} has seeds from block 140, {right}" in texts(lie, Kind.RANK)


def test_seed_drawn_again_is_found(season: Season) -> None:
    def plan_again(content: dict[str, Any]) -> None:
        line = {**season.files[40].header.evaluations[0].__dict__, "lucky_num": 8, "loss": None, "receipt": None}
        content["evaluations"].append(line)

    lie = season.find({60: plan_again})
    assert any("evaluation 2 has lucky_num 8, in an earlier file" in text for text in texts(lie, Kind.SEED))


@pytest.mark.parametrize("name", MINERS)
def test_miner_left_out_of_entries_is_found(season: Season, name: str) -> None:
    hotkey = season.net.hotkey(name)
    lie = season.find({80: drop("entries", hotkey)})
    assert any(text.startswith(f"{hotkey}: committed {name}/data:") for text in texts(lie, Kind.ENTRY))


def test_entry_left_out_while_its_update_is_sealed_is_found(season: Season) -> None:
    carol = season.net.hotkey("carol")
    entries = {block: {line.hotkey: line.entry for line in file.header.entries} for block, file in season.files.items()}
    assert entries[120][carol] == season.copy.commitment != entries[160][carol]
    (text,) = texts(season.find({120: drop("entries", carol)}), Kind.ENTRY)
    assert text.startswith(f"{carol}: committed {season.copy.commitment} at block 120, and is left out")


def test_reveal_block_in_place_of_the_commit_block_is_found(season: Season) -> None:
    """So a sealed rival would rank by its reveal."""
    carol = season.net.hotkey("carol")
    line = next(line for line in season.files[160].header.entries if line.hotkey == carol)
    assert line.commit_block < line.block
    lie = season.find({160: lambda content: row(content, "entries", carol).update(commit_block=line.block)})
    expected = f"{carol}: commit block {line.block} in entries, on chain {line.commit_block}"
    assert expected in texts(lie, Kind.RANK)


def test_invented_entry_is_found(season: Season) -> None:
    def invent(content: dict[str, Any]) -> None:
        content["entries"].append({**content["entries"][0], "hotkey": season.net.hotkey("owner"), "uid": 0})

    (text,) = texts(season.find({80: invent}), Kind.ENTRY)
    assert text.endswith("in entries, and has no commitment at block 80")


@pytest.mark.parametrize("field", ["entry", "uid", "registration_block", "block"])
def test_changed_entry_is_found(season: Season, field: str) -> None:
    hotkey = season.net.hotkey("bob")
    value = f"{season.net.hotkey('bob')[:5]}/other:sample:{'a' * 40}" if field == "entry" else 1
    lie = season.find({80: lambda content: row(content, "entries", hotkey).update({field: value})})
    assert any(text.startswith(f"{hotkey}: ") and " on chain " in text for text in texts(lie, Kind.ENTRY))


def test_changed_commit_block_is_found(season: Season) -> None:
    hotkey = season.net.hotkey("bob")
    lie = season.find({20: lambda content: row(content, "entries", hotkey).update(commit_block=1)})
    assert any(text.startswith(f"{hotkey}: commit block 1 in entries") for text in texts(lie, Kind.RANK))


def test_rank_in_the_ledger_that_is_too_early_is_found(season: Season) -> None:
    hotkey = season.net.hotkey("bob")
    lie = season.find({120: lambda content: row(content, "ledger", hotkey).update(rank_block=80)})
    assert any("ranks by block 80" in text and "from block 100" in text for text in texts(lie, Kind.RANK))


def test_record_left_out_of_the_ledger_is_found(season: Season) -> None:
    hotkey = season.net.hotkey("alice")
    lie = season.find({80: drop("ledger", hotkey)})
    assert any(
        text.startswith(f"{hotkey}: dataset ") and "left out of the ledger" in text for text in texts(lie, Kind.RANK)
    )


@pytest.mark.parametrize(
    ("rank_block", "words"),
    [(40, "before the commitment in"), (120, "no dataset before it counts from so late")],
    ids=["early", "late"],
)
def test_rank_from_before_the_files_is_checked_on_chain(season: Season, rank_block: int, words: str) -> None:
    """The later files alone do not show when a dataset was committed."""
    hotkey = season.net.hotkey("bob")
    later = {block: file for block, file in season.files.items() if block > 100}
    assert texts(season.check(later).findings, Kind.RANK) == []
    lie = season.edited({120: lambda content: row(content, "ledger", hotkey).update(rank_block=rank_block)})
    assert any(words in text for text in texts(season.check({**later, 120: lie[120]}).findings, Kind.RANK))


def test_evaluation_outside_the_plan_is_found(season: Season) -> None:
    """A friend gets one run more than the rules give it."""

    def add(content: dict[str, Any]) -> None:
        line = next(line for line in season.files[40].header.evaluations if line.hotkey == season.net.hotkey("bob"))
        content["evaluations"].append({**line.__dict__, "number": 3, "loss": None, "receipt": None, "seed_block": 40})

    (text,) = texts(season.find({60: add}), Kind.PLAN)
    assert text.startswith(f"{season.net.hotkey('bob')}: evaluation 3 of ") and text.endswith("is not in the plan")


def test_evaluation_left_out_of_the_plan_is_found(season: Season) -> None:
    """A rival waits for its first run in the table too."""
    hotkey = season.net.hotkey("bob")

    def starve(content: dict[str, Any]) -> None:
        content["evaluations"].clear()
        row(content, "table", hotkey).update(runs=0, mean=None, spread=None, loss=None)

    def starve_unqueued(content: dict[str, Any]) -> None:
        starve(content)
        content["queue"].clear()

    (text,) = texts(season.find({100: starve_unqueued}), Kind.PLAN)
    assert text.startswith(f"{hotkey}: evaluation 1 of ") and text.endswith("is left out")
    assert not any("left out" in text for text in texts(season.find({100: starve}), Kind.PLAN)), "it may have come late"

    refused = accused(season, "bob", reason="duplicate")
    lie = season.find({80: refused, 100: starve_unqueued})
    assert not any("left out" in text for text in texts(lie, Kind.PLAN)), "it may have become free after the plan"


@pytest.mark.parametrize("part", ["table", "ledger"])
@pytest.mark.parametrize("changes", [{"mean": 6.0}, {"spread": 0.5}, {"runs": 1}], ids=str)
def test_other_mean_than_of_the_evaluations_is_found(season: Season, part: str, changes: dict[str, Any]) -> None:
    hotkey = season.net.hotkey("alice")
    lie = season.find({80: lambda content: row(content, part, hotkey).update(changes)})
    assert any(text.startswith(f"{hotkey}, {part}: mean") for text in texts(lie, Kind.MEAN))


def test_second_loss_of_an_evaluation_is_found(season: Season) -> None:
    def again(content: dict[str, Any]) -> None:
        content["evaluations"].append({**season.files[20].header.evaluations[0].__dict__, "loss": 5.9})

    lie = season.find({40: again})
    assert any("evaluation 1 has loss 5.9, in an earlier file" in text for text in texts(lie, Kind.MEAN))


@pytest.mark.parametrize(("name", "value"), [("epsilon", 0.5), ("reward", "winner"), ("update_blocks", 0), ("sd", 9.0)])
def test_other_rules_than_the_competitions_are_found(season: Season, name: str, value: object) -> None:
    lie = season.find({60: lambda content: content["incentives"].update({name: value})})
    (text,) = texts(lie, Kind.RULES)
    assert text == f"{name} is {value} in the file, in the competition {getattr(RULES, name)}"


def test_fewer_slots_are_the_validators_choice(season: Season) -> None:
    lie = season.find({80: lambda content: content["incentives"].update(slots=1)})
    assert texts(lie, Kind.RULES) == []
