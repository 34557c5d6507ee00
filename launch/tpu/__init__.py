"""What a sweep will need of a TPU slice, compiled for it without one."""
