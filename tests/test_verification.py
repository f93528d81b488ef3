"""Verification: each rule's example, careful free text passes, spoiled text is caught, near-duplicates are found."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
from corruptions import CLAIMS, CORRUPTIONS, DENIALS, LEAKS, ONLY_DEFECTIVE
from hypothesis import given
from hypothesis import strategies as st

from iadr1_lib import world as synthetic
from iadr1_lib.answer import CELLS, DEFECT_TYPES
from iadr1_lib.data import load_mvtec
from iadr1_lib.expert_ad import (
    NEAR_DUPLICATE,
    RULES,
    Facts,
    Rule,
    RuleTeacher,
    Task,
    Verifier,
    facts_of,
    failures,
    full_reasoning,
    short_reasoning,
    verification,
)
from iadr1_lib.records import Record


def yes(place: str, kind: str, reasoning: str) -> Record:
    return Record("a.png", "yes", place, kind, "bolt", reasoning)


def no(reasoning: str) -> Record:
    return Record("b.png", "no", None, None, "bolt", reasoning)


# Reasoning as a careful writer puts it, by hand.
FREE_YES = [
    yes(
        "top left",
        "scratch",
        "I go over the fabric from left to right and from top to bottom. The weave is regular almost everywhere, "
        "but in the upper-left corner a thin, dark line cuts straight across the threads. Its straight course and "
        "its even width are typical of a scratch rather than of a stain, which would have soft borders. This is a "
        "clear anomaly.",
    ),
    yes(
        "center",
        "hole",
        "The tile has a uniform grain with no visible change of colour toward its edges. Right in the middle of "
        "the tile, however, there is a small, round, dark opening. Its border is sharp and the inside is much "
        "darker than the surface, so material has been pierced: this is a hole. I judge it to be a severe defect.",
    ),
    yes(
        "bottom right",
        "contamination",
        "Scanning the plate, I find the finish smooth and evenly lit. Near the lower right corner, a brownish "
        "patch with a blurred outline sits on the surface. The structure beneath it is intact and only the colour "
        "differs, which points to contamination. The plate is therefore anomalous, though the stain is slight.",
    ),
    yes(
        "right",
        "missing parts",
        "I compare the teeth of the gear one by one. On the right side of the gear, one tooth is shorter than its "
        "neighbours and ends in a flat edge. Material that should be there is missing, so the type is missing "
        "parts. No other tooth shows such a gap. The anomaly is clear.",
    ),
    yes(
        "top",
        "deformation",
        "The outline of the pin is straight along most of its length. At the top, the tip leans to the left and "
        "no longer follows the axis of the pin. Nothing is lacking and the surface is not scratched; the shape "
        "itself is bent. I call this a deformation, and the part is defective.",
    ),
    yes(
        "left",
        "abrasion",
        "First I look at the overall gloss of the metal, which is bright and even. What is left of that gloss "
        "fades on the left edge, where a dull, rubbed area with fine parallel scratches shows. No single deep "
        "line is present; the finish has been worn away over an area, as with abrasion. It is an anomaly of "
        "medium severity.",
    ),
    yes(
        "bottom",
        "presence of foreign objects",
        "The carpet's pile is dense and all right in most regions. At the bottom center, a bright fibre lies on "
        "top of the pile and casts a small shadow. It does not belong to the weave and could be lifted off, so it "
        "is a foreign object and not a stain. The item is anomalous.",
    ),
    yes(
        "top right",
        "damage",
        "I inspect the wooden board along the grain. The knot in the middle left is part of the wood. In the top "
        "right corner, by contrast, the wood is splintered: several cracks run out from one point and the "
        "structure is broken. This is damage, and it is severe. The board should be rejected as defective.",
    ),
    yes(
        "bottom left",
        "scratch",
        "Looking at the capsule as a whole, the print is legible and both halves are well aligned. A faint, "
        "bright line crosses the lower left part of the shell. It doesn't follow the seam and it's narrower than "
        "any printed stroke. I conclude that the shell has been scratched. It is a slight anomaly; the rest of "
        "the surface is normal.",
    ),
    yes(
        "top left",
        "bent tip",
        "The screw lies diagonally on a plain background. I follow its thread from the lower right to the upper "
        "left. At the top left the tip is bent sideways, while all the other turns of the thread are evenly "
        "spaced. Such a bent tip is a clear defect in shape.",
    ),
    yes(
        "center",
        "crack",
        "The hazelnut has a smooth brown shell. A dark, jagged line runs through the center of the nut and splits "
        "the shell. Neither the colour nor the outline is otherwise changed. The shell is cracked, which is a "
        "severe anomaly.",
    ),
    yes(
        "left",
        "hole",
        "The leather shows an even pattern of pores. On the left, about halfway up, one spot is far larger and "
        "deeper than any pore around it. The material is punctured there and the rim is slightly raised. Hence I "
        "see a hole, a clear anomaly in an otherwise intact surface.",
    ),
    yes(
        "right",
        "contamination",
        "I start at the top and work my way down. The upper half shows nothing unusual, and neither does the left "
        "side. In the right third of the image, however, a dark smear covers the weave without displacing the "
        "threads. The surface is soiled, not torn, so I classify it as contamination. Clearly an anomaly.",
    ),
    yes(
        "top",
        "damage",
        "The bottle is seen from above, so its rim forms a bright ring. Around the ring the light is evenly "
        "reflected, except at the top, where a piece of the rim is chipped and a fracture runs inwards. The glass "
        "itself is broken. This is a serious defect.",
    ),
    yes(
        "bottom right",
        "deformation",
        "The grid's wires cross at right angles and at equal distances. In the bottom-right part, two wires are "
        "pushed aside and the mesh opens wider there. No wire is cut and nothing lies on the grid. The geometry "
        "is distorted, so the type is deformation. There is no doubt that it is anomalous.",
    ),
    yes(
        "bottom left",
        "missing parts",
        "All pads of the board carry solder except one. It sits at the bottom left, close to the edge, and shows "
        "bare copper instead of a component. A part is missing. The remaining pads are complete and nothing else "
        "stands out. Because the circuit cannot work without it, I rate this anomaly as severe.",
    ),
    yes(
        "center",
        "scratch",
        "On this steel sheet, the brushed texture runs horizontally. Slightly to the left of the center, a bright "
        "line crosses the brushing at an angle. It is too straight to be a stain and too shallow to be a hole. A "
        "scratch of this length is a clear anomaly.",
    ),
    yes(
        "top right",
        "presence of foreign objects",
        "The pill's coating is matte and white with scattered red specks, which are normal for it. In the "
        "top-right region sits a dark particle with sharp edges. Its colour and shape match nothing in the "
        "coating: debris, that is, a foreign object on the surface. The pill is not acceptable.",
    ),
    yes(
        "left",
        "contamination",
        "Is the surface even? Mostly, yes. The texture repeats without a break in the center and on the right "
        "side. On the far left, though, a medium dark patch interrupts it. The patch has soft edges and no depth, "
        "which suggests a stain. I therefore regard the item as anomalous.",
    ),
    yes(
        "top",
        "abrasion",
        "The zipper's teeth are complete and evenly spaced. Along the upper edge of the fabric, in the middle, "
        "the threads are fuzzy and thinned out. That is the look of wear from rubbing, not of a cut. So the "
        "fabric is worn, and I count this as a slight defect.",
    ),
    yes(
        "bottom",
        "scratch",
        "I begin with the whole cable cross-section and then look at each wire. The insulation is smooth and its "
        "colours are saturated. On the lower side, a narrow bright groove interrupts the outer sheath. It has "
        "crisp borders and a constant width, typical for a scratch caused by a sharp tool. I decide that this is "
        "an anomaly, though a mild one.",
    ),
    yes(
        "top right",
        "hole",
        "The hazelnut is round and its shell has the usual light and dark stripes. Near the top right there is a "
        "tiny dark pit that breaks through the shell. The pit is circular, with a sharp rim, and no crack leads "
        "away from it. Hence the type is a hole. The nut is anomalous and the severity is moderate.",
    ),
    yes(
        "center",
        "contamination",
        "A first sweep over the leather shows fine, regular pores and a uniform brown. The central area is "
        "different: it carries a greenish film that hides the pores. The film has no sharp boundary and seems to "
        "lie on the surface, like dried glue. I take it to be contamination. Overall verdict: anomalous, clearly "
        "visible.",
    ),
    yes(
        "left",
        "deformation",
        "I check whether the wires of the mesh run parallel. They do in most parts, but along the left border one "
        "wire bulges outwards. There is no break and no foreign substance. The geometry has changed while the "
        "material is intact, so I would call it a deformation. It's a noticeable defect.",
    ),
    yes(
        "bottom right",
        "damage",
        "Scanning from the top to the bottom, the tile's glaze reflects light evenly until the lower right. "
        "There, branching cracks spread from the edge and a few fragments have come loose. Such fractures are "
        "damage to the body of the tile, not just to its finish. Severe anomaly.",
    ),
    yes(
        "top left",
        "missing parts",
        "The transistor has three legs and a black housing. Comparing the legs, the one at the upper left ends "
        "early. There is an empty place where metal should be. Since part of the component is absent, this is a "
        "case of missing parts. I would reject it.",
    ),
    yes(
        "right",
        "abrasion",
        "The screw's thread has a steady rhythm of bright crests. Toward the right end the crests become flat and "
        "dull. There is no cut and no dirt, only a loss of the finish through friction. That indicates abrasion. "
        "The part is therefore anomalous, with medium severity.",
    ),
    yes(
        "top",
        "presence of foreign objects",
        "The pill has a smooth white coating. A short dark hair is visible at the top of the pill, lying across "
        "the coating. It is not part of the product and has its own shadow. I identify it as a foreign object. "
        "The image shows an anomaly.",
    ),
    yes(
        "bottom left",
        "contamination",
        "Everything in the upper half of the wood looks regular: the grain is vertical and the tone is warm. In "
        "the lower-left quadrant, a bluish drop-shaped spot covers the grain. The grain continues underneath it, "
        "so the wood itself is not damaged. It must be a stain from a liquid, which is contamination. The result "
        "is an anomaly.",
    ),
    yes(
        "center",
        "deformation",
        "The toothbrush bristles stand in neat rows. In the centre, however, a tuft is splayed and leans to the "
        "right. The other tufts are upright. The bristles are complete and clean; only their shape is off. So "
        "this is a deformation, a clear one. The brush is defective.",
    ),
    yes(
        "right",
        "crack",
        "I see a gray magnetic tile with a faint texture. A thin jagged line starts at the right edge and runs "
        "toward the middle. Its darkness and its irregular course set it apart from the texture. The line is a "
        "crack in the material. It is a serious anomaly.",
    ),
    yes(
        "top left",
        "damage",
        "The fabric of the zipper is black and tightly woven. Threads are torn and stick out in the top-left "
        "corner. The weave is interrupted there and cannot close. This is structural damage. All other regions "
        "are fine, but this place makes the item anomalous.",
    ),
    yes(
        "bottom",
        "hole",
        "The carpet's loops form a dense field. At the bottom edge, slightly right of the middle, a loop is "
        "missing and the backing shows through a round opening. I therefore read it as a hole. It's a strong "
        "anomaly.",
    ),
    yes(
        "left",
        "scratch",
        "The metal nut is photographed on a dark background. Its bore is round and its right half is spotless. "
        "The left half carries a long bright scratch that runs from the bore to the outer edge. A scratch like "
        "this only touches the surface. It counts as an anomaly of low severity.",
    ),
    yes(
        "top left",
        "contamination",
        "Overall, the fabric presents a consistent twill weave. My attention is drawn to the top-left area, where "
        "an irregular, yellowish discoloration is visible. The threads there keep their course, meaning the "
        "structure is preserved and only the color has changed. This pattern is what one expects from a spill. "
        "The defect is contamination, and the object is anomalous.",
    ),
    yes(
        "center",
        "damage",
        "Perception: the wafer is a flat gray disc under even lighting. In its center there is a star-shaped "
        "cluster of cracks. Knowledge: a cluster of cracks with a common origin points to an impact, so the type "
        "is damage. Decision: anomaly, severe.",
    ),
    yes(
        "right",
        "missing parts",
        "Let me look at each blister in turn. The left and the center columns hold one tablet each. In the right "
        "column, the middle blister is empty, although the foil around it is intact. A tablet is missing there. "
        "An incomplete pack is an anomaly.",
    ),
    yes(
        "bottom",
        "abrasion",
        "The lens cap is black with a satin finish. At its lower edge the satin turns shiny over a broad, shallow "
        "band. Shiny bands of this kind come from rubbing against another surface. No groove can be made out, so "
        "it is abrasion and not a scratch. The severity is low, yet it is an anomaly.",
    ),
    yes(
        "top right",
        "scratch",
        "The glass surface is transparent and clean at first glance. On closer inspection, two thin parallel "
        "lines become visible in the upper right. They are brighter than the glass around them and perfectly "
        "straight. Lines like these are left by a hard edge that was dragged over the surface, which makes them "
        "scratches. I classify the image as anomalous.",
    ),
    yes(
        "bottom left",
        "hole",
        "I go over the paper sheet row by row. It's blank and even until I reach the bottom left corner. There, "
        "light shines through a small ragged opening, and fibers curl away from it. Because the sheet is "
        "perforated, I conclude it is a hole. The defect is obvious.",
    ),
    yes(
        "left",
        "presence of foreign objects",
        "The conveyor picture shows a single chocolate bar. A metallic flake lies against its left side. Its "
        "sheen is quite unlike chocolate, it casts a shadow, and nothing comparable is found on the right side or "
        "at the top. It's foreign matter. This bar must be rejected.",
    ),
    yes(
        "top",
        "deformation",
        "The can has a cylindrical body and a flat lid. Viewed along the upper rim, the lid is dented inward and "
        "no longer round. The paint is unbroken and no material is lost. A change of shape without loss of "
        "material is a deformation. The can fails the inspection.",
    ),
    yes(
        "bottom right",
        "scratch",
        "The knot near the top left is a natural feature of this board, and so is the dark grain line that runs "
        "down the middle. What does not belong to the wood is the pale, straight mark at the bottom right. It "
        "cuts across the grain at a steep angle. Only a sharp object would leave such a mark: a scratch. I "
        "consider the anomaly clear.",
    ),
    yes(
        "center",
        "presence of foreign objects",
        "A gray tile fills the image. Somewhat off the exact middle, but still in the central region, a thin red "
        "thread lies on the tile. It is loose, curved and of another material. So it is a foreign body. The tile "
        "itself may be fine, but the item as shown is anomalous.",
    ),
    yes(
        "left",
        "damage",
        "The ceramic mug is glazed in blue. Its handle, on the left, has a jagged break near the upper joint. The "
        "glaze ends abruptly there and the white body shows. This is a fracture, hence damage. It is a severe "
        "defect that makes the mug useless.",
    ),
    yes(
        "right",
        "hole",
        "I compare the four mounting holes of the bracket with one another and they agree in size. In addition "
        "there is a fifth, ragged hole on the right-hand side where the sheet should be closed. It was not "
        "drilled; its rim is torn. Therefore I call it a hole in the sense of a defect. Clear anomaly.",
    ),
    yes(
        "top",
        "contamination",
        "The mirror reflects a uniform gray. Toward the top a greasy fingerprint disturbs this reflection; its "
        "ridges can be made out. It is a film on the surface, it does not go into the glass. Thus: surface "
        "contamination. A minor anomaly.",
    ),
    yes(
        "bottom",
        "missing parts",
        "Looking at the comb, I count the teeth. They are regular in spacing from the left end to about two "
        "thirds of the length. At the bottom of the picture, two teeth have snapped off and left stumps. As they "
        "are lacking, the defect type is missing parts. The comb is defective.",
    ),
    yes(
        "center",
        "abrasion",
        "The leather strap is dark brown with a waxed finish. The middle of the strap looks lighter and rougher "
        "than both ends. No cut or stain accounts for it; the top coat has simply been worn off. I interpret this "
        "as abrasion. The strap is anomalous, to a moderate degree.",
    ),
    yes(
        "bottom right",
        "deformation",
        "The weave of the basket is made of flat strips that go over and under each other. In the lower right "
        "part of the basket one strip bows outward, and leaves a gap between itself and its neighbour. The strip "
        "itself is not broken. The regular geometry is disturbed: deformation. This counts as an anomaly.",
    ),
    yes(
        "top right",
        "contamination",
        "The ceramic tile has a glossy white glaze with no pattern, so any change in colour is easy to spot. I "
        "notice a grayish smudge in the top right part. It lacks a defined border and the glaze beneath still "
        "reflects the light, so nothing has been broken or removed. That speaks for contamination. I rate it as a "
        "slight anomaly.",
    ),
    yes(
        "left",
        "missing parts",
        "The plastic clip should be symmetric. On its left the small hook is gone, and the fracture surface is "
        "flat and pale. On its right the hook is present. With a part absent, the defect is of the type missing "
        "parts. This is a severe anomaly.",
    ),
    yes(
        "bottom",
        "scratch",
        "Light falls on the black plastic from above. Close to the bottom edge I see a hairline that catches the "
        "light. It does not branch as a crack would and it has no width to speak of. It is a scratch on the "
        "surface. The anomaly is slight but real.",
    ),
    yes(
        "center",
        "hole",
        "The knitted fabric shows rows of identical stitches. These rows are interrupted in the middle of the "
        "fabric, where several stitches have dissolved and the dark backing can be seen through the gap. The "
        "stitches around it are pulled outward. I conclude that there is a hole. The piece is faulty.",
    ),
    yes(
        "bottom left",
        "damage",
        "Most of the brick wall is regular and free of defects. The brick at the bottom left is an exception: its "
        "corner has crumbled and cracks reach into the mortar. Such a loss of integrity is structural damage. I "
        "consider this a serious anomaly.",
    ),
    yes(
        "top",
        "presence of foreign objects",
        "A row of pills fills the tray, all white and round. In the upper part, a green fragment lies between two "
        "pills. Neither its color nor its shape corresponds to a pill. A fragment that comes from elsewhere is a "
        "foreign object. The tray is anomalous.",
    ),
    yes(
        "right",
        "deformation",
        "The spring's coils are evenly wound on the left and in the middle. Toward the right, however, two coils "
        "are squeezed together and tilt. The wire is complete and its surface is clean. What has changed is the "
        "shape, so this is deformation. I call the spring defective.",
    ),
    yes(
        "top left",
        "abrasion",
        "On the anodized panel the black color is deep, apart from the top left corner, where it turns gray. The "
        "gray zone has a soft transition and follows the edge, as is usual when something rubs there again and "
        "again. No scratches stand out individually. I see abrasion, a mild anomaly.",
    ),
    yes(
        "center",
        "scratch",
        "The screen is off and mirrors the room faintly. A reflection of a lamp appears at the top left and is of "
        "no concern. Across the center runs a fine white line that does not move with any reflection. A line with "
        "such constant width is a scratch. It is clearly an anomaly.",
    ),
    yes(
        "bottom right",
        "hole",
        "I look at the cardboard box from the front. The flaps are aligned and the tape is straight. At bottom "
        "right the board has been punctured; the edges of the opening point inward. I'd say a pointed object went "
        "through, which makes it a hole. Definitely an anomaly.",
    ),
]
FREE_NO = [
    no(
        "I scan the tile from one corner to the other. Its speckled texture is dense and evenly spread, and the "
        "edges are straight. No scratch, hole or stain can be seen. The item is normal."
    ),
    no(
        "The weave of the carpet is regular, with the same brightness in every region. A darker band at the right "
        "is a shadow and does not change the threads. I find no sign of contamination or damage. It is a normal "
        "piece."
    ),
    no(
        "First I look for scratches, dents and stains on the metal, and find none. The central hole of the nut is "
        "round, as it should be, and its six edges are equally long. The gaps between the threads are even. So "
        "the part is free of defects."
    ),
    no(
        "The capsule's print is complete and legible, and its two halves meet in a clean seam. Its outline is "
        "symmetric. Nothing is missing, nothing is bent. I conclude that this capsule is not defective."
    ),
    no(
        "Starting at the top left and moving to the bottom right, I check the wood for irregularities. There is a "
        "dark knot near the center that might be mistaken for a stain, but the grain flows around it, so it "
        "belongs to the wood. The surface is otherwise uniform. There's no anomaly in this image."
    ),
    no(
        "The bottle's rim shows as an unbroken bright ring. Reflections at the left and right are mirror images "
        "of each other, so they come from the lamp. Neither cracks nor chips are visible. The bottle is flawless."
    ),
    no(
        "All pins of the component are straight and parallel. The surface is matte, with small variations in "
        "brightness that are common for this material. If there were a defect such as a bent pin, the spacing "
        "would differ. It doesn't, so the component is normal."
    ),
    no(
        "The leather has a fine, irregular grain without any interruption. I compare the four corners and the "
        "middle and see the same color and gloss. No region stands out. Verdict: a good part without defects."
    ),
    no(
        "A printed mark stands out at the bottom, but its edges are crisp and it is part of the design. Elsewhere "
        "the coating is smooth. There are no scratches and no foreign objects. The product is in order."
    ),
    no(
        "The grid consists of wires that cross at right angles. Each mesh has the same size and shape; none is "
        "pushed aside, and no wire is broken. Nothing lies on top of it. I see no reason to reject this item: it "
        "is normal."
    ),
    no(
        "I look closely at the teeth of the zipper, where defects tend to appear. They are evenly spaced and none "
        "is missing. The fabric on both sides is tightly woven. Nothing abnormal can be found, so I consider the "
        "zipper normal."
    ),
    no(
        "Colour, gloss and texture of the pill match across its whole face. The tiny red specks are spread evenly "
        "and are part of the normal appearance. Its outline is a clean circle. The pill passes: no anomaly is "
        "present."
    ),
    no(
        "The cable has three inner wires, in the expected colours, and each has a round cross-section. The "
        "insulation is smooth, with no cuts and no holes. There is nothing to object to. The cable is normal."
    ),
    no(
        "I examine the hazelnut's shell. Light and dark stripes alternate as usual, and the surface is closed. No "
        "crack, print or hole is present. A small bright highlight at the top is just a reflection. So this nut "
        "is fine."
    ),
    no(
        "Scanning the transistor from left to right, I see three straight legs that enter the board at their "
        "holes. The housing has sharp edges, and the lettering is even. I do not notice any deviation. Decision: "
        "normal."
    ),
    no(
        "The toothbrush has full rows of bristles with equal heights. Their colour pattern repeats. I can't find "
        "loose hairs, dirt or bent tufts. Thus no defect is present."
    ),
    no(
        "The tile is covered by a random speckle pattern, which makes small faults hard to see, so I look twice. "
        "The density of the speckles is the same in all nine regions. There is no oil, glue or crack. I conclude "
        "it is a normal tile."
    ),
    no(
        "The wood shows vertical grain lines and a warm tone. Two knots, on the left and near the bottom, are "
        "natural. There is neither discoloration nor any scratch. The wood is free from anomalies."
    ),
    no(
        "This metal plate is brushed, and its lines run parallel across the image. Brightness falls off slightly "
        "toward the right edge because of the lamp. The surface is clean and unbroken. Everything is as it should "
        "be, so I answer that it is normal."
    ),
    no(
        "The zipper is closed and all teeth interlock. The fabric tape is black and uniform. I checked for split "
        "teeth, frayed threads and rough spots but found none. There is no sign of an anomaly."
    ),
    no(
        "Nothing in this picture draws the eye. The concrete surface has small pores of similar size, scattered "
        "at random. I pay special attention to the corners, since chips are common there, and see clean edges. My "
        "conclusion is that it is normal."
    ),
    no(
        "The label of the bottle is straight and its print is sharp. The cap closes flush and the liquid level "
        "matches what I'd expect. There are no bubbles, particles or leaks. I consider the bottle defect-free."
    ),
    no(
        "I follow the weld seam from left to right. The ripples are equally spaced and the width stays constant. "
        "A slight change of color on both sides comes from heat and is normal. There is no gap, crack or pore. "
        "This is a sound part."
    ),
    no(
        "Viewed as a whole, the pattern of the wallpaper repeats without any shift. One flower seems darker at "
        "the right, but its twin in the next repeat is equally dark, hence it is printed that way. Brightness and "
        "contrast are stable. No anomaly."
    ),
    no(
        "The bracket has four holes, each with a clean rim, and two bends at right angles. The coating covers "
        "everything evenly. I looked for scratches along the bends, where they would be most likely, without "
        "finding any. It can be accepted."
    ),
    no(
        "The pasta pieces all have the same length, and their cut ends are straight. Color varies slightly within "
        "the usual range. I see neither foreign material nor broken pieces. The image is normal, there is no "
        "defect."
    ),
    no(
        "From the top edge to the bottom edge, the foil shines evenly. Reflections of the lamp form soft bands, "
        "which must not be confused with scratches, since they have no sharp borders. There are no folds or "
        "punctures. In conclusion, no anomalies."
    ),
    no(
        "The gear has twenty teeth of equal height. The bore in the middle and the keyway are clean. Light "
        "scatter on the flanks reveals fine, parallel machining marks, which every gear of this kind has. It is "
        "in perfect condition."
    ),
    no(
        "The silicone ring is uniformly gray. Along its whole circumference the width stays the same, and the "
        "mold line is faint but regular. There's a bright spot at the top right, caused by the lamp. I detect no "
        "tears, no dirt and no bubbles. The ring is normal."
    ),
    no(
        "I scan the board and compare every solder joint with its neighbours. All joints are shiny and "
        "cone-shaped. The printed labels are readable. No component is missing or tilted. Decision: no anomaly."
    ),
    no(
        "The apple's skin is red with yellow dots. Some dots are larger than others, which is natural. Its "
        "outline is smooth, and I see no bruise, hole or mold. Hence the apple shows no defect."
    ),
    no(
        "The denim has a diagonal weave and a typical blue-white contrast. At the left, a thick seam runs "
        "vertically; this is how the garment is made. The threads are neither torn nor pulled. I find the fabric "
        "to be normal."
    ),
    no(
        "At first sight there could be a dent in the middle of the lid, but the shading is symmetric and belongs "
        "to the embossed logo. The edge is round and the lacquer is closed. Therefore, I see this lid as free of "
        "anomalies."
    ),
    no(
        "Rows of rivets run across the sheet with constant spacing. Each rivet head is round and casts the same "
        "small shadow. The sheet between them is flat and evenly gray. I looked for corrosion as well, with no "
        "result. All good: the sheet is normal."
    ),
]
FREE = [*FREE_YES, *FREE_NO]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Record, Facts]]:
    """The rule teacher's records of a drawn world, with what was measured."""
    root = tmp_path_factory.mktemp("world") / "w"
    synthetic.write_world(root, synthetic.train_families(16), 160, seed=4)
    pairs = []
    for sample in load_mvtec(root):
        facts = facts_of(sample)
        text = next(RuleTeacher(0, short=True).write([Task(sample, facts)])).reasoning
        assert text is not None
        pairs.append((Record(sample.image, sample.label, facts.location, sample.type, sample.category, text), facts))
    return pairs


