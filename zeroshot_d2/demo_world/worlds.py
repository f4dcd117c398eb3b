"""The two worlds: which classes there are, which of them are unseen, and what they look like.

A class is a pair of attributes: a tile's texture and colour ("striped green tile"), a ground's tone and material ("dark
water").
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..class_split import ClassSplit

Rgb = tuple[int, int, int]

TONES = ("light", "dark")
MATERIALS: dict[str, Rgb] = {
    "grass": (95, 125, 60),
    "water": (75, 125, 150),
    "sand": (175, 150, 110),
    "bricks": (150, 95, 75),
}
STUFF = tuple(f"{tone} {material}" for tone in TONES for material in MATERIALS)


@dataclass(frozen=True)
class World:
    """A kind of images.

    Args:
        name: of the world; its data sets are called ``<name>_val`` and so on.
        clip: the name of its CLIP.
        colours: {colour of tiles: RGB}.
        textures: of tiles.
        unseen: names of classes.
        about_unseen: a sentence about them, for reports.
        shapes: outlines of tiles.
        jitter: by how much a channel of a tile's colour may differ from ``colours``.
        radius: the least and the greatest radius of a tile, in sides of the image.
        two_grounds: share of the images that show a second ground.
        hidden: seen classes that play the unseen where a setting is to be chosen without the unseen ones.
        families: {word: colours that it means as well}.
        family_share: of the captions that the world's CLIP learns from, the share that names tiles by their family.
    """

    name: str
    clip: str
    colours: Mapping[str, Rgb]
    textures: tuple[str, ...]
    unseen: tuple[str, ...]
    about_unseen: str
    shapes: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")
    jitter: int = 14
    radius: tuple[float, float] = (0.15, 0.27)
    two_grounds: float = 0.5
    hidden: tuple[str, ...] = ()
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    family_share: float = 0.0

    @functools.cached_property
    def things(self) -> tuple[str, ...]:
        return tuple(f"{texture} {colour} tile" for texture in self.textures for colour in self.colours)

    @functools.cached_property
    def split(self) -> ClassSplit:
        """Tiles, then grounds."""
        return ClassSplit(names=self.things + STUFF, unseen=self.unseen)

    def family_of(self, colour: str) -> str:
        """The word of :attr:`families` that means ``colour`` too.

        Raises:
            KeyError: there is none.
        """
        for word, colours in self.families.items():
            if colour in colours:
                return word
        raise KeyError(colour)


DEMO_WORLD = World(
    name="demo_world",
    clip="demo-world-clip",
    colours={
        "red": (200, 40, 40),
        "green": (50, 165, 60),
        "blue": (50, 80, 205),
        "yellow": (220, 195, 40),
        "purple": (145, 55, 170),
    },
    textures=("plain", "striped", "dotted", "checkered", "netted", "speckled"),
    unseen=(
        "plain green tile",
        "striped red tile",
        "dotted green tile",
        "checkered blue tile",
        "netted yellow tile",
        "speckled purple tile",
        "dark water",
    ),
    about_unseen="Every unseen class is a new combination of attributes that occur among the seen ones.",
)
"""Classes that differ plainly. The unseen ones are pairs whose two attributes each occur among the seen classes, so a model
that understands the attributes can recognise them, and there is hardly a bias to correct."""

SPLIT = DEMO_WORLD.split
"""The classes of :data:`DEMO_WORLD`."""

# Hues in degrees: three in a family, 22 apart; 46 from the last of one family to the first of the next.
_HUES = {
    "reddish": {"crimson": 338, "scarlet": 0, "orange": 22},
    "greenish": {"lime": 68, "green": 90, "emerald": 112},
    "bluish": {"teal": 158, "cyan": 180, "azure": 202},
    "purplish": {"indigo": 248, "violet": 270, "magenta": 292},
}
_DRAW = 2026
"""The seed of the draw of :data:`DEMO_NEAR`'s unseen classes; the hidden ones are drawn with the next."""


def _rgb(hue: float) -> Rgb:
    """A colour of this hue in degrees, of saturation 0.8 and value 0.8."""
    channels = [0.8 - 0.64 * max(0.0, min(k, 4 - k, 1.0)) for k in ((n + hue / 60) % 6 for n in (5, 3, 1))]
    red, green, blue = (round(255 * channel) for channel in channels)
    return red, green, blue


def draw_colours(families: Mapping[str, tuple[str, ...]], seed: int) -> tuple[str, ...]:
    """One colour of each family, by a seeded draw."""
    rng = np.random.default_rng(seed)
    return tuple(colours[int(rng.integers(len(colours)))] for colours in families.values())


_FAMILIES = {word: tuple(hues) for word, hues in _HUES.items()}
_NEAR_TEXTURES = ("plain", "striped", "checkered")
_UNSEEN = draw_colours(_FAMILIES, _DRAW)
_SEEN = {word: tuple(colour for colour in colours if colour not in _UNSEEN) for word, colours in _FAMILIES.items()}
_HIDDEN = draw_colours(_SEEN, _DRAW + 1)


def _tiles(colours: tuple[str, ...]) -> tuple[str, ...]:
    """The tiles of these colours of :data:`DEMO_NEAR`."""
    return tuple(f"{texture} {colour} tile" for texture in _NEAR_TEXTURES for colour in colours)


DEMO_NEAR = World(
    name="demo_near",
    clip="demo-near-clip",
    colours={colour: _rgb(hue) for hues in _HUES.values() for colour, hue in hues.items()},
    textures=_NEAR_TEXTURES,
    unseen=_tiles(_UNSEEN),
    about_unseen="Every unseen class has seen neighbours of nearly its own colour, for which an uncorrected model takes it.",
    shapes=("circle", "square"),
    jitter=6,
    radius=(0.18, 0.28),
    two_grounds=0.0,
    hidden=_tiles(_HIDDEN),
    families=_FAMILIES,
    family_share=0.98,
)
"""Classes with near neighbours, as grass, bush and moss are.

Of each family of colours one is unseen, in every texture: each unseen class has the other two, in its own texture, as seen
neighbours. Captions nearly always say "bluish" for teal, cyan and azure, as they say "plant" for moss and bush. The world's
CLIP thus knows to which family a tile belongs, but hardly which of it: the text prototypes of a family lie close
to each other, and far from those of other families.
"""

WORLDS = {world.name: world for world in (DEMO_WORLD, DEMO_NEAR)}
