"""Migrations of the state file, in order. A released one is never edited.

Tables and columns keep their first names: `contests` are evaluation configs, `entry` is a commitment's text, `openings`
are commit blocks of revealed commitments, `open_block` is a reveal block, `attempts` are retry states, `standings` is
the leaderboard, `activity` is the heartbeat.
"""

from collections.abc import Callable

Execute = Callable[[str], object]
"""Runs one SQL statement in the migration's transaction."""


def m001_initial(execute: Execute) -> None:
    """Create the tables of the first release."""
    for statement in (
        """CREATE TABLE contests (
            id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, competition TEXT NOT NULL,
            hyperparameters_digest TEXT NOT NULL, model TEXT NOT NULL, created_at REAL NOT NULL)""",
        """CREATE TABLE submissions (
            hotkey TEXT NOT NULL, entry TEXT NOT NULL, first_block INTEGER NOT NULL, block INTEGER NOT NULL,
            PRIMARY KEY (hotkey, entry)) WITHOUT ROWID""",
        """CREATE TABLE datasets (
            contest_id INTEGER NOT NULL REFERENCES contests, hotkey TEXT NOT NULL, entry TEXT NOT NULL,
            sha256 TEXT NOT NULL, row_keys BLOB NOT NULL, checked_at REAL NOT NULL,
            PRIMARY KEY (contest_id, hotkey, entry)) WITHOUT ROWID""",
        """CREATE TABLE verdicts (
            contest_id INTEGER NOT NULL REFERENCES contests, hotkey TEXT NOT NULL, entry TEXT NOT NULL,
            reason TEXT, message TEXT NOT NULL, loss REAL, seconds REAL, decided_at REAL NOT NULL,
            CHECK ((reason IS NULL) <> (loss IS NULL)),
            PRIMARY KEY (contest_id, hotkey, entry)) WITHOUT ROWID""",
        """CREATE TABLE receipts (
            contest_id INTEGER NOT NULL, hotkey TEXT NOT NULL, entry TEXT NOT NULL, receipt TEXT NOT NULL,
            PRIMARY KEY (contest_id, hotkey, entry),
            FOREIGN KEY (contest_id, hotkey, entry) REFERENCES verdicts) WITHOUT ROWID""",
        """CREATE TABLE attempts (
            contest_id INTEGER NOT NULL REFERENCES contests, hotkey TEXT NOT NULL, entry TEXT NOT NULL,
            remote_failures INTEGER NOT NULL, host_failures INTEGER NOT NULL, next_at REAL NOT NULL,
            last_error TEXT NOT NULL, PRIMARY KEY (contest_id, hotkey, entry)) WITHOUT ROWID""",
        """CREATE TABLE rounds (
            id INTEGER PRIMARY KEY, contest_id INTEGER NOT NULL REFERENCES contests, start_block INTEGER NOT NULL,
            start_block_hash TEXT NOT NULL, end_block INTEGER NOT NULL, lucky_num INTEGER NOT NULL,
            started_at REAL NOT NULL, closed_at REAL)""",
        """CREATE TABLE round_entries (
            round_id INTEGER NOT NULL REFERENCES rounds, position INTEGER NOT NULL, hotkey TEXT NOT NULL,
            entry TEXT NOT NULL, PRIMARY KEY (round_id, position)) WITHOUT ROWID""",
        """CREATE TABLE weight_intents (
            id INTEGER PRIMARY KEY, round_id INTEGER NOT NULL REFERENCES rounds, block INTEGER NOT NULL,
            weights TEXT NOT NULL, created_at REAL NOT NULL, outcome TEXT, finished_at REAL)""",
        """CREATE TABLE standings (
            round_id INTEGER NOT NULL REFERENCES rounds, hotkey TEXT NOT NULL, entry TEXT NOT NULL,
            uid INTEGER NOT NULL, reason TEXT, message TEXT NOT NULL, loss REAL, score REAL NOT NULL,
            weight REAL NOT NULL, PRIMARY KEY (round_id, hotkey)) WITHOUT ROWID""",
    ):
        execute(statement)


