"""Family boss_dp: the nodes and the cost of the step-size dynamic programme."""

import torch

from fewstep.search.boss import boss_steps


def boss_dp(case):
    nodes, cost = boss_steps(case.array("c"), case["K"])
    yield "nodes", torch.tensor(nodes, dtype=torch.float64), case.array("out").flatten()
    if "cost" in case:  # a sum of floats: equal up to its order
        yield "cost", torch.tensor(round(cost, 12)), torch.tensor(round(case["cost"], 12))


FAMILIES = {"boss_dp": boss_dp}
