"""Recipes and phases: the settings of a build.

The recipe and its phases as checked settings, with the bundled YAML files beside them. Never:
building.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.mixtures.recipes import continuing, phase, recipe
    from crystalmix.mixtures.recipes.continuing import Reading
    from crystalmix.mixtures.recipes.phase import Kind, Part, Phase
    from crystalmix.mixtures.recipes.recipe import Domain, Recipe

__getattr__, __dir__ = lazy_names(__name__)
