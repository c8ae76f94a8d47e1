"""The fusions, one file each."""
