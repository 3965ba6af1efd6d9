from tests.fixtures.validator import *
import pytest, dataclasses
def test_one_round(net):
    with open_bench(net) as bench:
        bench.validator.run()
        for k,l in bench.lines().items(): print(k[:6], l)
        print(bench.outcomes())
def test_improvement(net):
    inc=dataclasses.replace(QUICK, reward=Reward.IMPROVEMENT, evaluations=4, hold=6, seeds=Seeds.CHAIN)
    with open_bench(net, policy=Policy(max_rounds=5, blocks_per_epoch=20, block_threshold=5), incentives=inc, lucky_num=None) as bench:
        bench.validator.run()
        for k,l in bench.lines().items(): print(k[:6], l)
        for r in bench.store.ledger(bench.store.last_round_id()): print(r)
        print(bench.store.losses(bench.eval_config))
