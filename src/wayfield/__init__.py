"""wayfield: steering generative models."""

__version__ = "0.1.0"
