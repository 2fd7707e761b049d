"""Training from manifests, with a ledger of what each step consumed."""
