"""Rules of guidance in the form that hand.py runs: each is the combination its name says, written out."""

import hand
import torch
from hand import LABELS, B, N

BAR, EARLY, EDGE = 0.97, 0.9, 2.0  # two thresholds of AG, and an end of intervals in log-SNR
TRUE = (True, True, False, True, False, False, True, True, True, True)
TABLE = {
    "true": TRUE,
    "b0": tuple(0.01 * i for i in range(N)),
    "bc": tuple(() if t else (*(0.03 * k for k in range(i)), 0.6) for i, t in enumerate(TRUE)),
    "bu": tuple(() if t else (*(-0.02 * k for k in range(i - 1)), 0.4) for i, t in enumerate(TRUE)),
}


def wavy(x0):
    """An energy."""
    return (x0.sin() * x0.roll(1, 1)).sum(1)


def judge(x0):
    """Logits of clean data."""
    return torch.stack([x0.sum(1), (2 * x0).sin().sum(1), x0[:, 0], x0.square().sum(1)], 1)


def cfg(w, x, j, m):
    m["open"] = B
    return (c := w(x, j)) + 3 * (c - w(x, j, "null"))


def apg_on_cfg(w, x, j, m):
    c, m["open"] = w(x, j), B
    return c + 3 * hand.project(c - w(x, j, "null"), c, m, r=0.8, beta=-0.5)


def apg_on_auto(w, x, j, m):
    c, m["open"] = w(x, j), B
    return c + 1.5 * hand.project(c - w(x, j, net="weak"), c, m, r=1.5, beta=-0.75, eta=0.3)


def ag(w, x, j, m):
    c, u = w(x, j), w(x, j, "null")
    return c + hand.rows_only(hand.latch(c, u, m, BAR), 3 * (c - u))


def ag_over_apg(w, x, j, m):
    c, u = w(x, j), w(x, j, "null")
    on = hand.latch(c, u, m, BAR)
    return c + hand.rows_only(on, 3 * hand.project(c - u, c, m, r=0.8, beta=-0.5, on=on))


def apg_over_ag(w, x, j, m):
    """A gate inside a shaper: momentum goes on, and pushes, where the gate has closed."""
    c, u = w(x, j), w(x, j, "null")
    on = hand.latch(c, u, m, BAR)
    return c + 3 * hand.project(hand.rows_only(on, c - u), c, m, r=0.8, beta=-0.5)


def linear_in_interval(w, x, j, m):
    if w.log_snr(j) > EDGE:
        m["open"] = None
        return w(x, j)
    c, u = hand.linear_answer(w, x, j, m, TABLE)
    return c + 3 * (c - u)


def cfg_pp_rescaled(w, x, j, m):
    c, u, m["open"] = w(x, j), w(x, j, "null"), B
    guided = w.eps(x, j, c - 0.4 * (c - u))
    return (x - w.sigma[j] * hand.respread(guided, w.eps(x, j, c), 0.7)) / w.alpha[j], w.eps(x, j, u)


def energy_and_cfg(w, x, j, m):
    c, m["open"] = w(x, j), B
    down = hand.gradient(lambda p: wavy(w(p, j)), x)
    return c + 3 * (c - w(x, j, "null")) - 0.2 * w.sigma[j] ** 2 / w.alpha[j] * down


def classifier_and_cfg(w, x, j, m):
    c, m["open"] = w(x, j), B
    up = hand.gradient(lambda p: (judge(w(p, j)) / 2).log_softmax(1)[range(B), LABELS["cond"]], x)
    return c + 3 * (c - w(x, j, "null")) + 0.3 * w.sigma[j] ** 2 / w.alpha[j] * up


def ag_over_cfg_and_energy(w, x, j, m):
    c, u = w(x, j), w(x, j, "null")
    down = hand.gradient(lambda p: wavy(w(p, j)), x)
    push = 3 * (c - u) - 0.2 * w.sigma[j] ** 2 / w.alpha[j] * down
    return c + hand.rows_only(hand.latch(c, u, m, BAR), push)


def ag_over_energy_beside_cfg(w, x, j, m):
    c, u = w(x, j), w(x, j, "null")
    down = -0.2 * w.sigma[j] ** 2 / w.alpha[j] * hand.gradient(lambda p: wavy(w(p, j)), x)
    return c + 3 * (c - u) + hand.rows_only(hand.latch(c, u, m, BAR), down)