# ---------------------------------------------------------------------------------------------- the rules


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_s_example_is_rejected_by_it_and_by_no_other(rule: Rule) -> None:
    told = failures(rule.example, rule.example_facts)
    assert list(told) == [rule.name]
    assert told[rule.name].endswith(".")
    assert rule.why.endswith(".")
    assert list(failures(rule.example, rule.example_facts)) == [rule.name]


@pytest.mark.parametrize("record", FREE, ids=range(len(FREE)))
def test_careful_free_text_passes(record: Record) -> None:
    assert failures(record) == {}


GOOD_YES = yes(
    "top left", "scratch", "I scan the whole image. At the top left I see a small dark line. It is a scratch. "
    "The anomaly is clear.",
)  # fmt: skip
GOOD_NO = no("I scan the whole image. Nothing stands out in any region. I find no anomaly.")


def said(record: Record, old: str, new: str) -> Record:
    assert old in record.reasoning
    return replace(record, reasoning=record.reasoning.replace(old, new))


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        (replace(GOOD_YES, location="bottom"), "place agrees"),
        (replace(GOOD_YES, location="top"), "place agrees"),
        (replace(GOOD_YES, location="left"), "place agrees"),
        (said(GOOD_YES, "top left", "center"), "place agrees"),
        (said(replace(GOOD_YES, location="top"), "top left I see", "left lies on top"), "place agrees"),
        (said(GOOD_YES, "It is a scratch", "The bottom right is broken. It is a scratch"), "place agrees"),
        (said(GOOD_YES, "The anomaly is", "The anomaly at the lower-right corner is"), "place agrees"),
        (said(GOOD_YES, "At the top left I see", "What is left on top shows"), "place agrees"),
        (
            said(GOOD_YES, "At the top left I see", "The knot at the top left is normal. On the right I see"),
            "place agrees",
        ),
        (replace(GOOD_YES, type="hole"), "type agrees"),
        (replace(GOOD_YES, type="cut"), "type agrees"),
        (said(GOOD_YES, "scratch", "hole"), "type agrees"),
        (said(GOOD_YES, "It is a scratch", "It is a scratch or a hole"), "type agrees"),
        (said(GOOD_YES, "It is a scratch", "It is bad"), "type agrees"),
        (said(GOOD_YES, "It is a scratch", "It is not a scratch but a stain"), "type agrees"),
        (said(GOOD_YES, "The anomaly is clear", "The scratch is classified as wear: an anomaly"), "type agrees"),
        (said(GOOD_YES, "I see", "the mask shows"), "no leak of the label's origin"),
        (said(GOOD_YES, "I see", "as given there is"), "no leak of the label's origin"),
        (said(GOOD_NO, "Nothing", "By its label nothing"), "no leak of the label's origin"),
        (said(GOOD_NO, "Nothing", "By the annotation nothing"), "no leak of the label's origin"),
        (said(GOOD_YES, "The anomaly is clear", "I find no anomaly"), "no contradiction"),
        (said(GOOD_YES, "The anomaly is clear", "So the item is normal"), "no contradiction"),
        (said(GOOD_YES, "The anomaly is clear", "It isn’t an anomaly"), "no contradiction"),
        (said(GOOD_NO, "I find no anomaly", "It is a clear anomaly"), "no contradiction"),
        (said(GOOD_NO, "Nothing stands", "A scratch stands"), "no contradiction"),
        (said(GOOD_NO, "I find no anomaly", "I find no stain, it is a scratch. I find no anomaly"), "no contradiction"),
        (replace(GOOD_YES, reasoning="At the top left lies a scratch, which is a clear anomaly."), "length"),
        (replace(GOOD_NO, reasoning="I scan every region. " + "I find no anomaly. " * 3), "length"),
        (said(GOOD_NO, "I find no anomaly.", "It is even and fine, " * 45 + "I find no anomaly."), "length"),
        (said(GOOD_NO, "I find no anomaly.", "I find no anomaly. I also see the..."), "length"),
        (said(GOOD_YES, "I scan", "<answer>Yes</answer> I scan"), "format"),
        (said(GOOD_NO, "I scan", "</think><answer>No</answer> I scan"), "format"),
        (replace(GOOD_NO, location="top"), "format"),
        (said(GOOD_NO, "I scan", "- I scan"), "language"),
        (said(GOOD_NO, "I scan", "As an AI model, I scan"), "language"),
        (said(GOOD_NO, "I scan", "<b>I scan</b>"), "language"),
        (said(GOOD_NO, "I scan the whole image.", "图像表面的纹理是均匀的我检查了每个区域."), "language"),
        (said(GOOD_NO, "Nothing stands out in any region", "Nothing stands out"), "looked at"),
        (said(GOOD_YES, "The anomaly is clear", "Its course is clear"), "decision stated"),
        (said(GOOD_NO, "I find no anomaly", "The texture is even"), "decision stated"),
    ],
)  # fmt: skip
def test_a_planted_fault_is_found_by_its_rule_and_by_no_other(record: Record, rule: str) -> None:
    assert failures(GOOD_YES) == failures(GOOD_NO) == {}
    assert list(failures(record)) == [rule]


