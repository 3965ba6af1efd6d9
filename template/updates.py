"""Follows signed release tags of a git remote, for the operator who asked for it. The only caller of git and pip.

A release is an annotated tag vX.Y.Z with an SSH signature by a key of `contrib/allowed_signers` as it stood when this
process started: what a release brings along decides about the next one, never about itself.

Packages are installed before the code is switched, so a release whose packages cannot be had changes no code. A process
killed in between leaves old code beside new packages, one killed inside pip an environment that may not even start:
`contrib/start.sh`, by which pm2 and systemd start every neuron, then has `scripts/setup.sh` complete it for the code
that is checked out.
"""

import fcntl
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from loguru import logger

from template import __version__
from template.errors import ConfigError, HostError, RemoteError, SubnetError
from template.telemetry.redaction import without_secrets

# Seconds between two looks at the remote, and before an installation that failed is tried again.
CHECK_EVERY_S = 600.0
RETRY_AFTER_S = 6 * 3600.0

# Seconds that one command may take: git on this machine, git over the network, pip with a new torch.
LOCAL_DEADLINE_S = 60.0
REMOTE_DEADLINE_S = 120.0
INSTALL_DEADLINE_S = 1800.0

# Offered releases that one check looks at, from the newest: bad signatures must not cost hours.
MOST_LOOKED_AT = 5

_RELEASE_TAG = re.compile(r"v(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})")
# Ours alone, so that no tag of the operator's is ever moved. They also keep what is checked out reachable.
_REFS = "refs/updates"
# Only SSH signatures count: git picks the verifier by what the tag says, and the operator's keyring may hold anyone.
_VERIFIER = {
    "gpg.format": "ssh",
    "gpg.ssh.program": "ssh-keygen",
    "gpg.minTrustLevel": "fully",
    "gpg.program": "false",
    "gpg.openpgp.program": "false",
    "gpg.x509.program": "false",
}
_QUIET = {"core.askPass": "", "core.hooksPath": "/dev/null", "gc.auto": "0", "maintenance.auto": "false"}
# Would point git at another repository, let it ask somebody for a password, or name another lock file.
_MISLEADING = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_ASKPASS", "SSH_ASKPASS", "DISPLAY"} | {
    "REQUIREMENTS_LOCK"
}
_UNFINISHED = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "BISECT_LOG", "rebase-merge", "rebase-apply")


@dataclass(frozen=True)
class Release:
    """A tag whose signature holds. id: the tag object; commit: what it points at."""

    tag: str
    id: str
    commit: str


