"""Check wallet, endpoints, clock, registration, permit and stake."""

import time
from collections.abc import Callable, Iterator

from template import cli
from template.chain.client import Chain, Wallet
from template.chain.endpoints import Endpoints
from template.chain.wallets import PublicWallet, open_public_wallet
from template.chain_records import ChainView
from template.doctor.findings import Check, Finding, failed, from_error, passed
from template.doctor.setup import Role, Setup
from template.errors import ConfigError, RemoteError
from template.status.health import REMEDIES, HealthLimits

# Seconds for one exchange with an endpoint, and by which a block may be ahead of this machine's clock.
DEADLINE_S = 15.0
TIMEOUT_S = 60.0
_MAX_AHEAD_S = 60.0

_CLOCK_REMEDY = (
    "compare `date -u` with another clock, turn NTP on (`timedatectl set-ntp true`), or name another endpoint"
)
_ENDPOINT_REMEDY = "check the address and the network, or name another endpoint"


def check_chain(setup: Setup) -> Iterator[Finding]:
    """Check wallet, subnet and registration, then permit and stake of a validator that sets weights."""
    wallet, problem = _open_wallet(setup)
    if problem is not None:
        yield problem
    elif wallet is not None:
        yield passed("wallet", f"hotkey {wallet.hotkey.ss58_address} opens")
    try:
        with cli.make_chain(setup.args, wallet, min(DEADLINE_S, setup.args.deadline_s)) as chain:
            view = chain.view()
            if wallet is not None:
                yield _check_registration(setup, view, chain.hotkey)
                if chain.hotkey in view.by_hotkey and setup.sets_weights:
                    yield _check_permit(setup, chain, view)
    except ConfigError as error:
        yield from_error("subnet", error, "`btcli subnets list` shows the subnets")
    except RemoteError as error:
        yield failed("chain", str(error), _ENDPOINT_REMEDY)


def _open_wallet(setup: Setup) -> tuple[Wallet | PublicWallet | None, Finding | None]:
    """Return the wallet; or its public part, and why it does not open."""
    args = setup.args
    if setup.is_offline:
        return None, None
    try:
        return cli.open_wallet(args), None
    except ConfigError as error:
        public = open_public_wallet(args.wallet_name, args.wallet_hotkey, args.wallet_path)
        remedy = "" if public else f"`btcli wallet list --wallet-path {args.wallet_path}` shows the wallets"
        return public, from_error("wallet", error, remedy)


def _check_registration(setup: Setup, view: ChainView, hotkey: str) -> Finding:
    neuron, args = view.by_hotkey.get(hotkey), setup.args
    if neuron is not None:
        return passed("registration", f"uid {neuron.uid} on netuid {view.netuid}")
    advice = ": register it, or use --offline" if setup.role is Role.VALIDATOR else ""
    error = ConfigError(f"the hotkey {hotkey} is not on netuid {view.netuid}{advice}")
    wallet = f"--wallet {args.wallet_name} --wallet-hotkey {args.wallet_hotkey}"
    typed = f"btcli subnets register --netuid {view.netuid} {wallet}"
    return from_error("registration", error, _on_network(setup, typed))


def _on_network(setup: Setup, command: str) -> str:
    """Add the network and the wallets' folder to a btcli command, unless they are btcli's own: it spends TAO there."""
    args = setup.args
    if args.network != "finney":
        command += f" --network {args.network}"
    if args.wallet_path != cli.DEFAULT_WALLETS.expanduser():
        command += f" --wallet-path {args.wallet_path}"
    return command


def _check_permit(setup: Setup, chain: Chain, view: ChainView) -> Finding:
    """Check that the chain would count weights. Raises: RemoteError."""
    rejection = chain.prepare_weights({neuron.uid: 1.0 for neuron in view.neurons}).rejection
    if rejection is None:
        return passed("permit", "the chain would count this hotkey's weights")
    remedy = REMEDIES.get(rejection.error or "", "").format(netuid=view.netuid, hotkey=chain.hotkey)
    if remedy.startswith("btcli "):
        remedy = _on_network(setup, remedy)
    return failed("permit", rejection.message, remedy)


def endpoint_checks(setup: Setup) -> list[Check]:
    """Return a check of each endpoint that the flags name."""
    args = setup.args
    urls = {"--subtensor.network": [args.network]}
    for flag, text in (("fallback", args.fallback_endpoints), ("archive", args.archive_endpoints)):
        urls[f"--subtensor.{flag}_endpoints"] = cli.split_urls(text)

    def check(flag: str, url: str) -> Callable[[], Iterator[Finding]]:
        return lambda: _check_endpoint(setup, flag, url)

    return [
        Check(name="endpoint", run=check(flag, url), timeout_s=TIMEOUT_S)
        for flag, named in urls.items()
        for url in named
    ]


def _check_endpoint(setup: Setup, flag: str, network: str) -> Iterator[Finding]:
    """Check that an endpoint answers by itself, and the clock by its newest block."""
    url, started_at = Endpoints(network).current, time.monotonic()
    # Itself as the fallback, since the client would try the public ones of a named network.
    with Chain(url, setup.args.netuid, fallback_endpoints=[url], deadline_s=DEADLINE_S) as chain:
        try:
            view = chain.view()
        except RemoteError as error:
            yield failed("endpoint", f"{flag} {url}: {error}", _ENDPOINT_REMEDY)
            return
    seconds = time.monotonic() - started_at
    yield passed("endpoint", f"{flag} {url}: block {view.block}, answered in {seconds:.1f} s")
    yield _check_clock(url, time.time() - view.timestamp)


def _check_clock(url: str, age_s: float) -> Finding:
    if -_MAX_AHEAD_S <= age_s <= HealthLimits.max_block_age_s:
        return passed("clock", f"this clock and the newest block of {url} differ by {abs(age_s):.0f} s")
    side = "behind" if age_s > 0 else "ahead of"
    text = f"the newest block of {url} is {abs(age_s):.0f} s {side} this machine's clock: one of the two is wrong"
    return failed("clock", text, _CLOCK_REMEDY)
