"""The wire contract: requests, answers, errors."""
