"""Rankings that nothing is trained for: closed forms over who took what."""
