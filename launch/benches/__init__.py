"""One file per area of launch.bench: rows(quick, only)."""
