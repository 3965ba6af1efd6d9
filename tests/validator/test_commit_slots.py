"""An epoch with more rounds than the chain takes timelocked weights."""

import itertools

from template.rules.schedule import Policy
from template.validator.commit_slots import MAX_COMMITS
from tests.fixtures.logs import log_lines
from tests.fixtures.network import SMALL, Net
from tests.fixtures.validator import open_bench

PERIOD = 10
ROUNDS = 13


def test_newest_weights_of_a_long_epoch_count(net: Net) -> None:
    net.submit("alice", SMALL)
    net.admin.set_hyperparameter("CommitRevealWeightsEnabled", True)
    net.align(PERIOD)
    net.admin.set_hyperparameter("Tempo", ROUNDS * PERIOD)
    end_block = net.admin.block() + ROUNDS * PERIOD
    with log_lines() as lines, open_bench(net, policy=Policy(blocks_per_epoch=PERIOD, block_threshold=3)) as bench:
        bench.tick_until(lambda: net.admin.block() >= end_block - 1)
    commits = [block for block, *_ in net.admin.weight_commits(net.hotkey("validator"))]
    assert len(commits) == MAX_COMMITS and end_block - PERIOD <= commits[-1] < end_block
    assert max(later - earlier for earlier, later in itertools.pairwise(commits)) <= 3 * PERIOD
    assert not [line for line in lines if line.startswith(("WARNING", "ERROR"))]


def test_short_epoch_takes_weights_of_every_round(net: Net) -> None:
    net.submit("alice", SMALL)
    net.admin.set_hyperparameter("CommitRevealWeightsEnabled", True)
    net.align(PERIOD)
    net.admin.set_hyperparameter("Tempo", 5 * PERIOD)
    with open_bench(net, policy=Policy(blocks_per_epoch=PERIOD, block_threshold=3)) as bench:
        bench.run_rounds(4)
    assert len(net.admin.weight_commits(net.hotkey("validator"))) == 4
