"""The rows of the dashboard *Run*, one module for each subject."""
