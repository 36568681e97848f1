"""The durable store: an SQLite database."""
