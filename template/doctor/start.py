"""Check a machine at the start of a neuron: all that is wrong at once, in no more time than the start takes."""

from collections.abc import Callable, Sequence
from functools import partial

from loguru import logger

from template.doctor import host, hub
from template.doctor.chain import check_chain
from template.doctor.findings import Check, Finding, Level, run_checks
from template.doctor.setup import Role, Setup
from template.errors import ConfigError, HostError, SubnetError
from template.status.health import HealthLimits

# A wrong setting is answered soon, also while no node is.
_CHAIN_S = 20.0
_ERRORS: dict[int, type[SubnetError]] = {error.exit_code: error for error in (ConfigError, HostError)}


def find_start_faults(
    setup: Setup, faults: Sequence[SubnetError], make_folder: Callable[[], object]
) -> list[SubnetError]:
    """Return all faults with which the program cannot run, and log the others as warnings.

    The chain is asked only beside other faults: otherwise the program's first step reads it, and reports the same.
    faults: of the command line. make_folder: creates the folder of the state.
    """

    def prepare() -> list[Finding]:
        make_folder()
        return []

    is_validator = setup.role is Role.VALIDATOR
    checks = [
        Check(name="folder", run=prepare),
        Check(name="proxy", run=hub.check_proxy),
        Check(name="token", run=partial(hub.check_token, setup, asks_hub=not is_validator)),
        Check(name="evaluation set", run=partial(hub.check_eval_set, setup, reads_file=False)),
        Check(name="disk", run=partial(host.check_disk, setup.state_dir, HealthLimits.min_free_bytes)),
    ]
    if is_validator:
        checks.append(Check(name="model", run=partial(host.check_model, setup)))
        checks.append(Check(name="device", run=partial(host.check_device, setup, is_default_checked=False)))
    else:
        checks.append(Check(name="temporary folder", run=host.check_temporary_folder))
    findings = run_checks(checks)
    if faults or any(finding.exit_code for finding in findings):
        findings += run_checks([Check(name="chain", run=partial(check_chain, setup), timeout_s=_CHAIN_S)])
    # By text, since the command line's own checks find some of them, too.
    found = {str(fault): fault for fault in faults}
    for finding in findings:
        if finding.exit_code:
            found[finding.text] = _ERRORS[finding.exit_code](str(finding))
        elif finding.level is not Level.OK:
            logger.warning("{}: {}", finding.check, finding)
    return [*found.values()]
