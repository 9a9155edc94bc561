"""Ray: launching, submitting, the command line. The only package that knows Ray."""
