"""The dial of the preset `default`: what is tried on the data before the run is trained."""
