"""Two models as one."""
