"""Small networks for tests, recipes and shipped checkpoints: net(x, time, cond) -> a tensor of x's shape,
classifiers, detectors and autoencoders.
"""

from wayfield.field.nets.autoencoder import Autoencoder, AutoencoderConfig, Posterior
from wayfield.field.nets.build import NETS, build, spec_of
from wayfield.field.nets.classifier import Classifier, ClassifierConfig
from wayfield.field.nets.detector import Detector, DetectorConfig
from wayfield.field.nets.dit import DiT, DiTConfig
from wayfield.field.nets.layers import initialise
from wayfield.field.nets.mlp import ResidualMLP, ResidualMLPConfig
from wayfield.field.nets.unet import UNet, UNetConfig

__all__ = [
    "NETS",
    "Autoencoder",
    "AutoencoderConfig",
    "Classifier",
    "ClassifierConfig",
    "Detector",
    "DetectorConfig",
    "DiT",
    "DiTConfig",
    "Posterior",
    "ResidualMLP",
    "ResidualMLPConfig",
    "UNet",
    "UNetConfig",
    "build",
    "initialise",
    "spec_of",
]
