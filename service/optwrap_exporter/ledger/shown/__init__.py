"""What is shown of the state: answers, figures and sentences."""
