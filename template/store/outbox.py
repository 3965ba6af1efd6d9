"""Files that are to be written to an optional folder, kept until it takes them."""

from template.files import OutputFile
from template.store.database import StateFile


class OutboxTable(StateFile):
    """The table of unwritten files.

    A folder is named by its flag, such as --receipt_dir.
    """

    def record_output(self, flag: str, file: OutputFile, now: float) -> None:
        """Record a file before it is written."""
        with self.atomic() as db:
            db.execute(*insert_output(flag, file, now))

    def unwritten_names(self) -> list[tuple[str, str]]:
        """Return flag and name of each unwritten file, oldest first."""
        return [(row["flag"], row["name"]) for row in self.rows("SELECT flag, name FROM outbox ORDER BY created_at")]

    def unwritten_file(self, flag: str, name: str) -> OutputFile:
        """Return one unwritten file."""
        (row,) = self.rows("SELECT content, mode FROM outbox WHERE flag = ? AND name = ?", flag, name)
        return OutputFile(name=name, content=row["content"], mode=row["mode"])

    def delete_output(self, flag: str, name: str) -> None:
        """Delete a file that was written."""
        with self.atomic() as db:
            db.execute("DELETE FROM outbox WHERE flag = ? AND name = ?", (flag, name))

    def prune_outputs(self, *, before: float) -> None:
        """Delete files that were recorded earlier, in POSIX seconds."""
        with self.atomic() as db:
            db.execute("DELETE FROM outbox WHERE created_at < ?", (before,))


def insert_output(flag: str, file: OutputFile, now: float) -> tuple[str, tuple[object, ...]]:
    """Return the statement that records a file, and its values."""
    values = (flag, file.name, file.content, file.mode, now)
    return "INSERT OR REPLACE INTO outbox VALUES (?, ?, ?, ?, ?)", values
