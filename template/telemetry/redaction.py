"""Removal of secrets from what leaves the process: log lines, what is sent to trackers, environments of children.

Two kinds go: the very values of the secrets this process was given, and whatever has the form of one. Commits and
sha256 digests have the form of many keys, so a key of 40 or 64 hex digits goes only by value or by the name before it.
"""

import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from urllib.parse import quote

REDACTED = "[redacted]"

# A shorter value would be found in the middle of ordinary words and numbers.
MIN_SECRET_CHARS = 6

_SECRET_VARIABLE = re.compile(
    # HF_HUB_DISABLE_IMPLICIT_TOKEN is a switch.
    r"(?!HF_HUB_DISABLE_)(?:BT_PW_.*|(?:.*_)?(?:TOKEN|PASSWORD|PASSWD|PASSPHRASE|SECRET|MNEMONIC|SEED_PHRASE|"
    r"(?:SECRET|API|ACCESS|PRIVATE)_?KEY))"
)

# Common words of prose that are not in BIP-39's English list: no mnemonic holds one, and few sentences of twelve words
# go without.
_PROSE = (
    r"the|and|for|with|not|from|was|are|has|had|but|its|which|been|were|your|our|his|her|could|would|should|may|"
    r"than|most|does|did|done|each|some|who|why|how|out|after|while|here|new|get|set|via|per|both|many|their|them|"
    r"these|those|being|nor|too|let|using"
)

# BIP-39's English words have 3 to 8 letters, and a mnemonic has 12 or more. The look-behind lets the first one follow
# the end of a terminal's colour code.
_WORD = rf"(?!(?:{_PROSE})\b)[a-z]{{3,8}}(?![A-Za-z0-9_])"
_MNEMONIC = re.compile(rf"(?:(?<![A-Za-z0-9_])|(?<=\dm)){_WORD}(?:[\s,\"'\\]{{1,5}}{_WORD}){{11,}}")

_SECRET_FIELD = (
    r"secret_?(?:seed|phrase|key)|seed_?(?:hex|phrase)|private_?key|api_?key|access_?token|mnemonic|password|passphrase"
)
_QUOTES = r"[\\\"']*"
# Form of a secret, and what takes its place.
_FORMS: tuple[tuple[re.Pattern[str], str], ...] = (
    (_MNEMONIC, REDACTED),
    (re.compile(r"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{16,}"), REDACTED),
    (
        re.compile(
            rf"(?i)(authorization{_QUOTES}\s*[:=,]\s*(?:b(?=[\"']))?{_QUOTES})(?:(?:bearer|basic|token|digest)\s+)?[^\s\"',;)}}\\]+"
        ),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/=-]{16,}"), rf"\1{REDACTED}"),
    (re.compile(r"(://)[^\s/@\"']+(?=@)"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)([?&][\w-]*(?:token|key|secret|password|signature)=)[^&\s\"'#\\]+"), rf"\1{REDACTED}"),
    (
        re.compile(rf"(?i)((?:{_SECRET_FIELD}){_QUOTES}\s*[:=]\s*)(?:(\\*[\"']).*?\2|[^\s,;}}\]\"']+)"),
        rf"\1{REDACTED}",
    ),
)


class Redactor:
    """Callable: the text without secrets, each replaced by `[redacted]`.

    secrets: values to remove wherever they stand, also as JSON, Python or a URL spells them; those shorter than
    `MIN_SECRET_CHARS` characters are not looked for.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        values = {text for secret in secrets for text in _spellings(secret.strip())}
        # Longest first: a secret may begin with another.
        longest_first = sorted(values, key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, longest_first))) if values else None

    def __call__(self, text: str) -> str:
        if self._values is not None:
            text = self._values.sub(REDACTED, text)
        for form, replacement in _FORMS:
            text = form.sub(replacement, text)
        return text


def _spellings(secret: str) -> Iterator[str]:
    if len(secret) >= MIN_SECRET_CHARS:
        yield secret
        yield json.dumps(secret)[1:-1]
        yield repr(secret)[1:-1]
        yield quote(secret, safe="")


def secret_values(environment: Mapping[str, str]) -> list[str]:
    """Values of the environment variables that hold a secret by their name: HF_TOKEN, WANDB_API_KEY, BT_PW_... ."""
    return [value for name, value in environment.items() if _SECRET_VARIABLE.fullmatch(name.upper())]


def without_secrets(environment: Mapping[str, str], *, keep: Container[str] = ()) -> dict[str, str]:
    """The environment for a child process that has no use for the secrets in this one but those named in `keep`."""
    return {
        name: value
        for name, value in environment.items()
        if name in keep or not _SECRET_VARIABLE.fullmatch(name.upper())
    }
