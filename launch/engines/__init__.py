"""Who starts workers: this machine, or a Ray cluster."""
