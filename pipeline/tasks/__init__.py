"""The tasks by their names, and no list is kept anywhere: see `pipeline.finder`.

find("classify")                          the single concrete Task of pipeline/tasks/classify.py
find("my/shout.py", allow_code=True)      the single concrete Task of a user's own file
known()                                   ["classify", "embed", "zero_shot"]
"""

from pipeline.finder import Finder
from pipeline.tasks.base import AnnotationSettings, Task

_finder: Finder[Task] = Finder(__name__, Task, AnnotationSettings, "task")  # type: ignore[type-abstract]

find = _finder.find
known = _finder.known
