"""Check a machine at the start of a neuron, all at once."""

import threading
from collections.abc import Callable
from functools import partial

from loguru import logger

from template.chain.client import Chain
from template.doctor import host, hub
from template.doctor.chain import ChainChecks
from template.doctor.findings import Check, Level, run_checks
from template.doctor.setup import Role, Setup, check_settings
from template.errors import ConfigError, HostError, SubnetError
from template.status.health import HealthLimits

# Exit status: its error, the one that needs the operator first.
_ERRORS: dict[int, Callable[[str], SubnetError]] = {
    ConfigError.exit_code: ConfigError,
    HostError.exit_code: HostError,
}


def check_start(setup: Setup) -> Chain:
    """Run what a start needs at once; log all that is wrong. Return the chain, with its connection.

    Only faults that the program cannot outlive end the start; the chain and the Hub may come back.
    Raises: ConfigError or HostError with one of the faults, after the others are logged.
    """
    chain = ChainChecks(setup, setup.args.deadline_s)
    checks = [
        Check(name="settings", run=lambda: check_settings(setup)),
        # Bounded by the client's own deadline, so that no thread uses the chain later.
        Check(name="chain", run=chain.check_start, timeout_s=threading.TIMEOUT_MAX),
        Check(name="proxy", run=hub.check_proxy),
        Check(name="token", run=partial(hub.check_token, setup, asks_hub=setup.role is Role.MINER)),
        Check(name="evaluation set", run=partial(hub.check_eval_set, setup)),
        Check(name="disk", run=partial(host.check_disk, setup.state_dir, HealthLimits.min_free_bytes)),
        Check(name="temporary folder", run=host.check_temporary_folder),
    ]
    if setup.role is Role.VALIDATOR:
        checks.append(Check(name="model", run=partial(host.check_model, setup)))
        checks.append(Check(name="device", run=partial(host.check_device, setup, is_default_checked=False)))
    findings = run_checks(checks)
    faults = sorted((finding for finding in findings if finding.exit_code), key=lambda finding: finding.exit_code)
    for finding in findings:
        if finding.level is not Level.OK and not finding.exit_code:
            logger.warning("{}: {}", finding.check, finding)
    for finding in faults[1:]:
        logger.error("{}", finding)
    if faults and chain.chain is not None:
        chain.chain.close()
    if faults:
        raise _ERRORS[faults[0].exit_code](str(faults[0]))
    assert chain.chain is not None, "without a chain there is a fault"
    return chain.chain
