"""What runs around the exporter; the Python here only writes the files that are generated (see `deploy.build`)."""
