"""Statistics: curves from shares to loss, fitting, comparing, resampling, searching, recommending.

Belongs here: functions of arrays. Never: a recipe, a build, a run, a file beyond a CSV of losses.
"""
