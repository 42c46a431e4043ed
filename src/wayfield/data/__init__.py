"""Data for training and measuring: numbered samples, their conditions, and a schema that says what those are."""

from wayfield.data.dataset import DATASETS, Dataset, InMemory, load_dataset

__all__ = ["DATASETS", "Dataset", "InMemory", "load_dataset"]
