"""The models of the zoo by name: what each is, what it learned from, what it cannot do, and which judge it gets.

A model joins the zoo as one line here, a config of the same name in configs/, and a run of `zoo.publish`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from wayfield.core.errors import unknown_name

__all__ = ["ENTRIES", "Entry", "entry"]

_DIGITS = "UCI digits as shipped in scikit-learn, BSD-3-Clause"
_SCENES = "the open world of captioned shapes, drawn by this package from a seed, Apache-2.0"
_FASHION = "Fashion-MNIST (Xiao, Rasul and Vollgraf 2017), MIT"
_EMOJI = "emoji of npm emoji-datasource-google 16.0.0: pictures (Noto) Apache-2.0, names MIT"

_WEAK = "Smaller and trained for less, on purpose: guidance away from a bad model needs one. Do not use it to make "
_CLASSIFIER = "Reads clean pictures only: noise or other kinds of pictures give answers without meaning."
_NO_WORDS = "Knows the words of `data.scenes.words` and nothing else, at most three things, pictures of 32 x 32."


@final
@dataclass(frozen=True)
class Entry:
    """About one model. about: what it is / data: what it learned from, with the licence / judge: "module:function"
    below `zoo.judging` / limits: what it cannot do.
    """

    about: str
    data: str
    judge: str
    limits: str


ENTRIES: Mapping[str, Entry] = {
    "digits": Entry(
        "Class-conditional denoiser of 8x8 handwritten digits; label 10 means no condition.",
        _DIGITS,
        "digits:denoiser",
        "Digits of 8 x 8 pixels and nothing else, in the hands of those few writers whose 1,442 pictures it saw.",
    ),
    "digits-weak": Entry(
        "A deliberately weaker twin of digits: smaller and trained for less. The bad model of autoguidance.",
        _DIGITS,
        "digits:denoiser",
        f"{_WEAK}digits.",
    ),
    "digits-classifier": Entry(
        "Classifier of clean 8x8 handwritten digits; its features serve as a space for distances.",
        _DIGITS,
        "digits:classifier",
        _CLASSIFIER,
    ),
    "scenes": Entry(
        "Text-conditional denoiser of 32x32 scenes of shapes, digits and letters: a UNet that predicts v.",
        _SCENES,
        "scenes:denoiser",
        f"{_NO_WORDS} One shape it draws well. Places and relations are at chance, digits and letters seldom legible, "
        "three different things never right: see the table.",
    ),
    "scenes-flow": Entry(
        "Text-conditional flow of the same scenes: a DiT that predicts velocities on the straight path.",
        _SCENES,
        "scenes:denoiser",
        f"{_NO_WORDS} Places are drawn as asked; pairs, digits and letters mostly not.",
    ),
    "scenes-weak": Entry(
        "A deliberately weaker twin of scenes: smaller and trained for less. The bad model of autoguidance.",
        _SCENES,
        "scenes:denoiser",
        f"{_WEAK}pictures.",
    ),
    "scenes-flow-weak": Entry(
        "A deliberately weaker twin of scenes-flow: smaller and trained for less. The bad model of autoguidance.",
        _SCENES,
        "scenes:denoiser",
        f"{_WEAK}pictures.",
    ),
    "scenes-reader": Entry(
        "Detector that reads the things in a scene: form, colour, size and centre. It judges generated scenes.",
        f"{_SCENES}; lessons in which every pair of shape and colour is about as frequent as every other",
        "scenes:reader",
        "Names the nearest form even where there is none, so ask for its certainty; reads no other kinds of pictures. "
        "Never use it to guide what it is to judge.",
    ),
    "scenes-second-reader": Entry(
        "A second, differently built reader of scenes, for guidance, so that the first one stays an independent judge.",
        f"{_SCENES}; lessons in which every pair of shape and colour is about as frequent as every other",
        "scenes:reader",
        "Names the nearest form even where there is none, so ask for its certainty; reads no other kinds of pictures.",
    ),
    "fashion": Entry(
        "Class-conditional denoiser of 28x28 grey pictures of clothes; label 10 means no condition.",
        _FASHION,
        "fashion:denoiser",
        "Ten classes of clothes, grey, 28 x 28, and nothing else.",
    ),
    "fashion-weak": Entry(
        "A deliberately weaker twin of fashion: half as wide and trained for less. The bad model of autoguidance.",
        _FASHION,
        "fashion:denoiser",
        f"{_WEAK}pictures.",
    ),
    "fashion-classifier": Entry(
        "Classifier of clean Fashion-MNIST pictures, for guidance.",
        _FASHION,
        "fashion:classifier",
        f"{_CLASSIFIER} Do not judge with it what it has guided.",
    ),
    "fashion-judge": Entry(
        "A second, differently built classifier of Fashion-MNIST: the independent judge, and a space for distances.",
        _FASHION,
        "fashion:classifier",
        f"{_CLASSIFIER} Shirts, T-shirts, pullovers and coats are confused most. Never use it to guide what it judges.",
    ),
    "emoji-autoencoder": Entry(
        "Autoencoder of 64x64 colour emoji: latents of 4 x 16 x 16, 12 times fewer numbers than the picture.",
        _EMOJI,
        "emoji:autoencoder",
        "Emoji on white only: photographs were never seen. The finest lines come out a little softer.",
    ),
    "emoji-latent": Entry(
        "Class-conditional denoiser in the latents of emoji-autoencoder; ten categories, label 10 means no condition.",
        _EMOJI,
        "emoji:denoiser",
        "It saw 1,533 pictures that differ much from each other, which is few: look at the sheet before you expect "
        "things that one could name. Categories are read by the nearest training picture, which is a weak judge.",
    ),
    "emoji-latent-weak": Entry(
        "A deliberately weaker twin of emoji-latent: smaller and trained for less. The bad model of autoguidance.",
        _EMOJI,
        "emoji:denoiser",
        f"{_WEAK}pictures.",
    ),
}
"""All models that the zoo has a place for, in the order in which they are shown."""


def entry(name: str) -> Entry:
    """The entry of that name. Raises UnknownNameError."""
    if name not in ENTRIES:
        raise unknown_name("model of the zoo", name, ENTRIES)
    return ENTRIES[name]
