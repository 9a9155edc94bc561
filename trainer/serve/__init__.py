"""`tandem serve`: a bundle behind HTTP, in one process."""
