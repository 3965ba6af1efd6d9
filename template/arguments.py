"""Command lines: `~` is expanded in paths, and all faults are reported at once, with the likely right word.

argparse ends at the first fault, names only the word that is wrong, and takes abbreviations, which change their meaning
with the next flag that is added.
"""

import argparse
import difflib
import errno
import os
import pwd
import re
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from template.errors import ConfigError, SubnetError
from template.terminal import configure_output, write_stdout

Check = Callable[[argparse.Namespace], object]
"""Raises SubnetError for a fault. After a wrong command line, missing arguments are None."""

_MAX_PORT = 65535
_FLAG = re.compile(r"--?[A-Za-z][^\s=]*")
_MOST_SUGGESTED = 3
# Names of other versions and tools that resemble none of ours.
_OTHER_NAMES = {"subtensorchainendpoint": "--subtensor.network", "loggingloggingdir": "--logging.file"}


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help formatter that keeps line breaks and adds defaults."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default not in (None, False, argparse.SUPPRESS) and "(default" not in (action.help or "")
        return f"{action.help} (default: %(default)s)" if has_default else action.help


class Parser(argparse.ArgumentParser):
    """Parser that reports every fault. Its help survives a reader that left, such as `head`.

    checks: of the arguments' values and files, made after parsing by `find_faults`, and also where the command line is
    wrong, so that one run shows all that is missing.
    """

    def __init__(self, *, checks: Sequence[Check] = (), **options: Any) -> None:
        super().__init__(allow_abbrev=False, **{"formatter_class": HelpFormatter, **options})
        self.checks = checks
        self._parsed = argparse.Namespace()
        self._faults: list[str] = []
        self._has_unknown = False

    def print_help(self, file: Any = None) -> None:
        configure_output()
        if file is None:
            write_stdout(self.format_help())
        else:
            super().print_help(file)

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse and expand `~` in every path; exit with status 2 and all faults."""
        words = list(sys.argv[1:] if args is None else args)
        self._parsed = argparse.Namespace()
        flags = list(self._option_string_actions)
        self._faults = [f"unknown argument {flag}{suggest_flag(flag, flags)}" for flag in _find_flags(words, flags)]
        self._has_unknown = bool(self._faults)
        _, extra = super().parse_known_args(words, self._parsed)
        self._expand_paths()
        if not self._has_unknown:
            # Otherwise they may be its values.
            self._faults += [f"unexpected word {word!r}" for word in extra]
        if self._faults:
            self.error(self._faults.pop())
        return self._parsed

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            self._faults.append(str(error))
            return None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            if value is not None:
                super()._check_value(action, value)
        except argparse.ArgumentError as error:
            close = difflib.get_close_matches(str(value).lower(), map(str, action.choices or ()), n=1)
            self._faults.append(f"{error}{_did_you_mean(close)}")

    def _expand_paths(self) -> None:
        for name, value in vars(self._parsed).items():
            try:
                if isinstance(value, Path):
                    setattr(self._parsed, name, value.expanduser())
                elif isinstance(value, list):
                    expanded = [item.expanduser() if isinstance(item, Path) else item for item in value]
                    setattr(self._parsed, name, expanded)
            except RuntimeError:
                self._faults.append(f"{value}: this user has no home folder; set HOME, or give a full path")

    def error(self, message: str) -> NoReturn:
        """Exit with status 2, the usage, and a line for every fault found so far."""
        self._expand_paths()
        texts = [*self._faults, message]
        if not self._has_unknown:
            # Otherwise a check may miss the value of a misspelt flag.
            texts += map(str, find_faults(self._parsed, self.checks))
        self.print_usage(sys.stderr)
        self.exit(2, "".join(f"{self.prog}: error: {' '.join(text.split())}\n" for text in dict.fromkeys(texts)))


def check_home() -> None:
    """Check that this user has a home. Raises: ConfigError.

    A container may run as a user id without a passwd entry; libraries then need the name of the user too.
    """
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", f"uid{os.getuid()}")
    try:
        Path.home()
    except RuntimeError as error:
        raise ConfigError("this user has no home: set HOME to a folder that it may write to") from error


def find_faults(args: argparse.Namespace, checks: Iterable[Check]) -> list[SubnetError]:
    """Return the error of every check that fails, equal texts once."""
    faults: dict[str, SubnetError] = {}
    for check in checks:
        try:
            check(args)
        except SubnetError as error:
            faults.setdefault(str(error), error)
    return list(faults.values())


def _find_flags(words: Sequence[str], known: Sequence[str]) -> Iterable[str]:
    """Yield the unknown flags of a command line."""
    for word in words[: words.index("--") if "--" in words else None]:
        flag = _FLAG.match(word)
        if flag is not None and " " not in word and flag[0] not in known:
            yield flag[0]


def suggest_flag(word: str, flags: Iterable[str]) -> str:
    """Return `, did you mean --X?` if a flag is near the unknown word, else nothing.

    Nearest first: other separators, a name that other tools use, an abbreviation, the last part of a dotted flag as
    btcli has it, a similar spelling.
    """
    name = _plain(word)
    named = {_plain(flag): flag for flag in flags if len(flag) > 2}
    abbreviated = [flag for plain, flag in named.items() if plain.startswith(name)]
    dotted = [flag for flag in named.values() if _plain(flag.rpartition(".")[2]) == name]
    if name in named:
        return _did_you_mean([named[name]])
    if _OTHER_NAMES.get(name) in named.values():
        return _did_you_mean([_OTHER_NAMES[name]])
    for group in (dotted, abbreviated):
        if 0 < len(group) <= _MOST_SUGGESTED:
            return _did_you_mean(group)
    return _did_you_mean([named[plain] for plain in difflib.get_close_matches(name, named, n=1, cutoff=0.7)])


def _plain(flag: str) -> str:
    return re.sub(r"[-_.]", "", flag.lower())


def _did_you_mean(words: Sequence[str]) -> str:
    return f", did you mean {' or '.join(words)}?" if words else ""


def check_port(flag: str, port: int, host: str = "127.0.0.1") -> None:
    """Check that this process can listen on a port. Raises: ConfigError with the flag."""
    if not 0 <= port <= _MAX_PORT:
        raise ConfigError(f"{flag} {port}: a port must lie between 1 and {_MAX_PORT}")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            # As the servers do: a port of connections that ended lately is free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        in_use = f"`ss -ltnp sport = :{port}` shows its process; " if error.errno == errno.EADDRINUSE else ""
        raise ConfigError(f"{flag} {port}: {error.strerror or error} on {host}; {in_use}choose another") from error
