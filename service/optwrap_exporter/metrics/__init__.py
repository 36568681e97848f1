"""The metrics: their table, and a scrape."""
