"""The drawn world: surfaces, parts, marks and look-alikes in families.

A seed comes in, and pictures with masks go out: in memory (`draw`), or on disk in MVTec-AD's layout (`write_world`).
Begin in `drawing`: a picture is a window of a texture (`surfaces`), cut out by an outline (`outlines`), with marks
painted on it (`marks`).
"""

from iadr1_lib.world.drawing import (
    DRAWING,
    Drawing,
    clean_canvas,
    colours_of,
    draw,
    drawings,
    random_place,
    write_references,
    write_world,
)
from iadr1_lib.world.families import BENCHMARKS, TRAIN_TEXTURES, Family, dev_families, test_families, train_families
from iadr1_lib.world.marks import LOOK_ALIKES, SIZE, Canvas, X, Y, blend, blob, colour_of, opacity, segment
from iadr1_lib.world.outlines import box, polygon
from iadr1_lib.world.photographs import SIDE, Kind, Photograph, deface, kinds, shoot, texture_files, write_photographs
