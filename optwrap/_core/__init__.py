"""What every part of the library stands on: trees, conditions, checks and collectives."""
