"""What each stage counts and finds out: one dataclass a stage, kept in its run record and read by later stages."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class NoMetrics:
    """Of a stage that counts nothing but its tables' rows."""


@dataclass(frozen=True)
class Removed:
    """Files that nothing reads any more, and their bytes."""

    files: int
    bytes: int


@dataclass(frozen=True)
class MaintenanceMetrics:
    """Of maintain_tables.

    Attributes:
        dry_run: Whether it was only listed.
        compacted: By how many files the table runs is fewer.
        tables: Table -> files that no version needs which somebody may still read.
        others: What else lay there, by kind.
    """

    dry_run: bool
    compacted: int = 0
    tables: dict[str, Removed] = field(default_factory=dict)
    others: dict[str, Removed] = field(default_factory=dict)


@dataclass(frozen=True)
class QueryMetrics:
    """Of embed_queries.

    Attributes:
        encoder: The frozen text encoder's name, which is its embedding space; None where neither queries nor items
            have a text.
        texts_encoded: Queries whose embedding was made from their text.
        embedding_spaces: Query kind -> the space of its embeddings.
        explained_variance: What the text encoder's 256 dimensions keep of the texts it was fitted on, 0 to 1.
        projected_spaces: Space of embeddings of another length -> what of them the 256 dimensions keep, 0 to 1.
        truncated_texts: Encoded texts of which only the first 16,384 characters were read.
        broken_catalog_texts: Texts of items that are no UTF-8, and that the text encoder was not fitted on.
        kept_rows: Rows of query_embeddings that stayed as they were; the other figures count them too.
        made_by: Hash of encoder, projections and code: rows of equal sources are equal while it stays.
    """

    encoder: str | None
    texts_encoded: int
    embedding_spaces: dict[str, str]
    explained_variance: float | None = None
    projected_spaces: dict[str, float] = field(default_factory=dict)
    truncated_texts: int = 0
    broken_catalog_texts: int = 0
    kept_rows: int = 0
    made_by: str = ""


@dataclass(frozen=True)
class ItemTextMetrics:
    """Of embed_items: items, and what became of their texts.

    Attributes:
        encoder: The frozen text encoder's name, which is the embedding space; None where embed_queries has made none.
        texts_encoded: Distinct texts that this run has encoded.
        items_without_text: Items whose query_encoder.item_text is blank; their cell is empty.
        items_of_unknown_text: Items with a text of which the encoder knows nothing; their cell is empty.
        truncated_texts: Items of whose text only the first 16,384 characters were read.
        kept_rows: Items whose row stayed as it was; the three figures before count them too.
        made_by: Hash of encoder, settings and code: rows of equal texts are equal while it stays.
    """

    encoder: str | None
    texts_encoded: int = 0
    items_without_text: int = 0
    items_of_unknown_text: int = 0
    truncated_texts: int = 0
    kept_rows: int = 0
    made_by: str = ""


@dataclass(frozen=True)
class PictureMetrics:
    """Of embed_images.

    Attributes:
        encoder: The embedding space of item_images: the base's name, and the head's where one is applied.
        image_length: Numbers of its vectors.
        pictures: Distinct pictures of the shop that could be read, broken ones included.
        pictures_encoded: Of them, those that this run has decoded and encoded.
        rounds: Commits in which it did so; what one of them holds is not made again if the run ends early.
        kept_rows: Of them, those whose row stayed as it was.
        made_by: Hash of encoder, limits and code: rows of equal pictures are equal while it stays.
        base: The frozen picture encoder's name, which is the embedding space of picture_embeddings. Empty in records of
            before there was a head.
    """

    encoder: str
    image_length: int
    pictures: int = 0
    pictures_encoded: int = 0
    rounds: int = 0
    kept_rows: int = 0
    made_by: str = ""
    base: str = ""


@dataclass(frozen=True)
class PicturePairMetrics:
    """Of build_picture_pairs.

    Attributes:
        base: The frozen picture encoder of the vectors.
        image_length: Numbers of them.
        items: Rows of picture_features.
        pairs: Rows of picture_pairs.
        validation_pairs: Rows of picture_pairs_validation.
    """

    base: str
    image_length: int
    items: int = 0
    pairs: int = 0
    validation_pairs: int = 0


