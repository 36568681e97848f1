"""What the reports add up to. Pure: no clock, no I/O."""