@pytest.mark.parametrize("gap", ["location", "type"])
def test_a_defect_without_place_or_type_is_rejected(gap: str) -> None:
    assert "format" in failures(replace(GOOD_YES, **{gap: None}))


def test_other_languages_in_latin_letters_are_rejected() -> None:
    german = "Ich suche die Fläche ab. Kein Kratzer und kein Loch ist zu sehen. Das Teil ist normal."
    assert "language" in failures(no(german))


def test_a_type_that_says_nothing_need_not_be_named() -> None:
    assert failures(replace(said(GOOD_YES, "It is a scratch", "It breaks the finish"), type="other")) == {}


@pytest.mark.parametrize(
    ("facts", "text", "rule"),
    [
        (Facts("yes", area=0.004, tone="dark"), "a small dark line", None),
        (Facts("yes", area=0.02, tone="dark"), "a medium-sized, dark, thin line", None),
        (Facts("yes", area=0.004, tone="dark"), "a dark line beside bright threads", None),
        (Facts("yes", area=0.004, tone="bright"), "a small dark line", "tone agrees"),
        (Facts("yes", area=0.004, tone="faint"), "a small bright line", "tone agrees"),
        (Facts("yes", area=0.004, tone="dark"), "a line that is brighter than the rest", "tone agrees"),
        (Facts("yes", area=0.05, tone="dark"), "a small dark line", "size agrees"),
        (Facts("yes", area=0.004, tone="dark"), "a large, dark line", "size agrees"),
        (Facts("yes", area=0.02, tone="dark"), "a tiny dark line", "size agrees"),
    ],
)
def test_tone_and_size_are_held_against_what_was_measured(facts: Facts, text: str, rule: str | None) -> None:
    record = said(GOOD_YES, "a small dark line", text)
    assert list(failures(record, facts)) == ([rule] if rule else [])
    assert failures(record) == {}


