"""Groups of training workers on a Ray cluster: started, watched, started again."""
