"""The tile dialect: how a kernel computes, as a grid of programs over tiles of static extents. No machine is named
here."""
