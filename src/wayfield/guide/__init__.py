"""Guidance: how the answers of one or several networks become the prediction that a solver follows."""

from wayfield.guide.cfg import CFG
from wayfield.guide.clip import Clip
from wayfield.guide.roles import Guidance, Plain

__all__ = ["CFG", "Clip", "Guidance", "Plain"]
