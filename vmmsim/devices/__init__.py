"""Device models, one chip a file, named by the chip."""
