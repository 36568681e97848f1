"""Programs for the upkeep of this repository."""
