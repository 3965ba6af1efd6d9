"""All checks of the command, and their output."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from template.doctor import host, hub
from template.doctor.chain import TIMEOUT_S, check_chain, endpoint_checks
from template.doctor.findings import Check, Finding, Level, run_checks, warned
from template.doctor.pace import LOAD_S, estimate_pace
from template.doctor.setup import Role, Setup, check_settings
from template.telemetry.redaction import Redactor, secret_values
from template.terminal import escape

_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILURE: "red"}
# A local model is read wholly.
_MODEL_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command alone checks. measure_s: longest measured evaluation, 0 for none."""

    ports: Sequence[int]
    min_free_bytes: int
    measure_s: float


def check_all(setup: Setup, options: Options) -> list[Finding]:
    """Run every check at once, then the measurement, which would disturb them."""
    checks = [
        Check(name="chain", run=partial(check_chain, setup), timeout_s=TIMEOUT_S),
        *endpoint_checks(setup),
        Check(name="proxy", run=hub.check_proxy),
        Check(name="hub", run=hub.check_hub),
        Check(name="token", run=partial(hub.check_token, setup)),
        Check(name="evaluation set", run=partial(hub.check_eval_set, setup)),
        *(
            Check(name="disk", run=partial(host.check_disk, folder, options.min_free_bytes))
            for folder in _volumes(setup)
        ),
        Check(name="temporary folder", run=host.check_temporary_folder),
        Check(name="port", run=partial(host.check_ports, options.ports)),
        # Last, since a fault is reported once, under its own name.
        Check(name="settings", run=partial(check_settings, setup)),
    ]
    if setup.role is Role.MINER:
        return _redact(run_checks(checks))
    evaluation = [
        Check(name="model", run=partial(host.check_model, setup, has_digest=True), timeout_s=_MODEL_S),
        Check(name="device", run=partial(host.check_device, setup)),
    ]
    findings = run_checks([*checks, *evaluation])
    broken = {finding.check for finding in findings if finding.level is Level.FAILURE}
    if wrong := broken & {"settings", "model", "device", "evaluation set", "temporary folder"}:
        reason = f"time of an evaluation unknown, because of: {', '.join(sorted(wrong))}"
        return _redact([*findings, warned("time", reason, "correct them, then look again")])
    limit_s = options.measure_s + LOAD_S + TIMEOUT_S
    pace = Check(name="time", run=partial(estimate_pace, setup, options.measure_s), timeout_s=limit_s)
    return _redact([*findings, *run_checks([pace])])


def _redact(findings: Sequence[Finding]) -> list[Finding]:
    """Remove secrets, such as a password in an endpoint's address."""
    redact = Redactor(secret_values(os.environ))
    return [replace(finding, text=redact(finding.text), remedy=redact(finding.remedy)) for finding in findings]


def _volumes(setup: Setup) -> list[Path]:
    """Return the folders of the state and of the model, unless the second is in the first."""
    cache_dir = setup.cache_dir
    has_own = cache_dir is not None and not cache_dir.is_relative_to(setup.state_dir)
    return [setup.state_dir, *([cache_dir] if cache_dir is not None and has_own else [])]


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print a table on a terminal, and a line for each finding elsewhere."""
    if not console.is_terminal:
        for finding in findings:
            console.print(escape(f"{finding.level:8}{finding.check:18}{finding}"), soft_wrap=True)
        return
    columns = (Column(no_wrap=True), Column(no_wrap=True), Column(overflow="fold"))
    grid = Table.grid(*columns, padding=(0, 2))
    for finding in findings:
        level = Text(finding.level, style=_STYLES[finding.level])
        grid.add_row(level, finding.check, escape(finding.text))
        if finding.remedy:
            grid.add_row("", "", escape(f"What to do: {finding.remedy}"))
    console.print(grid)


def to_json(findings: Sequence[Finding]) -> str:
    """Return one JSON array."""
    return json.dumps([asdict(finding) for finding in findings])
