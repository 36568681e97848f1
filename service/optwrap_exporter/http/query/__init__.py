"""What the query routes share: their parameters, how many run at once, and how an answer is written."""
