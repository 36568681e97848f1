"""Step records: their columns, rollups, and what is drawn of them."""
