"""The demo: every part of the project on embedded clips."""
