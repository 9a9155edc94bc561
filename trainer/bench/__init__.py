"""`tandem bench`: what each part costs, beside a floor or a peer in the same run."""
