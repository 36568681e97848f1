"""What the demo says when it cannot go on."""


class DemoError(Exception):
    """Its message is one line that says what is wrong and what to do."""
