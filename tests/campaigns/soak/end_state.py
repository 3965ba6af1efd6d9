"""Checks of a validator's state at the end of a soak run."""

from collections import Counter, defaultdict

from tests.campaigns.soak.reference_model import ReferenceModel, key_of


def check_evaluated(model: ReferenceModel) -> None:
    """Check that every loss of a worker is recorded once."""
    done = [job for job in model.history.evaluated if job["validator"] == model.validator]
    losses = Counter((job["hotkey"], job["text"], job["loss"]) for job in done if job["loss"] is not None)
    recorded = Counter((row["hotkey"], row["entry"], row["loss"]) for row in model.state["evaluations"])
    if losses != recorded:
        model.report("losses and evaluations differ:", losses - recorded, recorded - losses)


def check_end(model: ReferenceModel) -> None:
    """Check the stands, the ledger and the rejections at the end."""
    verdicts = {key_of(row): row["reason"] for row in model.state["verdicts"]}
    if verdicts != model.rejected:
        model.report("verdicts differ:", verdicts.items() ^ model.rejected.items())
    stands, confirmed = defaultdict(list), {}
    for row in model.state["stands"]:
        blocks = ("first_block", "last_block", "entry", "commit_block", "reveal_block")
        stands[row["hotkey"]].append(tuple(row[name] for name in blocks))
    runs = {
        hotkey: sorted((run.first, run.last, run.text, run.commit, run.reveal) for run in runs)
        for hotkey, runs in model.game.runs.items()
        if runs
    }
    model.compare("stands", 0, {hotkey: sorted(rows) for hotkey, rows in stands.items()}, runs)
    for row in model.state["ledger"]:
        rank = (row["rank_block"], row["commit_block"], row["tie_break"])
        confirmed[row["hotkey"], row["digest"]] = (rank, row["registration_block"])
    ours = {
        (hotkey, model.game.digest_of(rows)): (entered.rank, entered.registration)
        for (hotkey, rows), entered in model.game.confirmed.items()
    }
    model.compare("confirmed", 0, confirmed, ours)
