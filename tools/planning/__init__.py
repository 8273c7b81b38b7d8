"""The sub-commands of tools/plan.py."""
