"""Every command on a standard output that fails or lacks characters: its own status, no traceback, no lost result."""

import errno
import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import TextIO

import pytest

from scripts import audit, check_dataset, doctor, leaderboard, status, verdict
from tests.fixtures.network import POOL, Ended, Net, call_main, use_hub, write_dataset
from tests.fixtures.publication import MINERS, Publication


@pytest.fixture(scope="module")
def publication(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publication]:
    with Net(tmp_path_factory.mktemp("published") / "network", MINERS) as net, use_hub(net):
        yield Publication(net)


class Failing(io.RawIOBase):
    """A pipe without a reader, or a full disk."""

    def __init__(self, number: int) -> None:
        self._number = number

    def writable(self) -> bool:
        return True

    def write(self, content: object) -> int:
        raise OSError(self._number, "it fails")


def failing(number: int) -> TextIO:
    return io.TextIOWrapper(Failing(number), write_through=True)  # type: ignore[type-var]


STREAMS: dict[str, Callable[[], TextIO | None]] = {
    "closed": lambda: None,
    "left by its reader": lambda: failing(errno.EPIPE),
    "full": lambda: failing(errno.ENOSPC),
}
# The command, its arguments, and a line of its result, for those whose result is logged if nothing else takes it.
COMMANDS: dict[str, tuple[ModuleType, list[str], str]] = {
    "audit": (audit, ["ROUNDS", "--sample", "0", "--work_dir", "WORK"], "2 files: "),
    "check": (check_dataset, ["--dataset_path", "DATASET", "--offline", "--work_dir", "MINE"], "OK: no problem found"),
    "verdict": (verdict, ["--hotkey", "HOTKEY", "--rounds", "ROUNDS", "--work_dir", "WORK"], "signatures: valid"),
    "leaderboard": (leaderboard, ["--rounds", "ROUNDS", "--out", "SITE", "--work_dir", "WORK"], "site written to "),
    "status": (status, ["--state_dir", "STATE"], ""),
    "status --check": (status, ["--state_dir", "STATE", "--check"], ""),
    "doctor": (doctor, ["--netuid", "96", "--offline", "--measure_seconds", "0", "--device", "cpu"], ""),
}


def run(publication: Publication, name: str, folder: Path, stream: Callable[[], TextIO | None] | None = None) -> Ended:
    """Run a command, with a stream of `STREAMS` as its standard output if one is given."""
    command, words, _ = COMMANDS[name]
    net = publication.net
    values = {
        "ROUNDS": publication.folder,
        "STATE": publication.folder.parent,
        "HOTKEY": net.hotkey("alice"),
        "DATASET": write_dataset(folder / "\u6570\u636e", POOL[:24]),
        "SITE": folder / "\u6570\u636e site",
        "WORK": folder / "work",
        "MINE": folder / "mine",
    }
    if command in (audit, check_dataset):
        words = [*words, "--competition", str(net.parts.competition)]
    if command is doctor:
        words = [*words, "--subtensor.network", net.network]

    def main(argv: list[str]) -> int:
        if stream is None:
            return command.main(argv)
        with redirect_stdout(stream()):
            return command.main(argv)

    return call_main(main, *(values.get(word, word) for word in words))


@pytest.mark.parametrize("name", COMMANDS)
def test_failing_stdout_costs_neither_status_nor_result(publication: Publication, name: str, tmp_path: Path) -> None:
    expected, (_, _, line) = run(publication, name, tmp_path), COMMANDS[name]
    for kind, stream in STREAMS.items():
        ended = run(publication, name, tmp_path, stream)
        assert (ended.status, ended.output) == (expected.status, ""), (kind, ended)
        assert line in "\n".join(ended.logs), (kind, ended)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_result_is_printed_with_few_characters(
    publication: Publication, name: str, encoding: str, tmp_path: Path
) -> None:
    stream = io.TextIOWrapper(content := io.BytesIO(), encoding=encoding, write_through=True)
    ended, expected = run(publication, name, tmp_path, lambda: stream), run(publication, name, tmp_path)
    assert ended.status == expected.status, ended
    assert content.getvalue().count(b"\n") == expected.output.count("\n")
