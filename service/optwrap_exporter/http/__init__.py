"""The HTTP server: app, middleware, routes."""
