"""`prepare --look`: what a source holds, and what its columns may be."""
