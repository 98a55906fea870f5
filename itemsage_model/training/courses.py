"""All courses of training, by the name of their stage."""

from __future__ import annotations

from itemsage_model.training.graph_inputs import GRAPH_TOWER
from itemsage_model.training.inputs import Course
from itemsage_model.training.item_inputs import ITEM_TOWER
from itemsage_model.training.picture_inputs import PICTURE_TOWER
from itemsage_model.training.query_inputs import QUERY_ENCODER

_COURSES = (ITEM_TOWER, QUERY_ENCODER, GRAPH_TOWER, PICTURE_TOWER)


def course_of(stage: str) -> Course:
    """The course of the stage with this name.

    Raises:
        KeyError: no stage of this name trains.
    """
    for course in _COURSES:
        if course.stage.name == stage:
            return course
    raise KeyError(f"stage {stage!r} trains nothing; {', '.join(one.stage.name for one in _COURSES)} do")