def test_the_place_of_a_look_alike_may_be_named_where_it_was_measured() -> None:
    record = said(GOOD_YES, "It is a scratch", "Another line lies at the bottom. It is a scratch")
    assert list(failures(record)) == ["place agrees"]
    assert failures(record, Facts("yes", "top left", "scratch", look_alike="cord", look_alike_cell="bottom")) == {}


@given(st.text(max_size=400), st.sampled_from(["yes", "no"]))
def test_any_text_can_be_examined_and_twice_alike(text: str, label: str) -> None:
    record = replace(GOOD_YES if label == "yes" else GOOD_NO, reasoning=text)
    assert failures(record) == failures(record)


@pytest.mark.parametrize("loop", ["from left ", "scratch, ", "leans a to the left ", "no ", "a"])
def test_a_teacher_that_never_stopped_is_rejected_at_once(loop: str) -> None:
    assert list(failures(replace(GOOD_YES, reasoning=loop * 20_000))) == ["length"]


words = st.sampled_from(
    re.findall(r"\S+", "no not the a is top left right center scratch hole mask anomaly normal . , : knot I")
)


@given(st.lists(words, max_size=60), st.sampled_from([*DEFECT_TYPES, "bent tip", "other"]), st.sampled_from(CELLS))
def test_words_that_the_rules_know_can_come_in_any_order(text: list[str], kind: str, cell: str) -> None:
    for record in (yes(cell, kind, " ".join(text)), no(" ".join(text))):
        assert all(sentence.endswith(".") for sentence in failures(record, Facts("yes", cell, kind, 0.1)).values())


