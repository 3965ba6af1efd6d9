"""Cleanup removes the validator's own old files and rows, and nothing else."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from template.competition import Competition, Incentives
from template.data.eval_set import EvalSetIndex
from template.hub.datasets import fetch_eval_set
from template.localnet.hub.store import upload_files
from template.records import Dataset, EvalConfig, Round, Stand, SubmissionKey
from template.rules.schedule import Policy
from template.rules.stands import find_versions
from template.store.store import Store
from template.telemetry.wandb_tracker import NullTracker
from template.validator.cleanup import clean_up, remove_replaced_files
from template.validator.config import ValidatorConfig
from template.validator.context import Context
from template.validator.downloads import Downloader, dataset_folder
from template.validator.evaluation import SubmissionEvaluator
from template.validator.outputs import Outputs
from template.validator.publishing import RoundPublisher
from tests.fixtures.logs import log_lines
from tests.fixtures.network import POOL, Net, make_content
from tests.fixtures.validator import ONE_ROUND, open_bench
from tests.fixtures.views import make_entry, make_stand

DAY_S = 86400.0
NOW = 1_000 * DAY_S
ALICE = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
BOB = "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UJmT4vY9TR"[:-2] + "ty"
PERIOD = 20
CURRENT = 1_000 * PERIOD


def key_of(hotkey: str, number: int) -> SubmissionKey:
    return SubmissionKey(hotkey, f"owner/data:1:{number:040x}")


def make_round(*keys: SubmissionKey, queue: Sequence[SubmissionKey] = ()) -> Round:
    """Make a round with entries of these keys."""
    entries = tuple(make_entry(key, CURRENT, uid=uid, registration_block=5) for uid, key in enumerate(keys))
    return Round(
        start_block=CURRENT, start_block_hash="0x", opened_block=CURRENT, end_block=CURRENT + 9, entries=entries,
        queue=tuple(queue), id=1,
    )  # fmt: skip


def stand_of(key: SubmissionKey, block: int) -> Stand:
    return make_stand(key, block * PERIOD, registration_block=5)


def row_keys(first: int, count: int = 120) -> tuple[bytes, ...]:
    return tuple(number.to_bytes(32, "big") for number in range(first, first + count))


@dataclasses.dataclass
class House:
    """Folders, a state and an idle evaluator to clean up."""

    config: ValidatorConfig
    store: Store
    context: Context
    eval_config: EvalConfig
    evaluator: SubmissionEvaluator

    def clean_up(self, current: Round | None = None) -> None:
        """Clean up as after a round, and as before the next one."""
        clean_up(self.context, self.evaluator, current or make_round())
        remove_replaced_files(self.context, self.evaluator, current or make_round())

    def check(self, key: SubmissionKey, rows: tuple[bytes, ...], *, now: float) -> None:
        dataset = Dataset(digest=hashlib.sha256(b"".join(rows)).hexdigest(), row_keys=rows)
        self.store.record_dataset(self.config.competition, key, sha256="0" * 64, dataset=dataset, now=now)
        self.evaluator.datasets[key] = dataset


@pytest.fixture
def house(tmp_path: Path, store: Store, eval_config: EvalConfig) -> House:
    config = ValidatorConfig(
        competition=Competition.from_defaults(), policy=Policy(), data_dir=tmp_path / "data",
        incentives=Incentives(blocks_per_epoch=PERIOD, update_blocks=0),
        eval_data_dir=tmp_path / "eval_data", cache_dir=tmp_path / "cache", receipt_dir=tmp_path / "receipts",
        round_dir=tmp_path / "rounds", keep_days=30.0,
    )  # fmt: skip
    context = Context(
        config=config, chain=None, store=store, executor=None, downloader=Downloader(1),  # type: ignore[arg-type]
        tracker=NullTracker(), outputs=Outputs(config, store, lambda: NOW), now=lambda: NOW,
        publisher=RoundPublisher(config, None),  # type: ignore[arg-type]
    )  # fmt: skip
    evaluator = SubmissionEvaluator(context, eval_config, EvalSetIndex.from_lines({}, {}))
    return House(config, store, context, eval_config, evaluator)


def write(path: Path, *, age_days: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    for place in (path, path.parent):
        os.utime(place, (NOW - age_days * DAY_S,) * 2)
    return path


def fetched(house: House, key: SubmissionKey) -> Path:
    return write(dataset_folder(house.config.data_dir, key) / "data.jsonl")


def test_cleanup_keeps_the_datasets_of_entries_only(house: House) -> None:
    queued, done, left = key_of(ALICE, 1), key_of(ALICE, 2), key_of(BOB, 3)
    files = {key: fetched(house, key) for key in (queued, done, left)}
    sealed = fetched(house, SubmissionKey(BOB, f"owner/data:1:{'a' * 64}"))
    house.clean_up(make_round(queued, done, queue=[queued]))
    assert [files[key].exists() for key in (queued, done, left)] == [True, True, False]
    assert not sealed.exists()
    assert [path.name for path in house.config.data_dir.iterdir()] == [ALICE], "an empty folder goes too"


def test_cleanup_keeps_files_of_other_programs(house: House) -> None:
    ancient = 1000.0
    config = house.config
    assert config.receipt_dir and config.round_dir and config.cache_dir
    theirs = [
        write(config.data_dir / "photos" / "2019" / "me.jpg", age_days=ancient),
        write(config.data_dir / "photos" / f"a--b-{'0' * 40}" / "data.jsonl", age_days=ancient),
        write(config.data_dir / ALICE / "notes" / "x", age_days=ancient),
        write(config.receipt_dir / "package.json", age_days=ancient),
        write(config.receipt_dir / f"{ALICE}.json", age_days=ancient),
        write(config.round_dir / "data.jsonl", age_days=ancient),
        write(config.cache_dir / "models--org--name" / "refs" / "main", age_days=ancient),
    ]
    house.clean_up()
    assert [path for path in theirs if not path.exists()] == []


def test_cleanup_does_not_follow_links(house: House, tmp_path: Path) -> None:
    spared = write(tmp_path / "elsewhere" / f"owner--data-{'1' * 40}" / "data.jsonl")
    house.config.data_dir.mkdir()
    (house.config.data_dir / ALICE).symlink_to(tmp_path / "elsewhere")
    (house.config.data_dir / BOB).mkdir()
    (house.config.data_dir / BOB / f"owner--data-{'2' * 40}").symlink_to(spared.parent)
    house.clean_up()
    assert spared.exists()


def test_cleanup_removes_old_receipts_except_current_ones(house: House) -> None:
    stands, gone = key_of(ALICE, 1), key_of(BOB, 2)
    receipts, rounds = house.config.receipt_dir, house.config.round_dir
    assert receipts and rounds
    spared = [
        write(receipts / f"{ALICE}-{stands.commitment[-40:][:12]}-7.json", age_days=31),
        write(receipts / f"{BOB}-{'1' * 12}-7.json", age_days=29),
        write(rounds / "round-96-10-5GrwvaEF.jsonl", age_days=29),
    ]
    removed = [
        write(receipts / f"{BOB}-{gone.commitment[-40:][:12]}-7.json", age_days=31),
        write(receipts / f".{BOB}-{'2' * 12}-7.json.4711", age_days=31),
        write(receipts / f".{ALICE}-{stands.commitment[-40:][:12]}-7.json.4711", age_days=31),
        write(rounds / "round-96-9-5GrwvaEF.jsonl", age_days=31),
        write(rounds / "round-96-9-offline.jsonl", age_days=31),
        write(rounds / ".round-96-9-5GrwvaEF.jsonl.x_y1z", age_days=31),
    ]
    house.clean_up(make_round(stands))
    assert [path.name for path in spared if not path.exists()] == []
    assert [path.name for path in removed if path.exists()] == []


def test_cleanup_keeps_the_versions_of_registered_hotkeys(house: House) -> None:
    keys = [key_of(ALICE, number) for number in range(1, 9)]
    for number, key in enumerate(keys):
        house.check(key, row_keys(10 * number), now=NOW - 90 * DAY_S)
        house.store.record_stands([stand_of(key, 2 * number), stand_of(key_of(ALICE, 100 + number), 2 * number + 1)])
    datasets = house.evaluator.datasets

    def versions() -> object:
        return find_versions(house.store.stands()[ALICE], datasets, period=PERIOD, update_blocks=0)

    before = versions()
    house.clean_up(make_round(keys[-1]))
    assert versions() == before and len(house.store.stands()[ALICE]) == 9, "one for each, and the newest"
    assert set(datasets) == house.store.dataset_keys(house.config.competition) == set(keys)


def test_rows_and_stands_of_one_hotkey_are_bounded(house: House) -> None:
    for number in range(300):
        house.check(key_of(ALICE, number), row_keys(number, 3), now=NOW - 90 * DAY_S)
    house.store.record_stands([stand_of(key_of(ALICE, number), number) for number in range(300)])
    house.clean_up(make_round(key_of(ALICE, 299)))
    remaining = [stand.key for stand in house.store.stands()[ALICE]]
    assert len(remaining) <= 100 and {key_of(ALICE, 0), key_of(ALICE, 299)} <= set(remaining)
    assert house.store.dataset_keys(house.config.competition) == set(remaining) == set(house.evaluator.datasets)


def test_cleanup_removes_rows_of_left_hotkeys_after_a_day(house: House) -> None:
    fresh, old = key_of(ALICE, 1), key_of(BOB, 2)
    house.check(fresh, row_keys(0), now=NOW - 0.9 * DAY_S)
    house.check(old, row_keys(0), now=NOW - 1.1 * DAY_S)
    house.store.record_stands([stand_of(fresh, 1), stand_of(old, 2)])
    house.clean_up(make_round())
    assert set(house.evaluator.datasets) == house.store.dataset_keys(house.config.competition) == {fresh}


def test_cleanup_keeps_left_hotkeys_by_block_not_by_download(house: House) -> None:
    left, long_left = key_of(ALICE, 1), key_of(BOB, 2)
    for key, block in ((left, CURRENT - 7200), (long_left, CURRENT - 7200 - PERIOD)):
        house.check(key, row_keys(0), now=NOW - 90 * DAY_S)
        house.store.record_stands([stand_of(key, block // PERIOD)])
    house.clean_up(make_round())
    assert set(house.evaluator.datasets) == house.store.dataset_keys(house.config.competition) == {left}


def test_state_file_keeps_its_size_between_rounds(house: House) -> None:
    sizes = []
    for number in range(1, 31):
        keys = [key_of(ALICE, number * 100 + index) for index in range(20)]
        for key in keys:
            house.check(key, row_keys(number, 250), now=NOW - 2 * DAY_S)
        house.clean_up(make_round())
        with Store(house.store.path, is_read_only=True) as reader:
            sizes.append(int(reader.rows("PRAGMA page_count")[0][0]))
    assert max(sizes[10:]) == max(sizes[:10]), "free pages are reused"
    log = house.store.path.with_name(house.store.path.name + "-wal")
    assert log.stat().st_size < 8_000_000, "the write-ahead log is reset"


def test_cleanup_removes_earlier_evaluation_sets(net: Net, tmp_path: Path) -> None:
    cache = net.parts.folder / "cache"
    other = upload_files(net.hub.store.root, "sample/pool", {"pool.jsonl": make_content(POOL[:50])})
    earlier = dataclasses.replace(net.competition, eval_commit=other)
    for number, competition in enumerate((earlier, net.competition)):
        fetch_eval_set(competition, tmp_path / f"eval-{number}", cache, None)
    folders = {folder.name: folder for folder in (cache / "hub-files").glob("*/*/*")}
    assert set(folders) == {other, net.competition.eval_commit}
    for folder in folders.values():
        os.utime(folder, (0, 0))
    net.submit("alice", POOL[:40])
    with open_bench(net, cache_dir=cache, policy=ONE_ROUND, keep_days=1.0) as bench:
        bench.validator.run()
    assert [folder.exists() for folder in folders.values()] == [name != other for name in folders]


def test_cleanup_logs_what_it_cannot_remove(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, other = fetched(house, key_of(ALICE, 1)), fetched(house, key_of(BOB, 2))
    unlink = os.unlink

    def refuse(path: str, *, dir_fd: int | None = None) -> None:
        where = str(Path(f"/proc/self/fd/{dir_fd}").readlink()) if dir_fd is not None else path
        if str(stuck.parent) in str(where):
            raise PermissionError(1, "Operation not permitted", path)
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse)
    with log_lines() as lines:
        house.clean_up()
    assert stuck.exists() and not other.exists()
    assert any(f"cannot remove {stuck.parent}: Operation not permitted" in line for line in lines)
