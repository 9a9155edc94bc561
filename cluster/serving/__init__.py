"""`tandem serve BUNDLE --address ADDRESS`: the app of `trainer.serve` on a cluster, by Ray Serve.

No module here but `replica` and `ray_serve` imports Ray Serve, which an install may lack.
"""
