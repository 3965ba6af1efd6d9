"""The subnet that the state belongs to."""

from template.store.database import StateFile


class SubnetTable(StateFile):
    """The table of the subnet: one row."""

    def record_subnet(self, netuid: int, registered_block: int) -> None:
        """Record the subnet at the first start."""
        with self.atomic() as db:
            db.execute("INSERT INTO subnet VALUES (1, ?, ?)", (netuid, registered_block))

    def subnet(self) -> tuple[int, int] | None:
        """Return netuid and registration block of the recorded subnet."""
        rows = self.rows("SELECT netuid, registered_block FROM subnet")
        return (rows[0]["netuid"], rows[0]["registered_block"]) if rows else None
