"""One file per experiment: get_config(point) and points()."""
