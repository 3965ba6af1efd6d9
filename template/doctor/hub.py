"""Check proxies, the Hub, the token and the evaluation set."""

import socket
import time
from collections.abc import Iterator

from template.config import load_competition
from template.constants import DATA_FILE
from template.doctor.findings import Finding, failed, from_error, passed, warned
from template.doctor.setup import Role, Setup
from template.errors import ConfigError, HostError, RemoteError
from template.hub.checks import check_reachable, list_eval_set, read_account
from template.hub.client import NO_TOKEN, read_token
from template.proxies import check_proxies, find_proxies

_CONNECT_S = 5.0
_LOGIN = "run `hf auth login` with a new token of https://huggingface.co/settings/tokens, or set HF_TOKEN"
_NETWORK = "check HF_ENDPOINT, the proxy and the network"


def check_proxy() -> Iterator[Finding]:
    """Check that each proxy of the environment can be used and answers."""
    try:
        check_proxies()
    except ConfigError as error:
        yield from_error("proxy", error)
    proxies = find_proxies()
    for variable, address in proxies.items():
        name = f"{address[0]}:{address[1]}"
        try:
            socket.create_connection(address, timeout=_CONNECT_S).close()
        except OSError as error:
            reason = error.strerror or str(error)
            yield failed(
                "proxy", f"{variable}: {name} does not answer: {reason}", f"start the proxy, or unset {variable}"
            )
        else:
            yield passed("proxy", f"{variable}: {name} answers")
    if not proxies:
        yield passed("proxy", "none")


def check_hub() -> Iterator[Finding]:
    """Check that HF_ENDPOINT is valid and answers."""
    started_at = time.monotonic()
    try:
        endpoint = check_reachable()
        yield passed("hub", f"{endpoint} answers in {time.monotonic() - started_at:.1f} s")
    except RemoteError as error:
        yield failed("hub", str(error), _NETWORK)


def check_token(setup: Setup, *, asks_hub: bool = True) -> Iterator[Finding]:
    """Check the Hub token, by itself and, if `asks_hub`, by the Hub."""
    try:
        token = read_token()
    except (ConfigError, HostError) as error:
        yield from_error("token", error, _LOGIN)
        return
    is_miner = setup.role is Role.MINER
    if token is None:
        if is_miner:
            yield from_error("token", HostError(NO_TOKEN))
        else:
            yield passed("token", "none, as public files need none")
        return
    if not asks_hub:
        return
    try:
        account = read_account(token)
    except RemoteError as error:
        yield warned("token", f"could not be checked: {error}", _NETWORK)
        return
    except HostError as error:
        yield from_error("token", error, _LOGIN)
        return
    text = f"the Hub token is of {account.names[0]}, role {account.role}"
    owner, slash, _ = setup.args.hf_repo_id.partition("/") if is_miner else ("", "", "")
    if is_miner and account.role == "read":
        fault = HostError(f"the Hub does not let this token write: it is a read token of {account.names[0]}")
        yield from_error("token", fault, f"{_LOGIN}, with the role write")
    elif slash and account.role == "write" and owner not in account.names:
        names = ", ".join(account.names)
        remedy = f"--hf_repo_id {account.names[0]}/NAME, or another token"
        yield failed("token", f"{text}: it cannot write to {setup.args.hf_repo_id}, only below {names}", remedy)
    else:
        yield passed("token", text)


def check_eval_set(setup: Setup, *, reads_file: bool = True) -> Iterator[Finding]:
    """Check that the evaluation set is on this machine, or can be downloaded. reads_file: or only looks for it."""
    competition = load_competition(setup.args.competition)
    if not reads_file and (setup.eval_folder() / DATA_FILE).exists():
        return
    where = f"{competition.repo}@{competition.eval_commit[:12]}"
    if (path := setup.eval_file()) is not None:
        yield passed("evaluation set", f"{where} is in {path}, {path.stat().st_size} bytes")
        return
    try:
        listed = list_eval_set(competition, read_token())
    except RemoteError as error:
        yield warned("evaluation set", f"{where} could not be looked up: {error}", _NETWORK)
        return
    digest = f"sha256 {listed.sha256}" if listed.sha256 else f"git blob {listed.git_oid}"
    yield passed("evaluation set", f"{where}: {listed.path} on the Hub, {listed.size} bytes, {digest}")
