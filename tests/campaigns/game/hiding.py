"""Tricks with files that are not there. Each class is one strategy."""

from template.records import SubmissionKey
from template.rules.stands import align
from tests.campaigns.game.luck import SEALED_ROUNDS, is_lucky, known_luck
from tests.campaigns.game.miners import PART, Researcher, combine, public_rows
from tests.campaigns.game.submissions import ROWS, Rows
from tests.campaigns.game.tricks import EqualSets, copy_rows
from tests.campaigns.game.world import ROUNDS_PER_DAY, Game


class Withholder(EqualSets):
    """Commits to a dataset per hotkey and round, and uploads those with lucky seeds."""

    def __init__(self, game: Game, name: str, hotkeys: int = 1) -> None:
        super().__init__(game, name, hotkeys)
        self.promised: set[str] = set()

    def publish(self, game: Game, hotkey: str, rows: Rows) -> None:
        game.commit(hotkey, rows, is_visible=False)
        self.last[hotkey] = rows
        self.promised.add(hotkey)

    def offer(self, game: Game) -> None:
        super().offer(game)
        # The order of a set differs between processes.
        for hotkey in sorted(self.promised):
            value = game.competition.bench - game.true_loss(self.last[hotkey])
            if self.is_worth(game, game.competition.bench - value):
                self.publish(game, hotkey, self.make_rows(game, value))

    def react(self, game: Game) -> None:
        for hotkey in sorted(self.promised):
            if is_lucky(game, self.last[hotkey], game.block, game.block):
                game.show(hotkey)
                self.promised.discard(hotkey)


class LateUploader(EqualSets):
    """Uploads files when all seeds of their commit block are known, if they are lucky."""

    def __init__(self, game: Game, name: str, hotkeys: int = 1) -> None:
        super().__init__(game, name, hotkeys)
        self.promised: dict[str, int] = {}

    def publish(self, game: Game, hotkey: str, rows: Rows) -> None:
        game.commit(hotkey, rows, is_visible=False)
        self.last[hotkey] = rows
        self.promised[hotkey] = game.round

    def offer(self, game: Game) -> None:
        super().offer(game)
        for hotkey, start in list(self.promised.items()):
            if game.round < start + SEALED_ROUNDS:
                continue
            rows = self.last[hotkey]
            rank_block = align(game.commitments[hotkey].commit_block, game.period)
            loss = game.true_loss(rows) + known_luck(game, rows, rank_block, game.block - game.period)[0]
            if self.is_worth(game, loss):
                game.show(hotkey)
                del self.promised[hotkey]
            elif self.is_worth(game, game.true_loss(rows)):
                self.publish(game, hotkey, self.make_rows(game, game.competition.bench - game.true_loss(rows)))


class Flipper(EqualSets):
    """Hides a file for less than a day while its known seeds are unlucky."""

    def react(self, game: Game) -> None:
        for hotkey, rows in self.last.items():
            rank_block = align(game.commitments[hotkey].commit_block, game.period)
            luck, _ = known_luck(game, rows, rank_block, game.block)
            game.show(hotkey, is_visible=luck <= 0.0 or game.round % ROUNDS_PER_DAY == 0)


class HiddenHolder(Researcher):
    """Shows its file for one round of each day."""

    def react(self, game: Game) -> None:
        for hotkey in self.last:
            game.show(hotkey, is_visible=game.is_open(hotkey) or game.round % ROUNDS_PER_DAY == 0)


class Deleter(Researcher):
    """Deletes its file once the dataset is confirmed."""

    def react(self, game: Game) -> None:
        for hotkey in self.last:
            if game.is_confirmed(hotkey):
                game.show(hotkey, is_visible=False)