class Updater:
    """Moves the checkout at `root`, and the environment of `python`, to newer releases.

    allowed_signers: None for the checkout's own. running: the version of this process, X.Y.Z.
    Raises: ConfigError when this is no place that could be updated.
    """

    def __init__(
        self,
        root: Path,
        *,
        remote: str = "origin",
        allowed_signers: Path | None = None,
        running: str = __version__,
        python: Path = Path(sys.executable),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root = root.resolve()
        self.remote = remote
        self._python, self._clock = python, clock
        self._next_check = -math.inf
        # Tag object to the time before which it is left alone.
        self._retry_after: dict[str, float] = {}
        version = _parse_version(f"v{running}")
        if version is None:
            raise ConfigError(f"--auto_update follows releases, and {running} is none: check out a release tag")
        self._running = version
        self._environment = python.parent.parent
        if not (self._environment / "pyvenv.cfg").is_file():
            raise ConfigError(f"--auto_update needs the environment that scripts/setup.sh makes, not {python}")
        try:
            self._git("remote", "get-url", remote)
            self._git_dir = Path(self._git("rev-parse", "--absolute-git-dir").strip())
        except HostError as error:
            raise ConfigError(f"--auto_update needs a git clone with the remote {remote}: {error}") from error
        path = allowed_signers or self.root / "contrib" / "allowed_signers"
        try:
            self._signers = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"--auto_update: {path} cannot be read: {error.strerror or error}") from error
        if not any(line.strip() and not line.startswith(b"#") for line in self._signers.splitlines()):
            logger.error("--auto_update: {} names no key, so no release can be trusted", path)

    def update(self) -> bool:
        """Whether a newer release was installed, so that the process should end with EXIT_UPDATED.

        May take INSTALL_DEADLINE_S twice over, and again on the way back: call it between rounds. What goes wrong is
        logged; it raises no SubnetError.
        """
        release = self.check()
        if release is None:
            return False
        try:
            self.install(release)
        except SubnetError as error:
            self._retry_after[release.id] = self._clock() + RETRY_AFTER_S
            logger.error("release {} is not installed: {}", release.tag, error)
            return False
        logger.info("release {} is installed", release.tag)
        return True

    def check(self) -> Release | None:
        """The newest trusted release above the running version; None too when it is too early to ask again.

        A tag that cannot be trusted is logged once as an ERROR; a remote that does not answer is a WARNING.
        """
        now = self._clock()
        if now < self._next_check:
            return None
        self._next_check = now + CHECK_EVERY_S
        try:
            return next((found for tag in self._offered(now) if (found := self._verified(tag)) is not None), None)
        except (RemoteError, HostError) as error:
            logger.warning("releases were not looked for: {}", error)
            return None

    def install(self, release: Release) -> None:
        """Installs the packages of `release`, checks its commit out, detached, and sees that it starts.

        Raises: ConfigError when the checkout holds what would be lost; HostError when a step fails, after the
        checkout and its packages were put back as they were.
        """
        with self._update_lock():
            self._check_clean_checkout()
            before = self._git("rev-parse", "--symbolic-full-name", "HEAD").strip().removeprefix("refs/heads/")
            if before == "HEAD":
                before = self._git("rev-parse", "HEAD").strip()
            try:
                self._switch(release)
            except SubnetError as error:
                self._roll_back(before, error)
                raise

    def _offered(self, now: float) -> list[str]:
        """Tags of the remote above the running version that are not resting, newest first."""
        listed = self._git("ls-remote", "--tags", "--refs", self.remote, "v*", fault=RemoteError)
        found = []
        for line in listed.splitlines():
            tag_id, _, name = line.partition("\t")
            tag = name.removeprefix("refs/tags/")
            version = _parse_version(tag)
            if version is not None and version > self._running and self._retry_after.get(tag_id, -math.inf) <= now:
                found.append((version, tag))
        return [tag for _, tag in sorted(found, reverse=True)[:MOST_LOOKED_AT]]

    def _verified(self, tag: str) -> Release | None:
        """The release behind a tag of the remote, fetched; None, told once, when it is not to be trusted."""
        ref = f"{_REFS}/{tag}"
        flags = ("--quiet", "--force", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules")
        self._git("fetch", *flags, self.remote, f"refs/tags/{tag}:{ref}", fault=RemoteError)
        tag_id = self._git("rev-parse", ref).strip()
        try:
            self._verify(tag, tag_id)
            return Release(tag, tag_id, self._git("rev-parse", f"{tag_id}^{{commit}}").strip())
        except HostError as error:
            self._retry_after[tag_id] = math.inf
            logger.error("release {} of {} is not trusted: {}", tag, self.remote, error)
            return None

    def _verify(self, tag: str, tag_id: str) -> None:
        """Raises: HostError unless the object is a tag of this very name, on a commit, signed by a trusted key."""
        if self._git("cat-file", "-t", tag_id).strip() != "tag":
            raise HostError("it is a lightweight tag, which holds no signature")
        # Without a look at its own name, an old release could be served as a new one.
        header = self._git("cat-file", "tag", tag_id).split("\n\n", 1)[0].splitlines()
        if "type commit" not in header or f"tag {tag}" not in header:
            raise HostError("it is another tag under this name")
        with tempfile.NamedTemporaryFile(prefix="allowed_signers-") as file:
            file.write(self._signers)
            file.flush()
            self._git("verify-tag", tag_id, settings={**_VERIFIER, "gpg.ssh.allowedSignersFile": file.name})

    def _check_clean_checkout(self) -> None:
        """Raises: ConfigError naming what the operator has here that is in no release."""
        changed = self._git("status", "--porcelain", "--untracked-files=no").splitlines()
        if changed:
            raise ConfigError(f"{self.root} has changes of its own: {', '.join(line[3:] for line in changed[:5])}")
        unfinished = [name for name in _UNFINISHED if (self._git_dir / name).exists()]
        if unfinished:
            raise ConfigError(f"{self.root} is in the middle of something: {', '.join(unfinished)}")
        known = ("refs/remotes", "refs/tags", _REFS)
        if not self._git("for-each-ref", "--count=1", "--contains=HEAD", *known):
            raise ConfigError(f"{self.root} has commits of its own, which no release would run")

    def _switch(self, release: Release) -> None:
        lock = self._git("show", f"{release.commit}:requirements.lock")
        with tempfile.TemporaryDirectory(prefix="release-") as folder:
            path = Path(folder) / "requirements.lock"
            path.write_text(lock, encoding="utf-8")
            self._set_up({"REQUIREMENTS_LOCK": str(path)})
        self._git("checkout", "--quiet", "--detach", release.commit)
        self._set_up()
        code = "import template; print(template.__version__, template.__file__)"
        # -B: bytecode of a release that is taken back within the second would be taken for that of the one before.
        shown = _run([str(self._python), "-I", "-B", "-c", code], cwd=self.root).strip()
        expected = f"{release.tag.removeprefix('v')} {self.root / 'template' / '__init__.py'}"
        if shown != expected:
            raise HostError(f"`import template` gives {shown}, not {expected}")
        _run([str(self._python), "-I", "-B", str(self.root / "neurons" / "validator.py"), "--help"], cwd=self.root)

    def _roll_back(self, before: str, cause: SubnetError) -> None:
        """Puts code and packages back. Raises: HostError when that fails too: the operator must act."""
        try:
            self._git("checkout", "--quiet", before)
            self._set_up()
        except HostError as error:
            raise HostError(f"{cause}; and going back to {before} failed: {error}") from cause

    def _set_up(self, variables: Mapping[str, str] | None = None) -> None:
        """Has the checkout's own script make the environment what it is meant to be."""
        command = ["bash", str(self.root / "scripts" / "setup.sh")]
        more = {"VENV": str(self._environment), **(variables or {})}
        _run(command, cwd=self.root, deadline_s=INSTALL_DEADLINE_S, variables=more)

    @contextmanager
    def _update_lock(self) -> Iterator[None]:
        """Keeps another neuron of this checkout from updating it, or being started, meanwhile.

        Raises: HostError when one does.
        """
        with (self._git_dir / "updates.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise HostError("another process is updating this checkout") from error
            yield

    def _git(
        self, *arguments: str, settings: Mapping[str, str] | None = None, fault: type[SubnetError] = HostError
    ) -> str:
        options = [part for key, value in {**_QUIET, **(settings or {})}.items() for part in ("-c", f"{key}={value}")]
        deadline_s = REMOTE_DEADLINE_S if fault is RemoteError else LOCAL_DEADLINE_S
        return _run(["git", *options, *arguments], cwd=self.root, deadline_s=deadline_s, fault=fault)


def _run(
    command: Sequence[str],
    *,
    cwd: Path,
    deadline_s: float = LOCAL_DEADLINE_S,
    fault: type[SubnetError] = HostError,
    variables: Mapping[str, str] | None = None,
) -> str:
    """What the command prints on stdout.

    It gets a session of its own: without a terminal nothing can ask for a password, and past the deadline whatever it
    has started ends with it.
    Raises: `fault` when it cannot be run, fails or takes too long.
    """
    # What pip builds and what a release starts is code that needs no token; a helper of git may log in with one.
    ours = os.environ if command[0] == "git" else without_secrets(os.environ)
    kept = {key: value for key, value in ours.items() if key not in _MISLEADING}
    env = {**kept, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "SSH_ASKPASS_REQUIRE": "never", **(variables or {})}
    name = " ".join([command[0], *(part for part in command[1:] if not part.startswith("-") and "=" not in part)])
    # Files, not pipes: one pipe left open by something that was sent to the background would be waited on for ever.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
                # The validator's own is for secrets; code is for whoever shares the clone.
                umask=0o022,
            )
        except OSError as error:
            raise fault(f"{command[0]} cannot be run: {error.strerror or error}") from error
        try:
            status = process.wait(deadline_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise fault(f"`{name}` did not end within {deadline_s:.0f} s") from error
            raise
        printed, complaint = (_read(stream) for stream in (output, errors))
    if status != 0:
        raise fault(f"`{name}` ended with {status}: {' '.join((complaint or printed).split())[-500:]}")
    return printed


def _read(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")


def _parse_version(tag: str) -> tuple[int, int, int] | None:
    """The numbers of vX.Y.Z; None for anything else, pre-releases among it."""
    match = _RELEASE_TAG.fullmatch(tag)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))
