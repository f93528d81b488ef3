"""The drawn world: surfaces, parts, marks and look-alikes in families."""

from iadr1_lib.world.synthetic import LOOK_ALIKES, dev_families, draw, test_families, train_families, write_world

__all__ = ["LOOK_ALIKES", "dev_families", "draw", "test_families", "train_families", "write_world"]
