"""One request to the local hub: its account, its repo and its rules."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import parse_qs, urlsplit

from template.localnet.hub.answers import Answer, Rule, unseen_repo
from template.localnet.hub.messages import Request
from template.localnet.hub.store import BRANCH, READ_TOKEN_PREFIX, Commit, HubError, HubStore, Repo, RepoMovedError


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request.

    user: of the token, None without one. names: parts of the path. rules: by the answer that they select.
    """

    store: HubStore
    request: Request
    user: str | None
    names: Mapping[str, str]
    rules: Mapping[Answer, Rule]

    @property
    def revision(self) -> str:
        return self.names.get("revision") or BRANCH

    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.request.target).query)

    def repo(self) -> Repo:
        """Return the named repo; to others than its owner a private one does not exist."""
        kind, owner = self.names["kind"] or "models", self.names["owner"]
        try:
            repo = self.store.repo(kind, f"{owner}/{self.names['name']}")
        except RepoMovedError as moved:
            if self._may_see(self.store.repo(kind, moved.repo_id)):
                raise
        except HubError as error:
            if error.status == 400:
                raise
        else:
            if self._may_see(repo):
                return repo
        raise unseen_repo(self.user)

    def _may_see(self, repo: Repo) -> bool:
        return not repo.private or self.user == repo.id.partition("/")[0]

    def commit(self, repo: Repo, *, is_info: bool = False) -> Commit:
        """Return the commit of the named revision. is_info: for the repo's info."""
        commit = self.store.commit_at(repo, self.revision)
        if Answer.MISSING_FILE in self.rules:
            return replace(commit, files={})
        if Answer.STALE_MAIN not in self.rules:
            return commit
        parent = self.store.commit_at(repo, BRANCH).parent
        if is_info and parent is not None and self.revision == BRANCH:
            return self.store.commit_at(repo, parent)
        return replace(commit, files={}) if commit.sha == parent else commit

    @property
    def has_read_token(self) -> bool:
        """Whether the request's token may only read."""
        return self.request.headers.get("authorization", "").removeprefix("Bearer ").startswith(READ_TOKEN_PREFIX)

    def require_owner(self, owner: str) -> None:
        """Check the right to write under a namespace, whose case counts."""
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        if self.user != owner:
            raise HubError(403, f"You don't have the rights to write under the namespace {owner[:100]!r}")
        if self.has_read_token or Answer.READ_ONLY in self.rules:
            raise HubError(403, "You must use a write token for this")

    def repo_url(self, repo: Repo) -> str:
        return f"{self.request.endpoint}/{'datasets/' if repo.kind == 'datasets' else ''}{repo.id}"
