"""Redact secrets in log lines, tracker reports and child environments.

Secrets are found by value, for those that this process holds, and by form. Commits and sha256 digests look like many
keys, so a key of 40 or 64 hex digits is found only by value or by the name in front of it.
"""

import json
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

REDACTED = "[redacted]"
MIN_SECRET_CHARS = 6  # shorter values occur inside ordinary words and numbers

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_SECRET_VARIABLE = re.compile(
    # HF_HUB_DISABLE_IMPLICIT_TOKEN is a switch.
    r"(?!HF_HUB_DISABLE_)(?:BT_PW_.*|ALERT_URL|(?:.*_)?(?:TOKEN|PASSWORD|PASSWD|PASSPHRASE|SECRET|MNEMONIC|SEED_PHRASE|"
    r"(?:SECRET|API|ACCESS|PRIVATE)_?KEY))"
)

# Common words that are not on BIP-39's English list, so that a mnemonic holds none of them but most sentences do.
_PROSE = r"the|and|for|with|not|from|was|are|has|but|its|which|been|were|after|while|new|per"
# BIP-39's English words have 3 to 8 letters, and a mnemonic has 12 or more. The look-behind lets the first word follow
# the end of a terminal's colour code.
_WORD = rf"(?!(?:{_PROSE})\b)[a-z]{{3,8}}(?![A-Za-z0-9_])"
_MNEMONIC = rf"(?:(?<![A-Za-z0-9_])|(?<=\dm)){_WORD}(?:[\s,\"'\\]{{1,5}}{_WORD}){{11,}}"

_SECRET_FIELD = (
    r"secret_?(?:seed|phrase|key)|seed_?(?:hex|phrase)|private_?key|api_?key|access_?token|mnemonic|password|passphrase"
)
_QUOTES = r"[\\\"']*"
# What precedes a secret and stays, as the first group, then the secret.
_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"(){_MNEMONIC}",
        r"()(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{16,}",
        rf"(?i)(authorization{_QUOTES}\s*[:=,]\s*(?:b(?=[\"']))?{_QUOTES})"
        r"(?:(?:bearer|basic|token|digest)\s+)?[^\s\"',;)}\\]+",
        r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/=-]{16,}",
        r"(://)[^\s/@\"']+(?=@)",
        r"(?i)([?&][\w-]*(?:token|key|secret|password|signature)=)[^&\s\"'#\\]+",
        rf"(?i)((?:{_SECRET_FIELD}){_QUOTES}\s*[:=]\s*)(?:(\\*[\"']).*?\2|[^\s,;}}\]\"']+)",
    )
)


class Redactor:
    """Callable that replaces secrets in a text, found by form and by value."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        values = {text for secret in secrets for text in _spellings(secret.strip())}
        # Longest first: a secret may begin with another.
        longest_first = sorted(values, key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, longest_first))) if values else None

    def __call__(self, text: str) -> str:
        if self._values is not None:
            text = self._values.sub(REDACTED, text)
        for form in _FORMS:
            text = form.sub(rf"\1{REDACTED}", text)
        return text


def _spellings(secret: str) -> Iterator[str]:
    if len(secret) >= MIN_SECRET_CHARS:
        yield secret
        yield json.dumps(secret)[1:-1]
        yield repr(secret)[1:-1]
        yield quote(secret, safe="")


def secret_values(environment: Mapping[str, str]) -> list[str]:
    """Return the values of variables named like secrets: HF_TOKEN, BT_PW_..."""
    return [value for name, value in environment.items() if _SECRET_VARIABLE.fullmatch(name.upper())]


def without_secrets(environment: Mapping[str, str], *, keep: Container[str] = ()) -> dict[str, str]:
    """Return the environment without its secrets, except those in `keep`."""
    return {
        name: value
        for name, value in environment.items()
        if name in keep or not _SECRET_VARIABLE.fullmatch(name.upper())
    }


def child_environment(*, keep: Container[str] = ()) -> dict[str, str]:
    """Return the environment of a process that runs a module of this package."""
    path = os.pathsep.join(filter(None, (str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
    return {**without_secrets(os.environ, keep=keep), "PYTHONPATH": path}
