"""State files of release 0.3 open with their weights and without losses."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from template.records import EvalConfig, SubmissionKey
from template.store.store import StatusStore, Store

FILES = Path(__file__).parents[1] / "fixtures" / "v0_3"
NAMES = {hotkey: name for name, hotkey in json.loads((FILES / "addresses.json").read_text()).items()}
EXPECTED = json.loads((FILES / "expected.json").read_text())["api"]["states"]
CONTENT = {
    "state": (FILES / "state.db").read_bytes(),
    "open": gzip.decompress((FILES / "state_open.db.gz").read_bytes()),
}


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def name(key: SubmissionKey) -> str:
    return f"{NAMES[key.hotkey]} {key.commitment}"


def in_hex(value: float | None) -> str | None:
    return None if value is None else value.hex()


def read_round(store: Store, number: int) -> dict[str, Any]:
    intents = [
        [intent.id, intent.block, {str(uid): weight.hex() for uid, weight in intent.weights.items()}, intent.is_repeat]
        + ([intent.outcome.is_accepted, intent.outcome.error, intent.outcome.block] if intent.outcome else [None] * 3)
        for intent in store.intents(number)
    ]
    rows = [
        [NAMES[row.key.hotkey], row.uid, row.reason, in_hex(row.loss), row.score.hex(), row.weight.hex()]
        for row in store.leaderboard(number)
    ]
    return {"standings": rows, "intents": intents}


@pytest.fixture(params=list(CONTENT))
def old(request: pytest.FixtureRequest, path: Path) -> dict[str, Any]:
    """Return the content of the 0.3 state at `path`, which has been opened once."""
    path.parent.mkdir()
    path.write_bytes(CONTENT[request.param])
    Store(path).close()
    return EXPECTED[request.param]  # type: ignore[no-any-return]


def test_weights_and_leaderboards_of_0_3_stay(old: dict[str, Any], path: Path) -> None:
    with StatusStore(path) as store:
        accepted, table, config = store.last_accepted(), store.last_round(with_leaderboard=True), store.current_config()
        assert {number: read_round(store, int(number)) for number in old["rounds"]} == old["rounds"]
        assert (accepted and accepted.id) == old["last_accepted"]
        assert [intent.id for intent in store.pending_intents()] == old["unsettled"]
        assert table is not None and table.id == old["last_round_with_table"]
        assert config is not None and [config[0].digest, config[1]] == old["in_force"]
        assert store.last_model() == old["last_model"]


def test_rejections_and_commit_blocks_of_0_3_stay(old: dict[str, Any], path: Path) -> None:
    with StatusStore(path) as store:
        reveals = {f"{NAMES[hotkey]} {block}": commit for (hotkey, block), commit in store.commit_blocks().items()}
        assert reveals == old["openings"]
        for row in store.rows("SELECT id, digest FROM contests"):
            config, expected = EvalConfig(*row), old["contests"][row["digest"]]
            rejected = {key: values[:2] for key, values in expected["verdicts"].items() if values[0] is not None}
            assert {name(key): [v.reason, v.message] for key, v in store.verdicts(config).items()} == rejected


def test_losses_and_open_rounds_of_0_3_end(old: dict[str, Any], path: Path) -> None:
    with Store(path) as store:
        tables = {row["name"] for row in store.rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert not tables & {"receipts", "datasets", "submissions"}
        assert store.rows("SELECT 1 FROM rounds WHERE closed_at IS NULL") == []
        assert store.rows("SELECT 1 FROM verdicts WHERE loss IS NOT NULL") == []
        assert store.stands() == {}


def test_rounds_of_0_3_are_not_continued(old: dict[str, Any], path: Path) -> None:
    """They started between aligned blocks, and recorded no stands."""
    with StatusStore(path) as store:
        assert store.last_round() is not None and store.last_start_block() is None
