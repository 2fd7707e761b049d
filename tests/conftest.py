"""What holds for every test: hypothesis sets no time limits, for machines are shared."""

from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
