"""What lies where in a warehouse.

<warehouse>/<table name>/              a Delta table each; schemas/tables.py declares them
<warehouse>/_runs/<stage>.json         the record of each stage's last complete run
<warehouse>/_runs/candidate            scored vectors that are not live yet; schemas/candidate.py
<warehouse>/_runs/lease                who writes the warehouse now; schemas/lease.py
<warehouse>/_names/                    where tables lie that the settings know by name; schemas/names.py
<warehouse>/_logs/                     what Spark and Python said while `itemsage run` ran; local warehouses only
<warehouse>/models/<model_id>/         model.safetensors and model.json of every trained model; of a published one the
                                       records of its training and validation, which a rollback brings back, and
                                       rotation-<sha256>.safetensors, after which its short vectors are prefixes
<warehouse>/checkpoints/<run id>/      what an unfinished training run goes on from; removed when it ends
<warehouse>/tensorboard/<run id>/      training curves; local warehouses only
<warehouse>/query_encoder/             the frozen text encoder that embed_queries fitted, and embed_items reads
<warehouse>/index/                     an index of the published vectors; retrieval/manifest.py
<warehouse>/query_projections/<space>/ how embed_queries brings queries of another length to 256 numbers
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import quote

from schemas.storage import absolute_uri

_LOG_CHARACTERS = 60
"""Characters of a warehouse's URI that the folder of its logs is called by: the last ones."""

ENCODER_FILES = ("encoder.json", "encoder.safetensors", "sha256.json")
"""The files of a stored text encoder; the last one says that the others are whole. See frozen_text/stored.py."""


@dataclass(frozen=True)
class Warehouse:
    """The places in a warehouse; `uri` is a path or a URI."""

    uri: str

    def place(self, *parts: str) -> str:
        """A path or URI inside the warehouse."""
        return "/".join([absolute_uri(self.uri).rstrip("/"), *parts])

    def relative(self, uri: str) -> str:
        """A URI inside the warehouse as the path from there, which a copy of the warehouse keeps; others absolute."""
        absolute, root = absolute_uri(uri), self.place("")
        for prefix in (root, root.removeprefix("file://"), f"file://{root}"):
            if absolute.startswith(prefix):
                return absolute.removeprefix(prefix)
        return absolute

    def resolved(self, uri: str) -> str:
        """The inverse of `relative`."""
        return uri if "://" in uri or uri.startswith("/") else self.place(uri)

    @property
    def is_local(self) -> bool:
        """Whether the warehouse is a folder of this machine's, named without a scheme."""
        return "://" not in self.uri

    def table(self, name: str) -> str:
        """Folder of a table."""
        return self.place(name)

    def record(self, stage: str) -> str:
        """The run record of a stage."""
        return self.place("_runs", f"{stage}.json")

    @property
    def records(self) -> str:
        """Folder of all run records."""
        return self.place("_runs")

    @property
    def candidate(self) -> str:
        """The file that names scored vectors which are not live yet."""
        return self.place("_runs", "candidate")

    @property
    def lease(self) -> str:
        """The file that says who writes the warehouse."""
        return self.place("_runs", "lease")

    @property
    def logs(self) -> str:
        """Folder of the logs of `itemsage run`; ./logs/<the warehouse's name> where it is no local folder."""
        if self.is_local:
            return self.place("_logs")
        # The hash parts warehouses whose names are alike once every other character is a hyphen.
        uri = self.place()
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", uri.partition("://")[2])[-_LOG_CHARACTERS:]
        name = f"{readable}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"
        return "/".join([absolute_uri("logs"), name.lstrip("-.")])

    @property
    def models(self) -> str:
        """Folder of all models; each lies in a folder of its model_id."""
        return self.place("models")

    def model(self, model_id: str) -> str:
        """Folder of one model."""
        return f"{self.models}/{model_id}"

    def checkpoints(self, run_id: str) -> str:
        """Folder of a training run's checkpoints."""
        return self.place("checkpoints", run_id)

    def tensorboard(self, run_id: str) -> str:
        """Folder of a training run's curves; empty where the warehouse is no local folder."""
        return self.place("tensorboard", run_id) if self.is_local else ""

    @property
    def index(self) -> str:
        """Folder of the index of the published vectors, where the settings name no other."""
        return self.place("index")

    @property
    def query_encoder(self) -> str:
        """Folder of the frozen text encoder."""
        return self.place("query_encoder")

    def model_encoder(self, model_id: str) -> str:
        """Folder of the frozen text encoder that a published model's queries were made with."""
        return f"{self.model(model_id)}/query_encoder"

    def query_projection(self, embedding_space: str) -> str:
        """Folder of the projection of one space's queries to the length of all query embeddings."""
        folder = quote(embedding_space, safe="")
        # Quoting leaves dots alone, and `..` would be the warehouse.
        return self.place("query_projections", folder if folder.strip(".") else folder.replace(".", "%2E"))