@dataclass(frozen=True)
class VocabularyMetrics:
    """Of build_vocabulary: distinct tokens of each kind in the catalog, whether the vocabulary keeps them or not."""

    distinct_char_trigrams: int = 0
    distinct_word_unigrams: int = 0
    distinct_word_bigrams: int = 0


@dataclass(frozen=True)
class ItemMetrics:
    """Of build_item_features: sums over all items, and the vocabulary that the token ids mean something in.

    Attributes:
        vocabulary_size: Number of token ids.
        vocabulary_hash: 128-bit hash of the vocabulary, hexadecimal.
        image_length: Numbers of one image vector in the cells; 256 in records of before.
        tokens: Token ids written.
        out_of_vocabulary_tokens: Tokens that the vocabulary lacks.
        truncated_tokens: Tokens beyond features.max_tokens_per_feature.
        images: Images written.
        images_beyond_limit: Images beyond model.max_images of an item.
        items_without_text: Items no text of which holds a known token.
        items_without_images: Items without a usable image.
        items_without_text_embedding: Items whose text has no frozen embedding.
        kept_rows: Items whose row stayed as it was; the other figures count them too.
        kept_from: Which files they were copied from, as `storage.files_checksum` names the version before, which
            item_feature_changes goes on from; empty where all rows were made anew.
        made_by: Hash of vocabulary, settings and code: rows of equal sources are equal while it stays.
    """

    vocabulary_size: int
    vocabulary_hash: str
    image_length: int = 256
    tokens: int = 0
    out_of_vocabulary_tokens: int = 0
    truncated_tokens: int = 0
    images: int = 0
    images_beyond_limit: int = 0
    items_without_text: int = 0
    items_without_images: int = 0
    items_without_text_embedding: int = 0
    kept_rows: int = 0
    kept_from: str = ""
    made_by: str = ""


@dataclass(frozen=True)
class TaskCounts:
    """Pairs of one task, and the events behind them: in training, held out, and cut off by the caps.

    The last four tell the training window apart: `fit` is what of the training pairs comes from before the validation
    window, `validation` what was engaged in it, whether a cap cut the pair or not; 0 in records of before.
    """

    training_pairs: int = 0
    training_events: int = 0
    held_out_pairs: int = 0
    held_out_events: int = 0
    capped_pairs: int = 0
    capped_events: int = 0
    fit_pairs: int = 0
    fit_events: int = 0
    validation_pairs: int = 0
    validation_events: int = 0


@dataclass(frozen=True)
class EventCounts:
    """What became of every event that was read: the other counts sum up to the first.

    `negative_events` count against their items; 0 in records of before.
    """

    read_events: int
    training_events: int
    held_out_events: int
    capped_events: int
    rejected_events: int
    negative_events: int = 0


@dataclass(frozen=True)
class TrainingTableMetrics:
    """Of build_training_tables: task name -> its counts, and all events."""

    tasks: dict[str, TaskCounts]
    events: EventCounts


@dataclass(frozen=True)
class QueryPairMetrics:
    """Of build_query_pairs.

    Attributes:
        encoder: The space of the pairs' frozen vectors, of texts and of items; empty = two that cannot be compared.
        texts: Distinct texts with a pair in the training window.
        pairs: Rows of query_pairs.
        events: Engagements behind the pairs before the caps.
        capped_pairs: Pairs that a cap cut.
        validation_pairs: Rows of query_pairs_validation.
        item_texts: Rows of item_text_pairs.
        queries_without_text: Queries of these kinds that have no usable text.
        blank_item_texts: Items whose text holds nothing that the frozen encoder knows.
        changed_queries: Queries of these kinds that have changed since embed_queries, and are left out.
    """

    encoder: str
    texts: int = 0
    pairs: int = 0
    events: int = 0
    capped_pairs: int = 0
    validation_pairs: int = 0
    item_texts: int = 0
    queries_without_text: int = 0
    blank_item_texts: int = 0
    changed_queries: int = 0


@dataclass(frozen=True)
class CandidateMetrics:
    """What one candidate configuration reached on the validation window: its best step, recall@10 then.

    Attributes:
        steps: Steps that were best.
        recall: Of all pairs.
        unseen_recall: Of pairs with items without engagements before; None where there are none.
        worth: What the candidates are compared by: the recall, or less where unseen items are farther below what a shop
            has without a model. None in records of before.
    """

    steps: int
    recall: float
    unseen_recall: float | None = None
    worth: float | None = None


