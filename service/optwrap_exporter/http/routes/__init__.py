"""One module per group of routes. Its `router` function builds the routes from their dependencies."""
