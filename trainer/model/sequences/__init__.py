"""The transformer query tower: a user's sequence in one causal pass, each position a query."""
