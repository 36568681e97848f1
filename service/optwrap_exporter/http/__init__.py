"""The HTTP server: app, middleware and routes."""
