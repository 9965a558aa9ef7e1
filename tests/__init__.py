"""The tests; the folders mirror tilewright/."""
