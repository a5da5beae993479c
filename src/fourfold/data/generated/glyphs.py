"""Letters and digits rendered from the fonts that matplotlib ships, then bent, blurred and dirtied with seeded torch.

Nothing is downloaded. The bitmaps depend on the FreeType inside Pillow: the same machine always renders the same images,
two machines may differ in a few pixels.
"""

import functools
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + "abdefghnqrt"  # the lower-case letters that differ in form: EMNIST's "balanced" merge
GREEK = "ΓΔΘΛΞΠΣΦΨΩ" + "αβγδεζηθλμξπσφψω"  # without the capitals and small letters that look Latin
CYRILLIC = "БДЖИЦЧШЪЫЭЮЯ"  # without those that look Latin, Greek, or like the digit 3
LETTERS = tuple(LATIN + GREEK + CYRILLIC)
DIGITS = tuple("0123456789")

# The other fonts of matplotlib are mathematical extensions, or keep their glyphs under codes of their own.
FONTS = (
    *(f"DejaVu{cut}" for cut in ("Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique")),
    *(f"DejaVu{cut}" for cut in ("SansMono", "SansMono-Bold", "SansMono-Oblique", "SansMono-BoldOblique")),
    *(f"DejaVu{cut}" for cut in ("Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic")),
    *(f"STIXGeneral{cut}" for cut in ("", "Bol", "BolIta", "Italic")),
    *("cmb10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)

CANVAS = 48  # pixels of a bitmap's side
GLYPH = 38  # pixels of the longer side of a glyph on it
SIDE = 32  # pixels of an image's side
CHUNK = 256  # images bent at once: what fits a processor's cache


def draw(classes: tuple[str, ...], per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a balanced set of images, `per_class` of each character, each in a random font and with its own distortion.

    Args:
        classes: one character per class; a label is a position in it.
        per_class: images of each class.
        generator: the only source of randomness; it advances.

    Returns:
        Images, uint8 [N, 3, 32, 32] (grey, bright ink on dark paper), and labels, int64 [N], class by class.
    """
    bitmaps, owners = _bank(classes)
    labels = torch.arange(len(classes)).repeat_interleave(per_class)
    counts = torch.bincount(owners, minlength=len(classes))
    first = counts.cumsum(0) - counts
    fonts = (torch.rand(len(labels), generator=generator) * counts[labels]).long()
    chosen = bitmaps[first[labels] + fonts]
    images = torch.cat([_distort(part, generator) for part in chosen.split(CHUNK)])
    return images.expand(-1, 3, -1, -1), labels


@functools.cache
def _bank(classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Every character in every font that has it: uint8 [M, 48, 48], and the class of each, in class order."""
    import matplotlib
    from fontTools.ttLib import TTFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [(ImageFont.truetype(str(path), 96), TTFont(path).getBestCmap()) for path in (folder / f"{f}.ttf" for f in FONTS)]
    drawn = [
        (label, _bitmap(character, font))
        for label, character in enumerate(classes)
        for font, characters in fonts
        if ord(character) in characters
    ]
    return torch.stack([bitmap for _, bitmap in drawn]), torch.tensor([label for label, _ in drawn])


def _bitmap(character: str, font: ImageFont.FreeTypeFont) -> Tensor:
    """One character, its longer side 38 pixels, in the middle of 48 x 48."""
    left, top, right, bottom = font.getbbox(character)
    glyph = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(glyph).text((-left, -top), character, fill=255, font=font)
    glyph = glyph.crop(glyph.getbbox())
    scale = GLYPH / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(glyph.resize((width, height), Image.Resampling.BOX), ((CANVAS - width) // 2, (CANVAS - height) // 2))
    return torch.from_numpy(np.array(canvas))


def _distort(bitmaps: Tensor, generator: torch.Generator) -> Tensor:
    """Bend, blur and dirty bitmaps, uint8 [N, 48, 48] -> uint8 [N, 1, 32, 32]."""
    n = len(bitmaps)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    angle, shear = uniform(-0.26, 0.26), uniform(-0.25, 0.25)  # radians (15 degrees), and slope
    stretch = torch.stack([uniform(0.75, 1.25), uniform(0.85, 1.25)], 1)  # of the glyph, across and down
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)  # [N, 2, 2]
    slant = torch.eye(2).repeat(n, 1, 1)
    slant[:, 0, 1] = shear
    matrix = turn @ slant / stretch[:, None, :]
    affine = torch.cat([matrix, uniform(-0.1, 0.1, 2, 1)], 2)  # [N, 2, 3]
    grid = F.affine_grid(affine, [n, 1, SIDE, SIDE], align_corners=False)
    bend = F.interpolate(uniform(-0.16, 0.16, 2, 4, 4), size=(SIDE, SIDE), mode="bicubic", align_corners=True)
    grid = grid + bend.permute(0, 2, 3, 1)  # [N, 2, H, W] -> [N, H, W, 2]
    ink = F.grid_sample(bitmaps[:, None].float() / 255, grid, align_corners=False)
    ink = _blur(ink, uniform(0, 1, 1, 1, 1))
    paper, pen = uniform(0.0, 0.2, 1, 1, 1), uniform(0.5, 1.0, 1, 1, 1)
    noise = uniform(0.0, 0.12, 1, 1, 1) * torch.randn(n, 1, SIDE, SIDE, generator=generator)
    return ((paper + (pen - paper) * ink + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def _blur(images: Tensor, strength: Tensor) -> Tensor:
    """Mix images [N, 1, H, W] with their Gaussian blur (1.5 pixels); strength [N, 1, 1, 1] from 0, sharp, to 1."""
    at = torch.arange(float(SIDE))
    kernel = torch.exp(-((at[:, None] - at) ** 2) / (2 * 1.5**2))  # [H, H]: a blur along one axis is a product with it
    kernel = kernel / kernel.sum(1, keepdim=True)
    return torch.lerp(images, kernel @ images @ kernel.T, strength)