@dataclass(frozen=True)
class TrainMetrics:
    """Of train.

    Attributes:
        model_id: Identity of the trained model.
        model_uri: Where it lies.
        vocabulary_hash: Of the vocabulary it was trained with; see `ItemMetrics`.
        parameters: Part of the tower -> number of weights, and their `total`.
        steps: Steps taken.
        pairs_per_second: Median over the reports, over all ranks.
        waiting_for_data: Mean share of the time, 0 to 1.
        processes: Ranks.
        precision: What the tower was computed in.
        skipped_steps: Steps without an update, because the gradient was not finite.
        preset: The configuration that was trained.
        choice: What was chosen and why, in words.
        candidates: Configuration -> what it reached on the validation window; empty where nothing was validated.
        validated_model_uri: The chosen configuration trained on what came before that window; empty where it was not.
    """

    model_id: str
    model_uri: str
    vocabulary_hash: str
    parameters: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    pairs_per_second: int = 0
    waiting_for_data: float = 0.0
    processes: int = 1
    precision: str = "float32"
    skipped_steps: int = 0
    preset: str = "paper"
    choice: str = ""
    candidates: dict[str, CandidateMetrics] = field(default_factory=dict)
    validated_model_uri: str = ""


@dataclass(frozen=True)
class Verdict:
    """The model beside a rival, or a fallback, on one slice of one task's validation pairs.

    Attributes:
        task: The task.
        part: The slice, all or unseen.
        system: The rival that decides, or the fallback.
        value: The model's figure.
        other: That of the system.
        low: Lower end of the interval of the model's figure minus the other; None = too few queries for one.
        high: Upper end.
    """

    task: str
    part: str
    system: str
    value: float
    other: float
    low: float | None
    high: float | None

    @property
    def is_below(self) -> bool:
        """Whether the model is below the other by more than the interval."""
        return self.high is not None and self.high < 0

    @property
    def is_above(self) -> bool:
        """Whether the model is above the other by more than the interval."""
        return self.low is not None and self.low > 0


@dataclass(frozen=True)
class ValidateMetrics:
    """Of validate.

    Attributes:
        model_id: The trained model that the verdicts are about.
        metric: What was compared, such as recall@10.
        verdicts: Against the rival that decides, for each task and slice; empty where nothing was measured.
        fallbacks: Against what may be published in the model's place; empty where item texts lie in another space.
        note: Why there is no verdict, if there is none.
        distractors: How many items competed.
    """

    model_id: str
    metric: str
    verdicts: tuple[Verdict, ...] = ()
    fallbacks: tuple[Verdict, ...] = ()
    note: str = ""
    distractors: int = 0


@dataclass(frozen=True)
class Health:
    """What the vectors of a catalog look like, by a sample of its items; see itemsage_model/evaluation/health.py.

    Attributes:
        sampled: How many items.
        spread: How far they lie from their mean, 0 to 1; 0 = all are equal.
        dimensions: How many directions they use there, 1 to 256.
        near_duplicates: Share of them that lie on an item of other features, 0 to 1.
        neighbour_overlap: Share of each item's ten nearest that were among its ten nearest in the version before, mean;
            None where nothing is published.
        drift: 1 - cosine of the vectors of items whose features are as before, mean; None where another model, or
            nothing, is published.
        canaries: Canary -> whether all that it must find was found.
    """

    sampled: int
    spread: float
    dimensions: float
    near_duplicates: float
    neighbour_overlap: float | None = None
    drift: float | None = None
    canaries: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class ShortLoss:
    """What a short form of the vectors loses, over all tasks' validation pairs.

    Attributes:
        recall: Its recall@k among a sample of the catalog.
        full: That of the 256 floats.
        low: Lower end of the 95 % interval of `full - recall`; None = too few queries for one.
    """

    recall: float
    full: float
    low: float | None

    @property
    def share(self) -> float:
        """The loss as a share of the recall of the 256 floats."""
        return 1 - self.recall / self.full if self.full else 0.0