class RivalHider(Researcher):
    """Hides a rival's new file for a day if it would be a record."""

    rounds_hidden = ROUNDS_PER_DAY

    def __init__(self, game: Game, name: str, hotkeys: int = 1) -> None:
        super().__init__(game, name, hotkeys)
        self.first_seen: dict[SubmissionKey, int] = {}

    def react(self, game: Game) -> None:
        for hotkey in game.commitments.keys() - set(self.hotkeys):
            commitment = game.commitments[hotkey]
            is_record = game.true_loss(commitment.rows) < game.frontier - game.incentives.epsilon
            if is_record or commitment.key in self.first_seen:
                first = self.first_seen.setdefault(commitment.key, game.round)
                game.show(hotkey, is_visible=game.round >= first + self.rounds_hidden)


class ShortRivalHider(RivalHider):
    """Like RivalHider, for five rounds."""

    rounds_hidden = 5


class LongRivalHider(RivalHider):
    """Like RivalHider, for three days."""

    rounds_hidden = 3 * ROUNDS_PER_DAY


class HideAndCopy(ShortRivalHider):
    """Reads a rival's new file, hides it from others, and publishes a copy."""

    rows_kept = ROWS

    def __init__(self, game: Game, name: str, hotkeys: int = 1) -> None:
        super().__init__(game, name, hotkeys)
        self.copied: list[SubmissionKey] = []

    def act(self, game: Game) -> None:
        for key in self.first_seen:
            if key not in self.copied:
                rows = game.contents[key.commitment.rpartition(":")[2]]
                hotkey = self.hotkeys[len(self.copied) % len(self.hotkeys)]
                self.publish(game, hotkey, copy_rows(self, game, rows, self.rows_kept))
                self.copied.append(key)


class HideAndCopyPart(HideAndCopy):
    """Copies just more than the allowed rows, and has the skill to add as good ones."""

    rows_kept = ROWS * 45 // 100


class MosaicBlocker(Researcher):
    """Commits to hidden mosaics of rivals' rows, and uploads those that share too many with a new dataset."""

    def __init__(self, game: Game, name: str, hotkeys: int = 1) -> None:
        super().__init__(game, name, hotkeys)
        self.parts: dict[str, tuple[int, ...]] = {}

    def offer(self, game: Game) -> None:
        super().offer(game)
        rivals = [hotkey for hotkey in game.commitments if hotkey not in self.hotkeys]
        for hotkey, rival in zip(self.hotkeys[1:], rivals, strict=False):
            theirs = game.commitments[rival]
            others = public_rows(game, [rival, *self.hotkeys[1:]])
            if hotkey in self.last and len(set(theirs.rows.numbers) & set(self.last[hotkey].numbers)) > PART:
                self.block(game, hotkey)
            elif theirs.key in game.datasets and others:
                parts = combine(theirs.rows, others[0])
                if self.parts.get(hotkey) != parts or self.is_due(game, hotkey):
                    self.parts[hotkey] = parts
                    self.hide(game, hotkey, Rows((*parts, *self.make_rows(game, 0.0, count=ROWS - len(parts)).numbers)))

    def is_due(self, game: Game, hotkey: str) -> bool:
        """Check that a mosaic would become public by itself."""
        return False

    def hide(self, game: Game, hotkey: str, rows: Rows) -> None:
        game.commit(hotkey, rows, is_visible=False)
        self.last[hotkey] = rows

    def block(self, game: Game, hotkey: str) -> None:
        game.show(hotkey)


class SealedMosaicBlocker(MosaicBlocker):
    """Seals such mosaics for six rounds, and replaces them before if they block nothing."""

    rounds = 6

    def is_due(self, game: Game, hotkey: str) -> bool:
        return game.commitments[hotkey].reveal_block <= game.block

    def hide(self, game: Game, hotkey: str, rows: Rows) -> None:
        game.commit(hotkey, rows, sealed_rounds=self.rounds)
        self.last[hotkey] = rows

    def block(self, game: Game, hotkey: str) -> None:
        """Let it be revealed."""


class PaidRivalHider(Researcher):
    """Hides all files of rivals for three days of each two weeks."""

    def react(self, game: Game) -> None:
        is_visible = game.round % (14 * ROUNDS_PER_DAY) < 11 * ROUNDS_PER_DAY
        for hotkey in game.commitments.keys() - set(self.hotkeys):
            game.show(hotkey, is_visible=is_visible)