def m002_snapshots(execute: Execute) -> None:
    """Add round entries, commit blocks, shares by hotkey and the heartbeat.

    An open round had only its queue, so it is closed and the next tick opens another.
    """
    for statement in (
        "UPDATE rounds SET closed_at = started_at WHERE closed_at IS NULL",
        "DROP TABLE round_entries",
        "ALTER TABLE rounds ADD COLUMN opened_block INTEGER NOT NULL DEFAULT 0",
        "UPDATE rounds SET opened_block = start_block",
        """CREATE TABLE round_members (
            round_id INTEGER NOT NULL REFERENCES rounds, hotkey TEXT NOT NULL, entry TEXT NOT NULL,
            uid INTEGER NOT NULL, block INTEGER NOT NULL, rank_block INTEGER NOT NULL,
            registration_block INTEGER NOT NULL, lucky_num INTEGER, seed_block INTEGER, turn INTEGER,
            PRIMARY KEY (round_id, hotkey)) WITHOUT ROWID""",
        "ALTER TABLE rounds ADD COLUMN lucky_num_from TEXT NOT NULL DEFAULT 'random'",
        "ALTER TABLE rounds ADD COLUMN seed_period INTEGER",
        """CREATE TABLE openings (
            hotkey TEXT NOT NULL, reveal_block INTEGER NOT NULL, commit_block INTEGER NOT NULL,
            PRIMARY KEY (hotkey, reveal_block)) WITHOUT ROWID""",
        "ALTER TABLE submissions ADD COLUMN open_block INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE submissions ADD COLUMN missing_block INTEGER NOT NULL DEFAULT 0",
        "UPDATE submissions SET open_block = first_block",
        "ALTER TABLE weight_intents ADD COLUMN shares TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE weight_intents ADD COLUMN registrations TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE weight_intents ADD COLUMN is_repeat INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE receipts ADD COLUMN round_id INTEGER",
        # Rounds of the first release have no file.
        "UPDATE receipts SET round_id = 0",
        """CREATE TABLE activity (
            id INTEGER PRIMARY KEY CHECK (id = 1), content TEXT NOT NULL, updated_at REAL NOT NULL)""",
    ):
        execute(statement)


