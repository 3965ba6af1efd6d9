"""Updates with real git repositories, SSH keys and an environment with pip."""

import fcntl
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from loguru import logger

from template import updates
from template.errors import EXIT_UPDATED, ConfigError, HostError, SubnetError
from template.updates import Release, Updater
from tests.fixtures.http import serve
from tests.fixtures.network import ROOT
from tests.fixtures.pip import make_environment, make_wheel

VALIDATOR = "import argparse, template\nargparse.ArgumentParser().parse_args()\n"
SETUP = "import setuptools\nsetuptools.setup(name='under-test', version='1', packages=['template', 'neurons'])\n"


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def own_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Git without this user's settings, pip without an index."""
    people = {f"GIT_{role}_{name}": "owner" for role in ("AUTHOR", "COMMITTER") for name in ("NAME", "EMAIL")}
    settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(tmp_path)}
    for name, value in {**settings, **people, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two SSH keys, `owner` and `stranger`."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("owner", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name], check=True)
    return folder


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with pip and setuptools."""
    return make_environment(tmp_path_factory.mktemp("environment") / "venv")


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """An owner's repository, and an operator's clone of it that runs 0.1.0."""

    folder: Path
    keys: Path
    python: Path
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.owner, self.clone = self.folder / "owner", self.folder / "clone"
        self.owner.mkdir()
        git(self.owner, "init", "--quiet", "--initial-branch", "main")
        (self.owner / "contrib").mkdir()
        self.trust("owner")
        self.release("0.1.0")
        git(self.folder, "clone", "--quiet", str(self.owner), str(self.clone))

    def trust(self, *names: str) -> None:
        """Set the trusted keys in the owner's tree."""
        lines = [f"{name} {(self.keys / f'{name}.pub').read_text()}" for name in names]
        (self.owner / "contrib" / "allowed_signers").write_text("# comment\n" + "".join(lines))

    def commit(self, version: str, *, lock: str = "", validator: str = VALIDATOR) -> str:
        files = {"setup.py": SETUP, "requirements.lock": lock, ".gitignore": "*.egg-info\n__pycache__\n"}
        files |= {"template/__init__.py": f'__version__ = "{version}"\n', "neurons/__init__.py": ""}
        files |= {f"scripts/{name}": (ROOT / "scripts" / name).read_text() for name in ("setup.sh", "python.sh")}
        for name, text in {**files, "neurons/validator.py": validator}.items():
            (self.owner / name).parent.mkdir(exist_ok=True)
            (self.owner / name).write_text(text)
        git(self.owner, "add", "--all")
        git(self.owner, "commit", "--quiet", "--allow-empty", "--message", version)
        return git(self.owner, "rev-parse", "HEAD")

    def sign(self, tag: str, *, key: str = "owner", target: str = "HEAD") -> None:
        settings = ("-c", "gpg.format=ssh", "-c", f"user.signingkey={self.keys / key}")
        git(self.owner, *settings, "tag", "--force", "--sign", "--message", tag, tag, target)

    def release(self, version: str, *, key: str = "owner", lock: str = "", validator: str = VALIDATOR) -> str:
        """Publish a signed release and return its commit."""
        commit = self.commit(version, lock=lock, validator=validator)
        self.sign(f"v{version}", key=key)
        return commit

    def updater(self, running: str = "0.1.0") -> Updater:
        return Updater(self.clone, running=running, python=self.python, clock=self.clock)

    def head(self) -> str:
        return git(self.clone, "rev-parse", "HEAD")

    def imported(self) -> str:
        """Return the version that a new process imports."""
        code = "import template; print(template.__version__)"
        done = subprocess.run([self.python, "-I", "-c", code], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def set_up(self) -> None:
        """Set the clone up as an operator does before the first start."""
        environment = {**os.environ, "VENV": str(self.python.parent.parent)}
        subprocess.run(["bash", self.clone / "scripts" / "setup.sh"], env=environment, check=True, capture_output=True)


@pytest.fixture
def world(tmp_path: Path, keys: Path, python: Path) -> World:
    return World(tmp_path, keys, python)


@pytest.fixture
def logs() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{level} {message}", level="WARNING")
    yield lines
    logger.remove(sink)


def test_newest_release_in_numerical_order_is_offered(world: World, logs: list[str]) -> None:
    world.release("0.9.0")
    commit = world.release("0.10.0")
    world.release("0.2.0")
    release = world.updater().check()
    assert release is not None
    assert (release.tag, release.commit) == ("v0.10.0", commit)
    assert not logs


def test_check_installs_and_moves_nothing(world: World) -> None:
    world.release("0.2.0")
    before = world.head()
    git(world.clone, "tag", "v0.2.0")
    assert world.updater().check() is not None
    assert world.head() == before == git(world.clone, "rev-parse", "v0.2.0")


def _annotated(world: World) -> None:
    world.commit("0.2.0")
    git(world.owner, "tag", "--annotate", "--message", "v0.2.0", "v0.2.0")


def _brings_its_own_key(world: World) -> None:
    world.trust("owner", "stranger")
    world.release("0.2.0", key="stranger")


def _signed_by_pgp(world: World) -> None:
    """Sign with a PGP key that the operator's own verifier accepts."""
    gpg = world.folder / "gpg"
    status = "".join(f"[GNUPG:] {line}\\n" for line in ("NEWSIG", "GOODSIG 0 friend", "TRUST_ULTIMATE 0 pgp"))
    gpg.write_text(f"#!/bin/sh\ncat >/dev/null\nprintf '{status}'\n")
    gpg.chmod(0o755)
    git(world.clone, "config", "gpg.program", str(gpg))
    block = "-----BEGIN PGP SIGNATURE-----\n\nabc\n-----END PGP SIGNATURE-----"
    text = f"object {world.commit('0.2.0')}\ntype commit\ntag v0.2.0\ntagger owner <owner@example.org> 1 +0000\n\nv\n"
    made = subprocess.run(
        ["git", "hash-object", "-t", "tag", "-w", "--stdin"],
        cwd=world.owner,
        input=f"{text}{block}\n",
        capture_output=True,
        text=True,
        check=True,
    )
    git(world.owner, "update-ref", "refs/tags/v0.2.0", made.stdout.strip())
    git(world.clone, "fetch", "--quiet", "--tags")
    git(world.clone, "verify-tag", "v0.2.0")


UNTRUSTED: dict[str, tuple[Callable[[World], object], str]] = {
    "a lightweight tag": (lambda world: git(world.owner, "tag", "v0.2.0", world.commit("0.2.0")), "lightweight"),
    "an unsigned tag": (_annotated, "verify-tag"),
    "an unknown signer": (lambda world: world.release("0.2.0", key="stranger"), "No principal matched"),
    "an old tag under a new name": (
        lambda world: git(world.owner, "update-ref", "refs/tags/v9.0.0", "refs/tags/v0.1.0"),
        "another tag under this name",
    ),
    "a key that the release itself brings": (_brings_its_own_key, "No principal matched"),
    "a signature for another verifier": (_signed_by_pgp, "verify-tag"),
}


@pytest.mark.parametrize("case", UNTRUSTED)
def test_untrusted_tag_is_refused_and_logged_once(world: World, logs: list[str], case: str) -> None:
    publish, message = UNTRUSTED[case]
    publish(world)
    updater = world.updater()
    assert updater.check() is None
    world.clock.now += updates.CHECK_EVERY_S
    assert updater.check() is None
    (line,) = logs
    assert line.startswith("ERROR") and "is not trusted" in line and message in line


@pytest.mark.parametrize("tag", ["v0.2.0-rc1", "v0.2", "0.2.0", "v0.02.0", "v0.2.0.1", "vnext", "v0.0.9", "v0.1.0"])
def test_tag_that_is_no_newer_release_is_ignored(world: World, logs: list[str], tag: str) -> None:
    world.commit("0.2.0")
    world.sign(tag)
    assert world.updater().check() is None
    assert not logs


def test_untrusted_tag_does_not_hide_a_trusted_one(world: World) -> None:
    world.release("0.2.0")
    world.release("0.3.0", key="stranger")
    release = world.updater().check()
    assert release is not None and release.tag == "v0.2.0"


def test_check_asks_the_remote_once_per_interval(world: World) -> None:
    updater = world.updater()
    assert updater.check() is None
    world.release("0.2.0")
    world.clock.now += updates.CHECK_EVERY_S - 1
    assert updater.check() is None
    world.clock.now += 1
    assert updater.check() is not None


def test_signers_file_without_a_key_is_logged(world: World, logs: list[str]) -> None:
    shipped = ROOT / "contrib" / "allowed_signers"
    has_key = any(line.strip() and not line.startswith("#") for line in shipped.read_text().splitlines())
    Updater(world.clone, allowed_signers=shipped, running="0.1.0", python=world.python)
    assert len(logs) == (0 if has_key else 1)
    assert all("no key in" in line for line in logs)


def test_silent_remote_times_out(world: World, logs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "REMOTE_DEADLINE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        git(world.clone, "remote", "set-url", "origin", f"http://127.0.0.1:{server.getsockname()[1]}/x.git")
        assert world.updater().check() is None
        connection, _ = server.accept()
        with connection:
            connection.settimeout(30)
            while connection.recv(65536):
                pass
    (line,) = logs
    assert line.startswith("WARNING") and "timed out after" in line


def test_remote_asking_for_a_password_fails_the_check(world: World, logs: list[str]) -> None:
    with serve(lambda _: (401, {"WWW-Authenticate": 'Basic realm="x"'}, b"")) as url:
        git(world.clone, "remote", "set-url", "origin", f"{url}/x.git")
        assert world.updater().check() is None
    (line,) = logs
    assert line.startswith("WARNING") and "ls-remote" in line


@pytest.mark.slow
def test_release_is_installed_with_its_packages(world: World, logs: list[str]) -> None:
    world.set_up()
    assert world.imported() == "0.1.0"
    (world.clone / "notes.txt").write_text("the operator's own, untracked")
    lock = make_wheel(world.folder, "brought_along")
    commit = world.release("0.2.0", lock=lock)
    before = os.umask(0o077)
    try:
        assert world.updater().update()
    finally:
        os.umask(before)
    code = world.clone / "template" / "__init__.py"
    assert code.stat().st_mode & 0o044 == 0o044, "others who share the clone can read it, whatever a validator keeps"
    assert EXIT_UPDATED == 10
    assert (world.head(), world.imported()) == (commit, "0.2.0")
    subprocess.run([world.python, "-I", "-c", "import brought_along"], check=True)
    assert (world.clone / "notes.txt").exists()
    assert not logs
    later = world.release("0.3.0", lock=lock)
    assert world.updater(running="0.2.0").update(), "from a release, which is a detached HEAD"
    assert (world.head(), world.imported()) == (later, "0.3.0")


# Release, text of the log line, and whether the failure comes after the code was switched.
BROKEN: dict[str, tuple[Callable[[World], object], str, bool]] = {
    "a package that is not the one locked": (
        lambda world: world.release("0.2.0", lock=make_wheel(world.folder, "altered")[:-9] + "00000000\n"),
        "setup.sh",
        False,
    ),
    "a version that is not its tag's": (lambda world: (world.commit("0.1.9"), world.sign("v0.2.0")), "not 0.2.0", True),
    "a validator that does not start": (lambda world: world.release("0.2.0", validator="import gone\n"), "gone", True),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BROKEN)
def test_failing_release_is_rolled_back_and_retried_later(world: World, logs: list[str], case: str) -> None:
    publish, message, is_switched = BROKEN[case]
    world.set_up()
    publish(world)
    before, updater = world.head(), world.updater()
    assert not updater.update()
    assert (world.head(), world.imported()) == (before, "0.1.0")
    assert git(world.clone, "symbolic-ref", "--short", "HEAD") == "main"
    assert (git(world.owner, "rev-parse", "HEAD") in git(world.clone, "reflog", "--format=%H")) == is_switched
    (line,) = logs
    assert line.startswith("ERROR") and message in line and "rollback" not in line
    world.clock.now += updates.CHECK_EVERY_S
    assert updater.check() is None, "tried again at once"
    world.clock.now += updates.RETRY_AFTER_S
    assert updater.check() is not None


COMMIT = "touch patch.py && git add patch.py && git commit --quiet --message own"
# Commands of the operator, and the reason for which an installation then stops.
LOSSES = {
    "a changed file": ("echo 1 > setup.py", "local changes: setup.py"),
    "a staged file": ("echo 1 > setup.py && git add setup.py", "local changes: setup.py"),
    "a commit on a branch": (COMMIT, "local commits"),
    "a commit on no branch": (f"git checkout --quiet --detach && {COMMIT}", "local commits"),
    "a bisection": ("git bisect start", "an unfinished operation: BISECT_LOG"),
}


@pytest.mark.parametrize("case", LOSSES)
def test_local_work_blocks_the_installation(world: World, case: str) -> None:
    command, message = LOSSES[case]
    world.release("0.2.0")
    subprocess.run(["sh", "-c", command], cwd=world.clone, check=True, capture_output=True)
    release, before = world.updater().check(), world.head()
    assert release is not None
    with pytest.raises(ConfigError, match=message):
        world.updater().install(release)
    assert world.head() == before


def test_concurrent_update_of_a_checkout_is_refused(world: World) -> None:
    with (world.clone / ".git" / "updates.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(HostError, match="another process"):
            world.updater().install(Release("v0.2.0", "0" * 40, "0" * 40))


def test_checkout_that_cannot_be_updated_is_refused(world: World, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    refused: list[tuple[Callable[[], Updater], str]] = [
        (lambda: Updater(bare, running="0.1.0", python=world.python), "a git clone with the remote origin"),
        (lambda: Updater(world.clone, remote="up", running="0.1.0", python=world.python), "the remote up"),
        (lambda: world.updater(running="0.2.0.dev1"), "not 0.2.0.dev1"),
        (lambda: Updater(world.clone, running="0.1.0", python=Path("/usr/bin/python3")), "the environment of"),
        (lambda: Updater(world.clone, allowed_signers=bare / "x", running="0.1.0", python=world.python), "be read"),
    ]
    for make, message in refused:
        with pytest.raises(SubnetError, match=message) as raised:
            make()
        assert raised.value.exit_code == ConfigError.exit_code
        assert "--auto_update" in str(raised.value)
