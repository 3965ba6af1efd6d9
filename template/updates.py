"""Install signed releases of a git remote: the only caller of git and pip.

A release is an annotated tag vX.Y.Z with an SSH signature by a key of `contrib/allowed_signers`, as that file was when
this process started: the keys in a release count only for the next one.

Packages are installed before the code is switched, so a release whose packages are not available changes no code. A
kill in between leaves old code with new packages, or a broken environment: `contrib/start.sh`, which starts every
neuron, then repairs the environment with `scripts/setup.sh`.
"""

import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout
from loguru import logger

from template import __version__
from template.errors import ConfigError, HostError, RemoteError, SubnetError
from template.telemetry.redaction import without_secrets

# Seconds between two checks, and before a failed installation is retried.
CHECK_EVERY_S = 600.0
RETRY_AFTER_S = 6 * 3600.0

# Timeouts of one command: local git, git over the network, pip with a new torch.
LOCAL_DEADLINE_S = 60.0
REMOTE_DEADLINE_S = 120.0
INSTALL_DEADLINE_S = 1800.0

# Releases verified in one check, from the newest: bad signatures must not cost hours.
MAX_VERIFIED = 5

_RELEASE_TAG = re.compile(r"v(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})")
# A namespace of ours: it moves no tag of the operator's, and keeps the commit that is checked out reachable.
_REFS = "refs/updates"
# Only SSH signatures count. Git picks the verifier by the tag, and the operator's keyring may hold anyone.
_VERIFIER = {
    "gpg.format": "ssh",
    "gpg.ssh.program": "ssh-keygen",
    "gpg.minTrustLevel": "fully",
    "gpg.program": "false",
    "gpg.openpgp.program": "false",
    "gpg.x509.program": "false",
}
_QUIET = {"core.askPass": "", "core.hooksPath": "/dev/null", "gc.auto": "0", "maintenance.auto": "false"}
# Variables that point git at another repository, make it ask for a password, or name another lock file.
_UNSAFE = ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_ASKPASS", "SSH_ASKPASS", "DISPLAY", "REQUIREMENTS_LOCK"]
_UNFINISHED = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "BISECT_LOG", "rebase-merge", "rebase-apply")


@dataclass(frozen=True)
class Release:
    """A tag with a valid signature. id: the tag object. commit: its target."""

    tag: str
    id: str
    commit: str


