"""What `train --windows` does to a model between two windows."""