measured = st.builds(
    Facts,
    label=st.just("yes"),
    location=st.sampled_from(CELLS),
    defect_type=st.sampled_from([*DEFECT_TYPES, "bent tip", "scratch head", "Broken Large", "cut", "other"]),
    area=st.floats(0, 1),
    contrast=st.floats(0, 1),
    tone=st.sampled_from(["dark", "bright", "faint"]),
    elongation=st.floats(1, 50),
)


@given(measured, st.integers(0, 2**32))
def test_whatever_is_measured_the_rule_teacher_s_words_agree_with_it(facts: Facts, seed: int) -> None:
    text = short_reasoning(facts, random.Random(seed))
    assert failures(Record("a.png", "yes", facts.location, facts.defect_type, "bolt", text), facts) == {}


# ---------------------------------------------------------------------------------------------- spoiled records


def caught(name: str, records: list[Record], facts: list[Facts | None], number: int) -> float:
    """Share of spoiled records that are rejected by a verifier that has accepted the sound ones."""
    verifier, rng = Verifier(repeats=True), random.Random(0)
    pairs = [(r, f) for r, f in zip(records, facts, strict=True) if r.label == "yes" or name not in ONLY_DEFECTIVE]
    rejected = 0
    if name == "duplicate":
        for record in records:
            verifier.accept(record)
    for record, seen in rng.choices(pairs, k=number):
        spoiled = CORRUPTIONS[name](record, rng)
        rejected += bool(verifier.examine(spoiled, seen))
    return rejected / number


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_spoiled_records_of_the_rule_teacher_are_caught(name: str, sound: list[tuple[Record, Facts]]) -> None:
    records, facts = [r for r, _ in sound], [f for _, f in sound]
    assert caught(name, records, list(facts), 50) >= 0.99