def two_latches(w, x, j, m):
    """Two gates of one difference; its price is paid where either is open."""
    c, u = w(x, j), w(x, j, "null")
    early, late = hand.latch(c, u, m, EARLY, "early"), hand.latch(c, u, m, BAR, "late")
    m["open"] = sum(a or b for a, b in zip(early, late, strict=True))
    return c + hand.rows_only(early, 2 * (c - u)) + hand.rows_only(late, c - u)


def ag_and_interval_and_auto(w, x, j, m):
    c, u = w(x, j), w(x, j, "null")
    out = c + (c - w(x, j, net="weak"))
    if not -3.0 <= w.log_snr(j) <= EDGE:
        m["open"] = None
        return out
    return out + hand.rows_only(hand.latch(c, u, m, BAR), 3 * (c - u))


def cfg_versus(w, x, j, m):
    c, u, c2, u2 = (w(x, j, k, net) for net in ("main", "base") for k in ("cond", "null"))
    m["open"] = B
    mine, theirs = c + 3 * (c - u), c2 + 3 * (c2 - u2)
    return theirs + 1.6 * (mine - theirs)


def apg_versus(w, x, j, m):
    c, u, c2, u2 = (w(x, j, k, net) for net in ("main", "base") for k in ("cond", "null"))
    m["open"] = B
    mine = c + 3 * hand.project(c - u, c, m, r=0.8, beta=-0.5, name="mine")
    theirs = c2 + 3 * hand.project(c2 - u2, c2, m, r=0.8, beta=-0.5, name="theirs")
    return theirs + 1.6 * (mine - theirs)


def ag_versus(w, x, j, m):
    """Each network's guidance latches by itself."""
    c, u, c2, u2 = (w(x, j, k, net) for net in ("main", "base") for k in ("cond", "null"))
    mine, theirs = hand.latch(c, u, m, BAR, "mine"), hand.latch(c2, u2, m, BAR, "theirs")
    m["open"] = sum(mine) + sum(theirs)
    above, below = c + hand.rows_only(mine, 3 * (c - u)), c2 + hand.rows_only(theirs, 3 * (c2 - u2))
    return below + 1.6 * (above - below)


def ag_holding(order):
    def rule(w, x, j, m):
        c, u = w(x, j), w(x, j, "null")
        on = hand.latch(c, u, m, BAR)
        known = m.get("known", [()] * B)
        known = [(*old[-1:], (j, c[k] - u[k])) if on[k] else old for k, old in enumerate(known)]
        m["known"] = known
        gaps = []
        for have in known:
            (i, last), (h, former) = have[-1], have[0]
            gaps.append(last + (j - i) / (i - h) * (last - former) if order and i > h else last)
        return c + 3 * torch.stack(gaps)

    return rule


def holding_at_odd_steps(w, x, j, m):
    """The second evaluation of Heun's even steps asks the network, that of odd ones holds."""
    c, true = w(x, j), m.setdefault("steps", 0) % 2 == 0
    m["steps"], m["open"] = m["steps"] + 1, B if true else None
    gap = c - w(x, j, "null") if true else m["gap"]
    m["gap"] = gap
    return c + 3 * gap


def and_not(w, x, j, m, shape=False):
    u, m["open"] = w(x, j, "null"), B
    d = sum(k * (w(x, j, name) - u) for name, k in (("cond", 3.0), ("second", 2.0), ("bad", -1.5)))
    return u + (hand.project(d, u, m, r=2.0, beta=-0.5) if shape else d)


def and_not_shaped(w, x, j, m):
    return and_not(w, x, j, m, shape=True)


def scheduled_apg(w, x, j, m):
    """From factor 0 (closed: momentum stands still) at log-SNR -3 to 1 at 3."""
    c, share = w(x, j), min(max((w.log_snr(j) + 3) / 6, 0.0), 1.0)
    m["open"] = B if share else None
    if not share:
        return c
    return c + 3 * share * hand.project(c - w(x, j, "null"), c, m, r=0.8, beta=-0.5)


def uncorrected(w, x, j, m):
    """Guided in the first evaluation of a step alone."""
    first = m.setdefault("steps", 0) == j
    m["steps"], m["open"] = m["steps"] + 1, B if first else None
    c = w(x, j)
    return c + 3 * (c - w(x, j, "null")) if first else c


def mixed_and_clipped(w, x, j, m):
    """Away from another condition by sample, and clipped."""
    c, m["open"] = w(x, j), B
    by = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64)[:, None]
    return (c + by * (c - w(x, j, "bad"))).clamp(-1.0, 0.8)
