"""How the B x C scores of a loss are walked: torch, compiled C, Triton."""
