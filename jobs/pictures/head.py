"""The head that train_pictures has trained, and what it makes of frozen picture vectors."""

from __future__ import annotations

from pyspark.sql import DataFrame

from itemsage_model.encoders.model_files import SavedModel, load_model
from itemsage_model.encoders.picture_tower import PictureTowerSpec
from itemsage_model.encoders.pictures.picture_encoder import PictureEncoder
from itemsage_model.serving.picture_scorer import PictureScorer
from jobs.runtime.job_run import JobRun
from schemas.errors import InputError
from schemas.metrics import PictureMetrics
from schemas.stages import TRAIN_PICTURES

Head = SavedModel[PictureTowerSpec]


def head_of(job: JobRun[PictureMetrics], encoder: PictureEncoder) -> Head | None:
    """The head that was trained last, where the settings ask for one and it is better than the base.

    Args:
        job: The run of embed_images.
        encoder: The base.

    Raises:
        InputError: there is none, or it was trained on vectors of another encoder.
    """
    if not job.settings.pictures.head:
        return None
    trained = job.record(TRAIN_PICTURES).metrics
    head = load_model(trained.model_uri, PictureTowerSpec)
    if (head.spec.base, head.spec.length) != (encoder.name, encoder.length):
        raise InputError(
            f"head {head.model_id}",
            "base",
            expected=f"one trained on {encoder.name}, {encoder.length} numbers",
            found=f"one trained on {head.spec.base}, {head.spec.length} numbers",
            cure="Run embed_images and embed_queries with pictures.head = false, then build_picture_pairs and "
            "train_pictures; or put the encoder back that it was trained on.",
        )
    if not trained.steps:
        print("  warning: no step of training made the head better than the base, so item_images are those of the base")
        return None
    print(f"  the head {head.model_id} is applied, of {trained.steps} steps", flush=True)
    return head


def with_head(images: DataFrame, head: Head) -> DataFrame:
    """The images as a head sees them; its weights travel once.

    Args:
        images: Rows of ITEM_IMAGES, by the base.
        head: The model.
    """
    sent = images.sparkSession.sparkContext.broadcast(head.weights)
    score = PictureScorer(lambda: sent.value, head.spec).scored
    return images.mapInArrow(score, "item_id string, position int, image_embedding array<float>")
