"""Learners that lie, and an arena where they meet honest ones over the real parts."""
