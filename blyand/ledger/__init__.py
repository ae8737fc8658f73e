"""Money as one node sees it: its payments, sessions and audits. Nothing here is consensus."""