def test_sound_records_of_the_rule_teacher_pass(sound: list[tuple[Record, Facts]]) -> None:
    verifier = Verifier(repeats=True)
    rejected = 0
    for record, facts in sound:
        failed = verifier.examine(record, facts)
        rejected += bool(failed)
        if not failed:
            verifier.accept(record)
    assert rejected <= 0.01 * len(sound)
    assert sum(verifier.counts.values()) == rejected


@pytest.fixture(scope="module")
def whole_sentences(sound: list[tuple[Record, Facts]]) -> list[tuple[Record, Facts]]:
    """The same pictures with the rule teacher's whole sentences."""
    rng = random.Random(1)
    return [(replace(record, reasoning=full_reasoning(facts, "washer", rng)), facts) for record, facts in sound]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_spoiled_whole_sentences_are_caught(name: str, whole_sentences: list[tuple[Record, Facts]]) -> None:
    records, facts = [r for r, _ in whole_sentences], [f for _, f in whole_sentences]
    assert caught(name, records, list(facts), 50) >= 0.99


def test_sound_whole_sentences_pass(whole_sentences: list[tuple[Record, Facts]]) -> None:
    verifier = Verifier()
    rejected = 0
    for record, facts in whole_sentences:
        failed = verifier.examine(record, facts)
        rejected += bool(failed)
        if not failed:
            verifier.accept(record)
    assert rejected <= 0.01 * len(whole_sentences)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_spoiled_free_text_is_caught(name: str) -> None:
    records = [replace(record, image=f"{i}.png") for i, record in enumerate(FREE)]
    assert caught(name, records, [None] * len(records), 500) >= 0.99


