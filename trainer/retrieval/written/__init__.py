"""What a bundle is written of: vectors that the model computes, tables of what the dataset says."""
