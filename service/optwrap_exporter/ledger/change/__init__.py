"""How a report, or time alone, changes the state."""