@dataclass(frozen=True)
class ShortMetrics:
    """The short forms that were published beside the embeddings.

    Attributes:
        forms: As in score.short_vectors.
        rotation: File in the model's folder: what the shorter forms are prefixes after; empty = there are none.
        rotated_by: Which of the rotations it is; see retrieval/short_vectors.py.
        losses: Form -> what it loses; empty where there is no validation pair.
    """

    forms: tuple[str, ...]
    rotation: str = ""
    rotated_by: str = ""
    losses: dict[str, ShortLoss] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreMetrics:
    """Of score_catalog: the model whose embeddings were published, and of which items.

    Attributes:
        model_id: The model.
        precision: What the embeddings were computed in.
        items_without_text: Published items no text of which holds a known token; None in records of before.
        items_without_images: Published items without a usable image; None in records of before.
        fallback: What was published in the place of the model's vectors: frozen_unseen or frozen_all; empty = nothing.
        floor: Which slices are below a rival on the validation window, by how much, and what was done, in words.
        published_id: The model_id of the published rows: the model's, with what took its place.
        spaces: Query kind -> embedding space of the queries that the embeddings answer.
        health: What the vectors look like; None in records of before.
        scoring: Hash of model, precision, fallback and code: rows of equal features that share it are equal.
        scored: Items that were scored; the others' rows are those of before. None in records of before.
        trained_as_of: The logical date of the model, ISO; empty in records of before.
        short: The short forms of the vectors; None where there are none.
        features_checksum: Which files of item_features were scored, or stand for what is published, as
            `storage.files_checksum` names them; empty in records of before.
    """

    model_id: str
    precision: str
    items_without_text: int | None = None
    items_without_images: int | None = None
    fallback: str = ""
    floor: tuple[str, ...] = ()
    published_id: str = ""
    spaces: dict[str, str] = field(default_factory=dict)
    health: Health | None = None
    scoring: str = ""
    scored: int | None = None
    trained_as_of: str = ""
    short: ShortMetrics | None = None
    features_checksum: str = ""


@dataclass(frozen=True)
class IndexMetrics:
    """Of export_index.

    Attributes:
        version: Version of item_embeddings that the index holds.
        model_id: Of its rows.
        build: The folder of its manifest.
        how: Built anew, or brought there by the change feed, and why, in words.
        items: Items that can be found.
        shards: Shards that were built of them.
        adds: Items beside these, by the change feed.
        tombstones: Items that the shards hold and nobody finds there any more.
        recall: What was asked -> recall@10 against exact search, 0 to 1.
    """

    version: int
    model_id: str
    build: str
    how: str
    items: int = 0
    shards: int = 1
    adds: int = 0
    tombstones: int = 0
    recall: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GraphMetrics:
    """Of build_item_graph.

    Attributes:
        join_by: What a group is; see graph.join_by.
        read_events: Rows of the log.
        used_events: Events before the validation window, of which the graph is made.
        later_events: Events of the validation and held-out windows, and negative ones, of which it is not.
        groups: Groups of two items or more.
        edges: Items in them, after the caps.
        capped_edges: Items that a cap took out of a group, and groups that are left with one item.
        pairs: Pairs to train on.
        items_without_neighbours: Items in no group with another: their vector is that of their features.
        node_length: Numbers of an item's features.
    """

    join_by: str
    read_events: int
    used_events: int
    later_events: int
    groups: int
    edges: int
    capped_edges: int
    pairs: int
    items_without_neighbours: int
    node_length: int


@dataclass(frozen=True)
class GraphVectorMetrics:
    """Of embed_graph.

    Attributes:
        model_id: The graph tower.
        kept_layers: Rows of graph_layers that stayed as they were.
        kept_rows: Rows of item_graph_images that did.
        made_by: Hash of model and code: rows of equal sources are equal while it stays.
    """

    model_id: str
    kept_layers: int = 0
    kept_rows: int = 0
    made_by: str = ""


@dataclass(frozen=True)
class EvaluationMetrics:
    """Of evaluate.

    Attributes:
        distractors: How many items competed with the held-out ones.
        notes: What to know before a figure is believed: tasks without a held-out pair, few pairs, few candidates.
        k: Ranks that the recall of the summary counts.
    """

    distractors: int
    notes: tuple[str, ...] = ()
    k: int = 10
