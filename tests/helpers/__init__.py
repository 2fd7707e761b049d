"""What several tests share: corpora, runs, builds and stand-ins."""