# Wordings that the corruptions do not hold.
MORE_LEAKS = [
    "From the mask I can tell its outline.",
    "Since the label is 'scratch', it must be one.",
    "Based on the provided location, I look there.",
    "The description I was given mentions it.",
    "This matches the information given.",
    "It's been labelled accordingly.",
    "The image path suggests so.",
    "The segmentation map outlines it.",
    "The task states that this is so.",
    "The dataset calls it that way.",
    "As the hint suggests, I look there.",
    "The known defect is here.",
]
MORE_DENIALS = [
    "No anomalies are visible.",
    "I cannot detect any abnormality.",
    "This part passes the inspection.",
    "The item shows no defects at all.",
    "It's a perfectly normal product.",
    "The surface shows no sign of damage or defects.",
    "There isn't anything wrong with it.",
    "The sample is in good condition.",
    "Therefore the answer is no.",
    "The object does not have a defect.",
]
MORE_CLAIMS = [
    "There is clearly a hole in the material.",
    "I see damage in one place.",
    "The item is not normal.",
    "Something is wrong with the edge.",
    "The finish is scratched.",
    "It has a dent and is therefore defective.",
    "A piece is missing.",
    "I find contamination on it.",
]


@pytest.mark.parametrize(
    ("sentence", "rule"),
    [(s, "no leak of the label's origin") for s in (*LEAKS, *MORE_LEAKS)]
    + [(s, "no contradiction") for s in (*DENIALS, *CLAIMS, *MORE_DENIALS, *MORE_CLAIMS)],
)
def test_one_sentence_too_many_is_found_wherever_it_stands(sentence: str, rule: str) -> None:
    labels = (
        ["yes"] if sentence in (*DENIALS, *MORE_DENIALS) else ["no"] if rule == "no contradiction" else ["yes", "no"]
    )
    missed = 0
    records = [record for record in FREE if record.label in labels]
    for record in records:
        first, rest = record.reasoning.split(". ", 1)
        for text in (f"{first}. {sentence} {rest}", f"{record.reasoning} {sentence}"):
            missed += rule not in failures(replace(record, reasoning=text))
    assert missed <= 0.03 * len(records)  # "apart from that, ... " before it may excuse a sentence


