"""A daily Airflow DAG: one task a stage, each the stage's own command, safe to retry.

Copy it into your DAGs folder, set PROJECT and SETTINGS, and have PROJECT on Airflow's PYTHONPATH. A retried stage
picks up where it can: tables are replaced in one commit, training resumes from its last checkpoint, and a stage that is
done has nothing to do. Exit codes 2 (settings), 3 (bad input) and 4 (a gate stayed shut) fail again on retry.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow import DAG
from airflow.models.baseoperator import chain
from airflow.operators.bash import BashOperator

from schemas.stages import Stage, stages_of

PROJECT = "/opt/itemsage-open"
SETTINGS = "/etc/itemsage/shop.toml"
# Such as ("embed_images",), where the settings name a folder of [pictures].
OPTIONAL_STAGES: tuple[str, ...] = ()


def stage_command(stage: Stage[Any]) -> str:
    """The shell command of one stage for the day that the run is about."""
    if stage.launcher == "python":
        run = "python -m itemsage_model.train"
    else:
        run = f"spark-submit --properties-file spark-defaults.conf jobs/{stage.name}.py"
    # data_interval_end is midnight UTC after the day: the first instant that the run does not use.
    day = "--set dates.as_of={{ data_interval_end | ds }}"
    return f"cd {PROJECT} && export PATH=$PWD/.venv/bin:$PATH && {run} --settings {SETTINGS} {day}"


with DAG(
    dag_id="itemsage_daily",
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,  # two runs at once would publish in an order nobody chose
    default_args={"retries": 2, "retry_delay": timedelta(minutes=10)},
    tags=["embeddings"],
) as dag:
    operators = [
        BashOperator(task_id=stage.name, bash_command=stage_command(stage), execution_timeout=timedelta(hours=6))
        for stage in stages_of(OPTIONAL_STAGES)
    ]
    chain(*operators)
