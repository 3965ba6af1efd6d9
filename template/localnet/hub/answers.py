"""Answers of the real Hub that the local one gives on request.

ROOT/answers.json lists rules, read at each request. A rule selects an answer for a repo, an account, or the requests
that match a pattern. A rule with a count is used up after that many requests, over all servers on the root. The other
answers of the real Hub follow from the content of the local one.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

from template.localnet.hub.messages import Response, json_response
from template.localnet.hub.store import HubError, locked, write_json

_FILE = "answers.json"


class Answer(StrEnum):
    """An answer that a rule selects."""

    MISSING = "missing"
    """401 without a token, 404 RepoNotFound with one, as for a private repo."""
    UNKNOWN_COMMIT = "unknown_commit"
    """404 RevisionNotFound."""
    MISSING_FILE = "missing_file"
    """The repo has no files: empty listings, 404 EntryNotFound."""
    READ_ONLY = "read_only"
    """403 for every write, as for a read token."""
    GATED = "gated"
    """Listings as ever; the file itself only for the owner."""
    DISABLED = "disabled"
    """403 without a code."""
    DISABLED_LISTED = "disabled_listed"
    """200, with `disabled: true` in the repo's info."""
    TOKEN_REFUSED = "token_refused"
    """401 about the credentials, for a request with a token."""
    TOKEN_IGNORED = "token_ignored"
    """The request counts as anonymous."""
    STALE_MAIN = "stale_main"
    """The info of main names the commit before the newest one, whose files are gone."""
    STORE_REFUSES = "store_refuses"
    """403 with XML, from the origin with the large files."""
    QUOTA = "quota"
    """429 with r=0, `seconds` to wait, and JSON."""
    QUOTA_HTML = "quota_html"
    """The same with an HTML page."""
    COMMIT_QUOTA = "commit_quota"
    """429 with r>0, and `seconds` as Retry-After unless they are 0."""
    GIT_QUEUE = "git_queue"
    """429 because the repo's queue is full."""
    UNAVAILABLE = "unavailable"
    """503 as an HTML page."""
    GATEWAY_TIMEOUT = "gateway_timeout"
    """504 as an HTML page."""
    CREATE_BUSY = "create_busy"
    """409 because another operation is in progress."""
    COMMIT_SLOW = "commit_slow"
    """The commit is made, and answered after `seconds`."""
    COMMIT_LOST = "commit_lost"
    """The commit is made, and answered with 504."""
    COMMIT_OUTDATED = "commit_outdated"
    """412 because the branch has another commit than the parent."""
    COMMIT_WITHOUT_OBJECT = "commit_without_object"
    """400 because a large file was not uploaded."""


