"""The objectives by their names, as `pipeline.tasks` has tasks.

find("classify")                          the single concrete Objective of pipeline/training/objectives/classify.py
find("my/objective.py", allow_code=True)  the single concrete Objective of a user's own file
"""

from pipeline.finder import Finder
from pipeline.training.objectives.base import Objective, ObjectiveSettings

_finder: Finder[Objective] = Finder(__name__, Objective, ObjectiveSettings, "objective")  # type: ignore[type-abstract]

find = _finder.find
known = _finder.known
