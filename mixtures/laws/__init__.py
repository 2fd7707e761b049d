"""Statistics: curves from shares to loss, fitting, comparing, resampling, searching, recommending.

Belongs here: functions of arrays. Never: a recipe, a build, a run, a file beyond a CSV of losses.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.mixtures.laws import (
        compare,
        distributions,
        families,
        fit,
        fit_repetition,
        loss_table,
        noise,
        recommend,
        resample,
        simplex,
    )
    from crystalmix.mixtures.laws.across_scales import (
        AcrossScales,
        across_scales,
        scale_lines,
    )
    from crystalmix.mixtures.laws.compare import Comparison
    from crystalmix.mixtures.laws.fit import Fit, FitSettings, Floats
    from crystalmix.mixtures.laws.fit_repetition import RepetitionCurve
    from crystalmix.mixtures.laws.noise import Ints
    from crystalmix.mixtures.laws.recommend import Recommendation, RecommendSettings
    from crystalmix.mixtures.laws.scale import Scales

__getattr__, __dir__ = lazy_names(__name__)
