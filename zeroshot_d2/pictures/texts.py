"""Names in pictures as they are: ``$`` is no mathematics, and every script is set in an installed font that has it."""

from __future__ import annotations

import logging
import unicodedata
from functools import cache, lru_cache
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

logger = logging.getLogger(__name__)

_BASE_FONT = "DejaVu Sans"
# These two hold a picture of a code point, or of mathematics, for characters that they do not have.
_NO_TEXT_FONTS = ("Last Resort", "STIX", "cm", "DejaVu Math")


class PlainTextFigure(Figure):
    """A figure that shows its texts letter by letter: names of classes and files are not in matplotlib's mark-up."""

    def draw(self, renderer: Any) -> None:
        """Draw, as :class:`matplotlib.figure.Figure`, after each text has its font."""
        for text in self.findobj(Text):
            text.set_parse_math(False)
            families = families_for(text.get_text())
            if families != (_BASE_FONT,):
                text.set_fontfamily(list(families))
        super().draw(renderer)


@lru_cache(maxsize=4096)
def families_for(text: str) -> tuple[str, ...]:
    """Font families that together have the characters of ``text``, matplotlib's own first.

    Where no installed font has some of them, that is said once in the log.
    """
    missing = {ord(letter) for letter in text if not letter.isspace() and unicodedata.category(letter)[0] != "C"}
    missing -= _characters(font_manager.findfont(_BASE_FONT))
    families = [_BASE_FONT]
    for name, path in _installed() if missing else ():
        found = missing & _characters(path)
        if found:
            families.append(name)
            missing -= found
        if not missing:
            break
    if missing:
        shown = "".join(chr(point) for point in sorted(missing)[:20])
        logger.warning(
            "no installed font has %s (of %r): pictures show boxes. Install one, for example Noto Sans of the script (Noto "
            "Sans CJK for Chinese, Japanese and Korean; Debian: fonts-noto-cjk, fonts-noto-core), and remove matplotlib's "
            "font list in %s",
            shown,
            text,
            matplotlib.get_cachedir(),
        )
    return tuple(families)


@cache
def _installed() -> tuple[tuple[str, str], ...]:
    """(family, path) of every installed font of text, once per family, Noto first since it covers whole scripts."""
    fonts = {font.name: font.fname for font in font_manager.fontManager.ttflist if not font.name.startswith(_NO_TEXT_FONTS)}
    return tuple(sorted(fonts.items(), key=lambda font: (not font[0].startswith("Noto Sans"), font[0])))


@lru_cache(maxsize=512)
def _characters(path: str) -> frozenset[int]:
    """The code points that a font file has; none where it cannot be read."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError) as error:
        logger.debug("cannot read the font %s: %s", path, error)
        return frozenset()
