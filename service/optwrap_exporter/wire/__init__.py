"""The wire contract: requests, answers and errors."""
