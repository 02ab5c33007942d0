"""Audits: what to compare next, within which limits, and what is known of it. Knows no kind."""
