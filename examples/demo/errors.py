"""The error that ends the demo."""


class DemoError(Exception):
    """Its message is one line that says what is wrong and what to do."""
