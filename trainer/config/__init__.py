"""The config of a run, a section a file, and its presets."""
