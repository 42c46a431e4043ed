"""How good is a model of the zoo? One function for each family of data and kind of model, all with the same protocol.

    judge(model, name) -> Judged        figures with their meanings, tables, and pictures for a sheet

A judge draws its own samples from fixed seeds, so that the same file gives the same figures. What it chooses (a
guidance scale) it chooses on other prompts or seeds than those it reports on. Networks that judge generated pictures
are models of the zoo themselves; none of them guides or trains what it judges. One model takes at most about four
minutes of one CPU core.
"""

from wayfield.zoo.judging.figures import Figure, Judged, Sheet, Table, share

__all__ = ["Figure", "Judged", "Sheet", "Table", "share"]