# ---------------------------------------------------------------------------------------------- the set


def test_a_verifier_counts_what_each_rule_rejects_and_remembers_only_what_is_accepted() -> None:
    verifier = Verifier()
    assert verifier.counts == dict.fromkeys([*RULES, NEAR_DUPLICATE], 0)
    assert verifier.examine(GOOD_YES) == verifier.examine(GOOD_YES) == {}
    verifier.accept(GOOD_YES)
    assert list(verifier.examine(replace(GOOD_YES, image="c.png"))) == [NEAR_DUPLICATE]
    assert list(verifier.examine(replace(GOOD_YES, image="c.png", type="hole"))) == ["type agrees", NEAR_DUPLICATE]
    assert {k: n for k, n in verifier.counts.items() if n} == {"type agrees": 1, NEAR_DUPLICATE: 2}
    assert verifier.examine(GOOD_NO) == {}


def test_wordings_may_come_again_where_that_is_asked_for_but_no_picture() -> None:
    verifier = Verifier(repeats=True)
    verifier.accept(GOOD_YES)
    assert verifier.examine(replace(GOOD_YES, image="c.png")) == {}
    other_text = replace(GOOD_NO, image=GOOD_YES.image)
    assert list(verifier.examine(other_text)) == [NEAR_DUPLICATE]


def test_one_word_more_in_a_long_text_is_a_near_duplicate_and_another_text_is_none() -> None:
    verifier = Verifier()
    long = " ".join(r.reasoning for r in FREE_NO[:4])
    verifier.accept(no(long))
    assert NEAR_DUPLICATE in verifier.examine(replace(no(long + " Fine."), image="c.png"))
    assert NEAR_DUPLICATE not in verifier.examine(replace(FREE_NO[0], image="c.png"))


def _jaccard(a: str, b: str) -> float:
    def runs(text: str) -> set[tuple[str, ...]]:
        said = text.split()
        return {tuple(said[i : i + 5]) for i in range(max(len(said) - 4, 1))}

    return len(runs(a) & runs(b)) / len(runs(a) | runs(b))


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=30).map(" ".join), min_size=2, max_size=6), st.data())
def test_the_index_finds_what_comparing_all_with_all_finds(texts: list[str], data: st.DataObject) -> None:
    new = data.draw(st.sampled_from(texts)) + data.draw(st.sampled_from(["", " a", " b c"]))
    verifier = Verifier()
    for i, text in enumerate(texts):
        verifier.accept(replace(no(text), image=f"{i}.png"))
    found = NEAR_DUPLICATE in verifier.examine(replace(no(new.strip()), image="new.png"))
    assert found == any(_jaccard(new.strip(), text) >= 0.9 for text in texts)


def test_of_many_texts_with_sentences_in_common_few_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    alike = verification._alike
    monkeypatch.setattr(verification, "_alike", lambda a, b: compared.append(1) or alike(a, b))
    rng, verifier = random.Random(0), Verifier()
    pool = [sentence for record in FREE for sentence in record.reasoning.split(". ")]
    records = [replace(no(". ".join(rng.sample(pool, 6))), image=f"{i}.png") for i in range(2000)]
    for record in records:
        verifier._texts.has_one_like(record.reasoning)
        verifier.accept(record)
    assert len(compared) < 100 * len(records)  # all with all: 1,000 each