def m003_game(execute: Execute) -> None:
    """Key evaluations by dataset; add stands, absences and the ledger.

    Datasets are stored by competition. An open round had other work, so it is closed. Rows of old datasets go: they
    are downloaded again when needed. Old losses go with their receipts: training sorts the rows now, so new losses do
    not compare with them.
    """
    for statement in (
        "UPDATE rounds SET closed_at = started_at WHERE closed_at IS NULL",
        "DROP TABLE receipts",
        "DELETE FROM verdicts WHERE reason IS NULL",
        "DROP TABLE datasets",
        "DROP TABLE submissions",
        """CREATE TABLE contents (
            competition TEXT NOT NULL, hotkey TEXT NOT NULL, entry TEXT NOT NULL, sha256 TEXT NOT NULL,
            digest TEXT NOT NULL, row_keys BLOB NOT NULL, checked_at REAL NOT NULL,
            PRIMARY KEY (competition, hotkey, entry)) WITHOUT ROWID""",
        """CREATE TABLE stands (
            hotkey TEXT NOT NULL, entry TEXT NOT NULL, first_block INTEGER NOT NULL, last_block INTEGER NOT NULL,
            commit_block INTEGER NOT NULL, registration_block INTEGER NOT NULL, missing_block INTEGER NOT NULL,
            PRIMARY KEY (hotkey, first_block)) WITHOUT ROWID""",
        """CREATE TABLE absences (
            hotkey TEXT NOT NULL, entry TEXT NOT NULL, first_block INTEGER NOT NULL, last_block INTEGER NOT NULL,
            rounds INTEGER NOT NULL, PRIMARY KEY (hotkey, entry)) WITHOUT ROWID""",
        """CREATE TABLE evaluations (
            contest_id INTEGER NOT NULL REFERENCES contests, hotkey TEXT NOT NULL, digest TEXT NOT NULL,
            number INTEGER NOT NULL, entry TEXT NOT NULL, lucky_num INTEGER NOT NULL, seed_block INTEGER,
            loss REAL NOT NULL, seconds REAL NOT NULL, receipt TEXT NOT NULL, receipt_digest TEXT NOT NULL,
            finished_at REAL NOT NULL, PRIMARY KEY (contest_id, hotkey, digest, number)) WITHOUT ROWID""",
        """CREATE TABLE round_evaluations (
            round_id INTEGER NOT NULL REFERENCES rounds, position INTEGER NOT NULL, hotkey TEXT NOT NULL,
            entry TEXT NOT NULL, digest TEXT NOT NULL, number INTEGER NOT NULL, lucky_num INTEGER NOT NULL,
            seed_block INTEGER, PRIMARY KEY (round_id, position)) WITHOUT ROWID""",
        """CREATE TABLE ledger (
            contest_id INTEGER NOT NULL REFERENCES contests, hotkey TEXT NOT NULL, digest TEXT NOT NULL,
            rank_block INTEGER NOT NULL, commit_block INTEGER NOT NULL, tie_break BLOB NOT NULL,
            registration_block INTEGER NOT NULL, row_keys BLOB NOT NULL, confirmed_at REAL NOT NULL,
            public_block INTEGER NOT NULL, public_commit_block INTEGER NOT NULL,
            PRIMARY KEY (contest_id, hotkey, digest)) WITHOUT ROWID""",
        "ALTER TABLE rounds ADD COLUMN ledger TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE weight_intents ADD COLUMN sent TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE rounds ADD COLUMN is_planned INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE standings ADD COLUMN digest TEXT",
        "ALTER TABLE standings ADD COLUMN mean REAL",
        "ALTER TABLE standings ADD COLUMN spread REAL",
        "ALTER TABLE standings ADD COLUMN runs INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE standings ADD COLUMN credit REAL NOT NULL DEFAULT 0",
    ):
        execute(statement)


def m004_operation(execute: Execute) -> None:
    """Add files that wait for their folder, and the starts and ends of the validator."""
    for statement in (
        """CREATE TABLE outbox (
            flag TEXT NOT NULL, name TEXT NOT NULL, content BLOB NOT NULL, mode INTEGER NOT NULL,
            created_at REAL NOT NULL, PRIMARY KEY (flag, name)) WITHOUT ROWID""",
        """CREATE TABLE runs (
            id INTEGER PRIMARY KEY, started_at REAL NOT NULL, namespace TEXT NOT NULL, version TEXT NOT NULL,
            error TEXT NOT NULL DEFAULT '', error_at REAL, ended_at REAL, status INTEGER)""",
    ):
        execute(statement)


def m005_subnet(execute: Execute) -> None:
    """Add the subnet, which tells whether the netuid was given to another."""
    execute(
        "CREATE TABLE subnet"
        " (id INTEGER PRIMARY KEY CHECK (id = 1), netuid INTEGER NOT NULL, registered_block INTEGER NOT NULL)"
    )


def m006_reveals(execute: Execute) -> None:
    """Add the reveal block of each stand.

    It is recorded for a day, and for each hotkey's newest sealed commitment; all others count as plain ones.
    """
    execute("ALTER TABLE stands ADD COLUMN reveal_block INTEGER NOT NULL DEFAULT 0")
    execute(
        "UPDATE stands SET reveal_block = coalesce((SELECT max(openings.reveal_block) FROM openings"
        " WHERE openings.hotkey = stands.hotkey AND openings.commit_block = stands.commit_block), commit_block)"
    )


MIGRATIONS: tuple[Callable[[Execute], None], ...] = (
    m001_initial,
    m002_snapshots,
    m003_game,
    m004_operation,
    m005_subnet,
    m006_reveals,
)
"""The schema version is the number of migrations that a file has had."""
