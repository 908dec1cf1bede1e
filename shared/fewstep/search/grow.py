"""One evaluation more for a table, without changing what it computes: a start for a fit of more evaluations.

A time m is put between t_i and t_{i+1}; the new row makes DDIM's step there from x_i with E_i, alpha = s_m / s_i,

    x_m = alpha x_i + (a_m - a_i alpha) x0_i

and the old row, solved for x_i, starts from x_m and weighs the new estimate by 0.
"""

import torch

from fewstep.solvers.base import first_order
from fewstep.solvers.table import Table, TableRow


def grown(table: Table) -> list[Table]:
    """The tables with a further evaluation, one for every step but the last. Rows must look at their newest state alone.

    Raises:
        ValueError: rows that look at earlier states, or steps of several rows.
    """
    if any(len(r.x) != 1 or not r.last or not r.e for r in table.lines):
        raise ValueError("only tables of one evaluation per step, from the newest state alone, can be grown")
    return [_split(table, i) for i in range(table.steps - 1)]


def _split(table: Table, i: int) -> Table:
    old, path = table.lines[i], table.path
    lam = path.log_snr(torch.tensor([old.t, old.s], dtype=torch.float64))
    t, m = torch.tensor(old.t, dtype=torch.float64), path.time_of_log_snr(lam.clamp(min=-6.0).mean())
    step = first_order(path, t, m)
    alpha, beta = step.x[0], step.e[0]
    if old.uses == "eps":  # x0 = (x - s eps)/a
        a, _, s = path.schedule(t)
        alpha, beta = alpha + beta / a.item(), -beta * s.item() / a.item()
    new = TableRow(old.t, m.item(), (alpha,), (beta,), old.uses)
    c = old.x[0] / alpha
    rest = TableRow(m.item(), old.s, (c,), (0.0, old.e[0] - c * beta, *old.e[1:]), old.uses, y=old.y)
    later = [_skip(r, k) for k, r in enumerate(table.lines[i + 1 :], 1)]
    return Table(path, (*table.lines[:i], new, rest, *later))


def _skip(r: TableRow, k: int) -> TableRow:
    """A row k rows after the split one, with weight 0 for the estimate at m."""
    return TableRow(r.t, r.s, r.x, (*r.e[:k], 0.0, *r.e[k:]) if len(r.e) > k else r.e, r.uses, y=r.y)
