"""`tandem report`: what came of one or several runs, on one page."""
