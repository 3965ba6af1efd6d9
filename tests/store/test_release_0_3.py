"""State files of release 0.3 open, and read back what 0.3 read from them."""

import dataclasses
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from template.receipts.receipt import Receipt
from template.records import Entry, EvalConfig, SubmissionKey
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


def entry_of_0_3(entry: Entry) -> dict[str, object]:
    names = ("key", "uid", "rank_block", "registration_block", "lucky_num", "seed_block")
    return {"block": entry.reveal_block, **{name: getattr(entry, name) for name in names}}


def read_config(store: Store, config: EvalConfig) -> dict[str, Any]:
    opened, verdicts = store.open_round(config), store.verdicts(config)
    datasets = store.datasets(config, 32)
    receipts = {key: text for key in verdicts if (text := store.receipt(config, key))}
    return {
        "open_round": opened and opened.id,
        "last_start_block": store.last_start_block(config),
        "datasets": {name(key): [len(rows), digest([row.hex() for row in rows])] for key, rows in datasets.items()},
        "verdicts": {name(key): [v.reason, v.message, in_hex(v.loss), v.seconds] for key, v in verdicts.items()},
        "receipts": {name(key): Receipt.from_json(text, "receipt").digest for key, text in receipts.items()},
        "attempts": {name(key): dataclasses.asdict(retry) for key, retry in store.retry_states(config).items()},
        "unpublished": sorted(name(key) for key in store.unpublished_receipts(config)),
    }


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


def read_state(path: Path) -> dict[str, Any]:
    with StatusStore(path) as store:
        config, model = store.current_config() or (None, None)
        last, table = store.last_round(), store.last_round(with_leaderboard=True)
        accepted, heartbeat = store.last_accepted(), store.heartbeat()
        assert config is not None and last is not None and table is not None
        configs = [EvalConfig(*row) for row in store.rows("SELECT id, digest FROM contests ORDER BY id")]
        return {
            "in_force": [config.digest, model],
            "last_model": store.last_model(),
            "last_round": {
                **{field.name: getattr(last, field.name) for field in dataclasses.fields(last)},
                "entries": digest([entry_of_0_3(entry) for entry in last.entries]),
                "queue": [NAMES[key.hotkey] for key in last.queue],
            },
            "last_round_with_table": table.id,
            "last_accepted": accepted and accepted.id,
            "unsettled": [intent.id for intent in store.pending_intents()],
            "activity": heartbeat and digest(dataclasses.asdict(heartbeat)),
            "openings": {
                f"{NAMES[hotkey]} {block}": commit for (hotkey, block), commit in store.commit_blocks().items()
            },
            "submissions": {
                name(key): [seen.first_block, seen.block, seen.reveal_block, seen.missing_block]
                for key, seen in store.submissions().items()
            },
            "contests": {config.digest: read_config(store, config) for config in configs},
            "rounds": {str(row["id"]): read_round(store, row["id"]) for row in store.rows("SELECT id FROM rounds")},
        }


@pytest.mark.parametrize("name", ["state", "open"])
def test_a_state_of_0_3_reads_back_as_0_3_read_it(name: str, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(CONTENT[name])
    with Store(path) as store:
        schema = store.rows("PRAGMA user_version")[0][0]
    assert {**read_state(path), "schema": schema} == EXPECTED[name]
