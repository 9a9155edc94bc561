"""`tandem compare`: losses against each other at equal tuning budgets, in tables and plots."""
