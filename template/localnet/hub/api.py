"""The Hub's HTTP API over a `HubStore`: requests in, responses out, no sockets.

Covers the requests of huggingface_hub to create dataset and model repos, and to commit, list and download files, large
ones included. No deletions, pull requests or spaces. `template.localnet.hub.answers` has the refusals that a rule
selects.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from urllib.parse import quote, unquote, urlsplit

from template.localnet.hub import files, reads, writes
from template.localnet.hub.answers import Answer, Rule, access_denied, refuse, take_answers
from template.localnet.hub.call import Call
from template.localnet.hub.messages import Request, Response, error_response
from template.localnet.hub.store import HubError, HubStore, RepoMovedError

_REPO_PATH = re.compile(
    r"/(?:api/(?:resolve-cache/)?(?:datasets|models)/|storage/(?:datasets|models)/|datasets/)?"
    r"(?P<owner>[^/]+)/(?P<name>[^/]+?)(?:\.git)?/?(?:/.*)?"
)
# Quotas of a client without a token, of which this hub counts nothing; a rule uses them up.
_QUOTAS = {"api": (499, 500), "resolvers": (2999, 3000)}


def respond(store: HubStore, request: Request) -> Response:
    """Return the Hub's response to a request."""
    path = urlsplit(request.target).path
    is_api = path.startswith("/api/")
    try:
        response = _answer(store, request, path)
    except RepoMovedError as moved:
        response = _redirect(request, moved.repo_id)
    except HubError as error:
        response = error_response(error, is_text=not is_api)
    return replace(response, headers={**_rate_limit(path), **response.headers})


def respond_from_storage(store: HubStore, request: Request) -> Response:
    """Return the response of the origin with the large files."""
    rules = _take_rules(store, request, "")
    return access_denied() if Answer.STORE_REFUSES in rules else files.respond_from_storage(store, request)


def _answer(store: HubStore, request: Request, path: str) -> Response:
    header = request.headers.get("authorization")
    user = None if header is None else store.owner_of(header.removeprefix("Bearer "))
    rules = _take_rules(store, request, user or "")
    if Answer.TOKEN_IGNORED in rules:
        header = user = None
    if header is not None and (user is None or Answer.TOKEN_REFUSED in rules):
        raise HubError(401, "Invalid credentials in Authorization header")
    for rule in rules.values():
        if (refusal := refuse(rule, user)) is not None:
            return refusal
    for methods, pattern, handler in _ROUTES:
        if request.method in methods and (match := pattern.fullmatch(path)):
            names = {key: unquote(text) for key, text in match.groupdict("").items()}
            return handler(Call(store=store, request=request, user=user, names=names, rules=rules))
    raise HubError(404, "No such page")


def _take_rules(store: HubStore, request: Request, account: str) -> Mapping[Answer, Rule]:
    return take_answers(store.root, f"{request.method} {request.target}", _repo_of(request, account), account)


def _repo_of(request: Request, account: str) -> str:
    """Return the id of the repo that a request is about, "" for none."""
    path = urlsplit(request.target).path
    if path == "/api/repos/create":
        with suppress(HubError):
            body = writes.parse_object(request.body)
            return f"{body.get('organization') or account}/{body.get('name')}"
    match = _REPO_PATH.fullmatch(path)
    return f"{unquote(match['owner'])}/{unquote(match['name'])}" if match is not None else ""


def _redirect(request: Request, repo_id: str) -> Response:
    """Lead to a repo's present name, on the same host, with the rest of the address."""
    parts = urlsplit(request.target)
    match = _REPO_PATH.fullmatch(parts.path)
    assert match is not None, "a repo was found"
    path = f"{parts.path[: match.start('owner')]}{quote(repo_id)}{parts.path[match.end('name') :]}"
    location = f"{path}?{parts.query}" if parts.query else path
    body = f"Temporary Redirect. Redirecting to {location}".encode()
    return Response(status=307, headers={"Location": location, "Content-Type": "text/plain; charset=utf-8"}, body=body)


def _rate_limit(path: str) -> dict[str, str]:
    if path.startswith("/api/resolve-cache/"):
        return {}
    name = "api" if path.startswith("/api/") else "resolvers" if "/resolve/" in path else "pages"
    left, quota = _QUOTAS.get(name, (99, 100))
    return {
        "RateLimit": f'"{name}";r={left};t=295',
        "RateLimit-Policy": f'"fixed window";"{name}";q={quota};w=300',
    }


_Handler = Callable[[Call], Response]
_REPO = r"(?P<kind>datasets|models)/(?P<owner>[^/]+)/(?P<name>[^/]+)"
_API = f"/api/{_REPO}"
_REVISION = r"/(?P<revision>[^/]+)"
_PAGE = r"/(?:(?P<kind>datasets)/)?(?P<owner>[^/]+)/(?P<name>[^/]+)"
_ROUTES: list[tuple[tuple[str, ...], re.Pattern[str], _Handler]] = [
    (("GET", "HEAD"), re.compile(rf"/api/resolve-cache/{_REPO}{_REVISION}/(?P<path>.+)"), files.resolve_cached),
    (("GET", "HEAD"), re.compile(rf"{_PAGE}/resolve{_REVISION}/(?P<path>.+)"), files.resolve),
    (("GET",), re.compile(_API), reads.repo_info),
    (("GET",), re.compile(rf"{_API}/revision{_REVISION}"), reads.repo_info),
    (("GET",), re.compile(rf"{_API}/tree{_REVISION}(?P<path>/.*)?"), reads.tree),
    (("POST",), re.compile(rf"{_API}/paths-info{_REVISION}"), reads.paths_info),
    (("GET",), re.compile(rf"{_API}/commits{_REVISION}"), reads.commits),
    (("GET",), re.compile(rf"{_API}/auth-check/write"), writes.auth_check),
    (("POST", "DELETE"), re.compile(rf"{_API}/branch/(?P<branch>[^/]+)"), writes.set_branch),
    (("POST",), re.compile(rf"{_API}/preupload{_REVISION}"), writes.preupload),
    (("POST",), re.compile(rf"{_API}/commit{_REVISION}"), writes.commit),
    (("POST",), re.compile(rf"{_PAGE}\.git/info/lfs/objects/batch"), writes.lfs_batch),
    (("POST",), re.compile(r"/api/repos/create"), writes.create_repo),
    (("GET",), re.compile(r"/api/whoami-v2"), reads.whoami),
]