class Updater:
    """Moves a checkout and the environment of `python` to newer releases.

    allowed_signers: by default the checkout's own. running: version of this process, X.Y.Z.
    Raises: ConfigError when the checkout or its environment cannot be updated.
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
        # Tag object to the time of its next attempt.
        self._retry_after: dict[str, float] = {}
        version = _parse_version(f"v{running}")
        if version is None:
            raise ConfigError(f"--auto_update needs a release X.Y.Z, not {running}: check out a release tag")
        self._running = version
        self._environment = python.parent.parent
        if not (self._environment / "pyvenv.cfg").is_file():
            raise ConfigError(f"--auto_update needs the environment of scripts/setup.sh, not {python}")
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
            logger.error("--auto_update: no key in {}, so no release is trusted", path)

    def update(self) -> bool:
        """Install a newer trusted release; return whether to end with EXIT_UPDATED.

        Can take four times INSTALL_DEADLINE_S: call it between rounds. Logs failures and raises no SubnetError.
        """
        release = self.check()
        if release is None:
            return False
        try:
            self.install(release)
        except SubnetError as error:
            self._retry_after[release.id] = self._clock() + RETRY_AFTER_S
            logger.error("release {} not installed: {}", release.tag, error)
            return False
        logger.info("installed release {}", release.tag)
        return True

    def check(self) -> Release | None:
        """Return the newest trusted release above the running version.

        Asks the remote once in CHECK_EVERY_S. Logs an ERROR once for each untrusted tag, and a WARNING when the remote
        does not answer.
        """
        now = self._clock()
        if now < self._next_check:
            return None
        self._next_check = now + CHECK_EVERY_S
        try:
            releases = (self._verify(tag) for tag in self._offered_tags(now))
            return next((release for release in releases if release is not None), None)
        except (RemoteError, HostError) as error:
            logger.warning("update check failed: {}", error)
            return None

    def install(self, release: Release) -> None:
        """Install a release's packages, check its commit out, and start it once as a test.

        Raises: ConfigError for changes that would be lost; HostError when a step failed and was undone, or
        another process is updating the checkout.
        """
        try:
            with FileLock(self._git_dir / "updates.lock", timeout=0, fallback_to_soft=False):
                self._check_clean_checkout()
                branch = self._git("rev-parse", "--symbolic-full-name", "HEAD").strip().removeprefix("refs/heads/")
                before = self._git("rev-parse", "HEAD").strip() if branch == "HEAD" else branch
                try:
                    self._switch(release)
                except SubnetError as error:
                    self._roll_back(before, error)
        except Timeout as error:
            raise HostError("another process is updating this checkout") from error

    def _offered_tags(self, now: float) -> list[str]:
        """Return the remote's release tags above the running version, newest first."""
        listing = self._git("ls-remote", "--tags", "--refs", self.remote, "v*", fault=RemoteError)
        tags = []
        for line in listing.splitlines():
            tag_id, _, name = line.partition("\t")
            tag = name.removeprefix("refs/tags/")
            version = _parse_version(tag)
            if version is not None and version > self._running and self._retry_after.get(tag_id, -math.inf) <= now:
                tags.append((version, tag))
        return [tag for _, tag in sorted(tags, reverse=True)[:MAX_VERIFIED]]

    def _verify(self, tag: str) -> Release | None:
        """Fetch a tag and verify it; None when it is not trusted, now and in later checks."""
        ref = f"{_REFS}/{tag}"
        flags = ("--quiet", "--force", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules")
        self._git("fetch", *flags, self.remote, f"refs/tags/{tag}:{ref}", fault=RemoteError)
        tag_id = self._git("rev-parse", ref).strip()
        try:
            self._check_signature(tag, tag_id)
            return Release(tag, tag_id, self._git("rev-parse", f"{tag_id}^{{commit}}").strip())
        except HostError as error:
            self._retry_after[tag_id] = math.inf
            logger.error("release {} of {} is not trusted: {}", tag, self.remote, error)
            return None

    def _check_signature(self, tag: str, tag_id: str) -> None:
        """Raises: HostError unless a trusted key signed a tag of this name."""
        if self._git("cat-file", "-t", tag_id).strip() != "tag":
            raise HostError("a lightweight tag has no signature")
        # The signature covers the name, so that an old release cannot be served as a new one.
        header = self._git("cat-file", "tag", tag_id).split("\n\n", 1)[0].splitlines()
        if "type commit" not in header or f"tag {tag}" not in header:
            raise HostError("another tag under this name")
        with tempfile.NamedTemporaryFile(prefix="allowed_signers-") as file:
            file.write(self._signers)
            file.flush()
            self._git("verify-tag", tag_id, settings={**_VERIFIER, "gpg.ssh.allowedSignersFile": file.name})

    def _check_clean_checkout(self) -> None:
        """Raises: ConfigError naming local work that is in no release."""
        if changed := self._git("status", "--porcelain", "--untracked-files=no").splitlines():
            raise ConfigError(f"{self.root} has local changes: {', '.join(line[3:] for line in changed[:5])}")
        if unfinished := [name for name in _UNFINISHED if (self._git_dir / name).exists()]:
            raise ConfigError(f"{self.root} has an unfinished operation: {', '.join(unfinished)}")
        if not self._git("for-each-ref", "--count=1", "--contains=HEAD", "refs/remotes", "refs/tags", _REFS):
            raise ConfigError(f"{self.root} has local commits, which are in no release")

    def _switch(self, release: Release) -> None:
        lock = self._git("show", f"{release.commit}:requirements.lock")
        with tempfile.TemporaryDirectory(prefix="release-") as folder:
            path = Path(folder) / "requirements.lock"
            path.write_text(lock, encoding="utf-8")
            self._set_up({"REQUIREMENTS_LOCK": str(path)})
        self._git("checkout", "--quiet", "--detach", release.commit)
        self._set_up()
        code = "import template; print(template.__version__, template.__file__)"
        # -B: bytecode of a release that is rolled back within a second would pass for the previous release's.
        imported = _run([str(self._python), "-I", "-B", "-c", code], cwd=self.root).strip()
        expected = f"{release.tag.removeprefix('v')} {self.root / 'template' / '__init__.py'}"
        if imported != expected:
            raise HostError(f"`import template` gives {imported}, not {expected}")
        _run([str(self._python), "-I", "-B", str(self.root / "neurons" / "validator.py"), "--help"], cwd=self.root)

    def _roll_back(self, before: str, cause: SubnetError) -> NoReturn:
        """Restore code and packages. Raises: `cause`; HostError when that fails too."""
        try:
            self._git("checkout", "--quiet", before)
            self._set_up()
        except HostError as error:
            raise HostError(f"{cause}; and the rollback to {before} failed: {error}") from cause
        raise cause

    def _set_up(self, variables: Mapping[str, str] | None = None) -> None:
        command = ["bash", str(self.root / "scripts" / "setup.sh")]
        variables = {"VENV": str(self._environment), **(variables or {})}
        _run(command, cwd=self.root, deadline_s=INSTALL_DEADLINE_S, variables=variables)

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
    """Run a command and return its stdout.

    A new session leaves it no terminal to ask for a password on, and lets a timeout kill its children too.
    """
    # pip builds and releases need no token, but a credential helper of git may use one.
    source = os.environ if command[0] == "git" else without_secrets(os.environ)
    env = {key: value for key, value in source.items() if key not in _UNSAFE}
    env |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "SSH_ASKPASS_REQUIRE": "never", **(variables or {})}
    name = " ".join([command[0], *(part for part in command[1:] if not part.startswith("-") and "=" not in part)])
    # Files, not pipes: a background process that keeps a pipe open would block forever.
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace", newline="") as output,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace", newline="") as log,
    ):
        try:
            # The validator's own umask protects secrets; other users of the clone must read its code.
            process = subprocess.Popen(
                command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=log, start_new_session=True,
                umask=0o022,
            )  # fmt: skip
        except OSError as error:
            raise fault(f"{command[0]} cannot be run: {error.strerror or error}") from error
        try:
            status = process.wait(deadline_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise fault(f"`{name}` timed out after {deadline_s:.0f} s") from error
            raise
        output.seek(0)
        log.seek(0)
        printed, error_text = output.read(), log.read()
    if status != 0:
        raise fault(f"`{name}` exited with {status}: {' '.join((error_text or printed).split())[-500:]}")
    return printed


def _parse_version(tag: str) -> tuple[int, int, int] | None:
    """Return the numbers of vX.Y.Z, None for anything else, pre-releases included."""
    match = _RELEASE_TAG.fullmatch(tag)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))
