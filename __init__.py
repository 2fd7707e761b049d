"""crystalmix: build, prove and train on data mixtures.

What was fed, in which proportion, and exactly when.
"""

__version__ = "0.1.0"
