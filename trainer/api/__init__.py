"""What `import tandem` gives: a run and a dataset, for notebooks and programs."""