# The requests of a rule without a pattern, where these are not all.
_PATTERNS = {
    Answer.STORE_REFUSES: "^(GET|HEAD) /storage/",
    Answer.CREATE_BUSY: "^POST /api/repos/create",
    Answer.MISSING: "^[A-Z]+ /(?!api/repos/create)",
    Answer.UNKNOWN_COMMIT: "/(revision|resolve|paths-info|tree|commits)/",
    **dict.fromkeys(
        (
            Answer.COMMIT_QUOTA,
            Answer.GIT_QUEUE,
            Answer.COMMIT_SLOW,
            Answer.COMMIT_LOST,
            Answer.COMMIT_OUTDATED,
            Answer.COMMIT_WITHOUT_OBJECT,
        ),
        "^POST /api/.*/commit/",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """An answer for requests of a repo and an account that match a pattern.

    Args:
        repo: "" for any.
        account: None for any, "" for requests without a token.
        pattern: of "METHOD /path?query"; "" for the requests that the answer is meant for.
        count: uses left, None for ever.
    """

    answer: Answer
    repo: str = ""
    account: str | None = None
    pattern: str = ""
    count: int | None = None
    seconds: float = 60.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "answer", Answer(self.answer))
        re.compile(self.pattern)

    def matches(self, line: str, repo: str, account: str) -> bool:
        """Check whether a request gets this answer."""
        if self.account not in (None, account) or self.repo.lower() not in ("", repo.lower()):
            return False
        return re.search(self.pattern or _PATTERNS.get(self.answer, ""), line) is not None


def set_answers(root: Path, *rules: Rule) -> None:
    """Replace all rules by these."""
    with locked(root):
        _write(root, rules)


def read_answers(root: Path) -> list[Rule]:
    """List the rules that are left, in the order in which they are tried."""
    path = root / _FILE
    return [Rule(**row) for row in json.loads(path.read_text())] if path.exists() else []


def take_answers(root: Path, line: str, repo: str, account: str) -> dict[Answer, Rule]:
    """Return the first matching rule of each answer, and count off one use."""
    if not (root / _FILE).exists():
        return {}
    with locked(root):
        rules = read_answers(root)
        first: dict[Answer, int] = {}
        for index, rule in enumerate(rules):
            if rule.matches(line, repo, account):
                first.setdefault(rule.answer, index)
        taken = {answer: rules[index] for answer, index in first.items()}
        counted = [index for index in first.values() if rules[index].count is not None]
        for index in counted:
            rules[index] = replace(rules[index], count=(rules[index].count or 0) - 1)
        if counted:
            _write(root, [rule for rule in rules if rule.count != 0])
    return taken


def _write(root: Path, rules: Sequence[Rule]) -> None:
    write_json(root / _FILE, [asdict(rule) for rule in rules])


def refuse(rule: Rule, user: str | None) -> Response | None:
    """Return the whole response that a rule selects, None for other rules.

    Raises: HubError for one with the Hub's usual form of an error.
    """
    match rule.answer:
        case Answer.MISSING:
            raise unseen_repo(user)
        case Answer.UNKNOWN_COMMIT:
            raise HubError(404, "Invalid rev id", "RevisionNotFound")
        case Answer.COMMIT_OUTDATED:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        case Answer.COMMIT_WITHOUT_OBJECT:
            raise HubError(400, "LFS pointer pointed to a file that does not exist")
        case Answer.QUOTA:
            message = "Too many requests: the quota of this client is used up for the present window of five minutes"
            return json_response({"error": message}, status=429, headers=_used_up(rule.seconds))
        case Answer.QUOTA_HTML:
            return _page(429, "Too Many Requests", _used_up(rule.seconds))
        case Answer.COMMIT_QUOTA:
            wait = {"Retry-After": f"{rule.seconds:.0f}"} if rule.seconds else {}
            raise HubError(429, "You have exceeded the rate limit for repository commits (128 per hour)", headers=wait)
        case Answer.GIT_QUEUE:
            raise HubError(429, "This repository is busy: maximum time in concurrency queue reached")
        case Answer.UNAVAILABLE:
            return _page(503, "Service Unavailable")
        case Answer.GATEWAY_TIMEOUT:
            return gateway_timeout()
        case Answer.CREATE_BUSY:
            raise HubError(409, "Cannot create repo: another conflicting operation is in progress")
        case Answer.DISABLED:
            raise HubError(403, "Access to this resource is disabled.")
    return None


def unseen_repo(user: str | None) -> HubError:
    """Return the error for a repo that is missing, or that a user may not see."""
    if user is None:
        return HubError(401, "Invalid username or password.")
    return HubError(404, "Repository not found", "RepoNotFound")


def gateway_timeout() -> Response:
    """Return the front end's answer when the Hub behind it takes too long."""
    return _page(504, "Gateway Time-out")


def access_denied() -> Response:
    """Return the storage's refusal of a signed address."""
    error = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    body = b'<?xml version="1.0" encoding="UTF-8"?>\n' + error
    return Response(status=403, headers={"Content-Type": "application/xml"}, body=body)


def _used_up(seconds: float) -> dict[str, str]:
    return {"RateLimit": f'"api";r=0;t={seconds:.0f}'}


def _page(status: int, title: str, headers: dict[str, str] | None = None) -> Response:
    body = f"<html>\n<head><title>{status} {title}</title></head>\n<body><h1>{status} {title}</h1></body>\n</html>\n"
    return Response(status=status, headers={"Content-Type": "text/html", **(headers or {})}, body=body.encode())
