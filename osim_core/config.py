"""Configs are frozen dataclasses; recipes/configs.py holds the functions that return complete ones.

Every run writes its resolved config to `runs/<recipe>/<name>-<time>/config.json`; `from_dict` reads it back
and refuses a key it does not know, so a typo or a stale file is an error and never a silent default.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Qwen3- or Llama-family decoder. `from_hf` names a Hugging Face folder (or GGUF file) to start from."""

    family: Literal["qwen3", "llama"]
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int  # rows of the embedding; may exceed the tokenizer's vocabulary, never fall short of it
    max_position_embeddings: int
    rope_theta: float
    rope_scaling: dict[str, float | str] | None = None  # as in a Hugging Face config: linear, llama3 or yarn
    norm_eps: float = 1e-6
    qk_norm: bool = False
    tied_embeddings: bool = False
    init_std: float = 0.02
    from_hf: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where documents come from and how they become rows."""

    sources: dict[str, float] = field(default_factory=dict)  # source -> epochs of it in one pass; {} means each once
    paths: tuple[str, ...] = ()  # the user's own parquet or JSONL files, beside or instead of packaged sources
    corpus: str = ""  # a folder that recipes/corpus.py built, with its tokenizer, instead of sources and paths
    roles: dict[str, str] = field(default_factory=dict)  # data_source (or "prefix*") of paths -> corpus/roles.py name
    chat_format: Literal["template", "chatml"] = "template"  # the tokenizer's own, or plain ChatML regardless
    tokenizer: str = "trained"  # "trained" (BPE trained on the data), a tokenizer.json or its folder, or a .model
    tokenizer_vocab_size: int = 4096  # of a trained one
    sequence_length: int = 1024  # tokens in a packed row
    document_length: int | None = None  # longer documents are overlong; None: longer than a row
    # whose words train the model; held-out loss is always that of the simulated person, so runs compare
    loss_on: Literal["simulated", "everyone"] = "simulated"
    overlong: Literal["split", "truncate", "drop"] = "split"  # split cuts at turn borders
    validation_share: float = 0.05  # of participants (or plays, debates): held-out by speaker, not by row
    shard_documents: int = 50_000
    on_damaged_shard: Literal["stop", "quarantine"] = "stop"
    prefetch: int = 2  # global batches read ahead; never changes what is read
    cache: str = "data"  # tokenizers, shards and packing plans live here, keyed by content


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """How the model is spread over ranks; data parallel is what remains of the world size."""

    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1  # model chunks per pipeline rank; above 1 the interleaved schedule runs
    context: int = 1
    sequence_parallel: bool = False
    distributed_optimizer: bool = True
    overlap: bool = False  # overlap gradient reduction and parameter gathering with compute
    recompute: Literal["none", "selective", "full"] = "none"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters on every linear layer of the decoder, with all else frozen; rank 0: none, all weights learn."""

    rank: int = 0
    alpha: float = 64.0  # the adapter's output is scaled by alpha / rank


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW in fp32 (master weights and moments) whatever the model's precision."""

    learning_rate: float
    min_learning_rate: float = 0.0
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup_steps: int = 0
    decay_steps: int = 0  # wsd: length of the final linear decay
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop: batch, length, precision, evaluation, guards."""

    steps: int
    global_batch_rows: int  # packed rows per optimizer step over all data-parallel ranks
    precision: Literal["fp32", "bf16", "fp8"] = "bf16"
    evaluate_every: int = 50
    evaluate_rows: int = 16  # of the validation split, always the same ones
    final_evaluate_rows: int = 1024  # after the last step
    progress_every: int = 1  # lines of progress where the output is not a terminal; metrics.jsonl gets every step
    seed: int = 1234
    on_non_finite: Literal["stop", "skip"] = "stop"
    device_peak_tflops: float | None = None  # for MFU; None measures a matmul on this device at start


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    save_every: int = 50
    keep: int = 3
    asynchronous: bool = True


@dataclass(frozen=True, kw_only=True)
class MidtrainConfig:
    """Everything recipes/midtrain.py needs."""

    name: str
    model: ModelConfig
    data: DataConfig
    layout: LayoutConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """Who writes the social contexts that sources lack, and what that may cost."""

    writer: Literal["rules", "endpoint", "vllm"] = "rules"  # rules: only what the record states
    model: str = ""  # of endpoint and vllm
    base_url: str = ""  # of endpoint, such as http://host:8000/v1
    concurrency: int = 16  # requests in flight of each process
    prompt_price: float = 0.0  # per million tokens, for the report
    completion_price: float = 0.0
    max_missing_share: float = 0.05  # of contexts that a model was to write; unstated ones of `rules` do not count


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """What conversations must be to stay; corpus/filters says what each word means."""

    languages: tuple[str, ...] = ()  # ISO 639-1; () keeps all
    min_trained_words: int = 1
    min_words: int = 5
    max_words: int = 100_000
    max_characters: int = 1_000_000  # what has no spaces has few words
    drop_balance: tuple[str, ...] = ("monologue", "silent")
    drop_machine: tuple[str, ...] = ()  # kinds of machine-written text; () only labels


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    threshold: float = 0.8  # Jaccard index of word 5-grams
    policy: Literal["drop", "flag"] = "drop"  # flag keeps duplicates; a cluster never lies in two splits either way
    priorities: tuple[str, ...] = ()  # sources whose row survives, first choice first; the others follow as read


@dataclass(frozen=True, kw_only=True)
class DecontaminateConfig:
    policy: Literal["drop", "mask", "flag"] = "drop"
    benchmarks: bool = True  # the items of SOUL-Index that ship with packages
    against: tuple[str, ...] = ()  # JSONL files of further items: id, text or messages, benchmark


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Rows of the first epoch, planned ahead; a midtraining run with the same settings starts from this plan."""

    sequence_length: int = 1024
    document_length: int | None = None
    overlong: Literal["split", "truncate", "drop"] = "split"
    epochs: dict[str, float] = field(default_factory=dict)  # source -> epochs of it in one pass; as data.sources
    seed: int = 1234


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Everything recipes/corpus.py needs."""

    name: str
    packaged: tuple[str, ...] = ()  # packaged sources
    sources: dict[str, str] = field(default_factory=dict)  # registered source -> its file or folder
    rows: tuple[str, ...] = ()  # your own files or folders: messages + data_source
    roles: dict[str, str] = field(default_factory=dict)  # data_source (or "prefix*") of rows -> corpus/roles.py name
    max_bad_share: float = 0.01  # of a source's rows that may be unusable; more stops the build
    context: ContextConfig = field(default_factory=ContextConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    validation_share: float = 0.05  # of participants (or plays, debates)
    tokenizer: str = "trained"  # "trained" (BPE), a tokenizer.json or its folder, or a .model
    tokenizer_vocab_size: int = 4096  # of a trained one
    chat_format: Literal["template", "chatml"] = "template"
    pack: PackConfig = field(default_factory=PackConfig)
    chunk_bytes: int = 32 << 20  # of JSON in a part
    cache: str = "data"  # stages, tokens and contexts by content, plans


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Who samples replies, how many, and how far they may run ahead of the learner."""

    engine: Literal["vllm", "transformers"] = "vllm"
    prompts: int = 64  # samples played in a step
    replies: int = 8  # of each: its group
    context: int = 16_384  # most tokens of an episode, prompt and replies together
    temperature: float = 1.0
    staleness: int = 0  # steps that rollouts may be made ahead with older weights; 0: each step waits for its own
    max_missing: float = 0.3  # share of a step's episodes that may have no reward; above it the run stops
    # mean |log p(trainer) - log p(sampler)|; above it the run stops, if all samples are on-policy (no staleness or
    # feedback), since it is then numerics alone
    max_mismatch: float = 0.1
    restarts: int = 3  # of an engine that died
    gpu_memory: float = 0.5  # share of a GPU that vLLM may take while it is awake
    cache_gib: int = 1  # of keys and values, on a CPU


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """A judge model. backend "none": the tasks score by rule; "planted": rewards rubric words and length, for tests of
    the detectors."""

    backend: Literal["none", "inprocess", "vllm", "http", "planted"] = "none"
    model: str = ""  # a Hugging Face folder or a packaged model; the name to ask for over HTTP
    url: str = ""  # http: base of an OpenAI-compatible API
    key_variable: str = "OPENAI_API_KEY"  # http: environment variable with the key, empty or unset: none
    concurrency: int = 64
    deadline: float = 120.0  # seconds for all judgements of a step
    min_mass: float = 0.2  # least probability of the labels together, or a verdict is missing


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What a reward is made of."""

    judge: JudgeConfig = field(default_factory=JudgeConfig)
    held_out_judge: JudgeConfig = field(default_factory=JudgeConfig)  # of another family; watches, never trains
    similarity: float = 0.0  # weight, beside the task's score of 1, of likeness in meaning to the real reply (MiniLM)
    turing: float = 0.0  # likewise, of the judge not telling the reply from the real one
    detectors: Literal["off", "audit", "train"] = "audit"  # train: a flag multiplies the reward by `penalty`
    penalty: float = 0.0
    without: tuple[str, ...] = ()  # detectors that do not suit the tasks


@dataclass(frozen=True, kw_only=True)
class RLConfig:
    """Everything recipes/rl.py needs."""

    name: str
    # the weights to begin with: a run or checkpoint of ours, a Hugging Face folder, or a packaged model. Not `start`:
    # torchrun takes --start for an option of its own
    base: str
    tasks: tuple[str, ...]  # of osim_core/soul/tasks.py, with a share of the prompts where it is not 1: "tomi:2"
    algorithm: str  # of osim_core/update/algorithms.py
    clip_low: float | None = None  # of the algorithm's surrogate, where it should differ
    clip_high: float | None = None
    dual_clip: float | None = None
    sampler_cap: float | None = 2.0  # truncated importance correction of the sampler's probabilities; None: none
    updates: int = 1  # optimizer updates per step, each on its share of the groups
    kl: float = 0.0  # coefficient of the KL term to the starting weights
    feedback: bool = False  # critique, second reply, re-attached to the plain prompt (Ditto, arXiv 2605.20506)
    lora: LoraConfig = field(default_factory=LoraConfig)
    sequence_length: int  # tokens in a packed row
    chat_format: Literal["template", "chatml"] = "template"
    rollout: RolloutConfig
    reward: RewardConfig = field(default_factory=RewardConfig)
    layout: LayoutConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    cache: str = "data"


def to_dict(config: Any) -> dict[str, Any]:
    """A plain, JSON-ready dict of a config dataclass."""
    return dataclasses.asdict(config)


def from_dict[Config](cls: type[Config], values: dict[str, Any], where: str = "config") -> Config:
    """Rebuild a config from `to_dict`'s output (or a JSON file's).

    Raises ValueError naming the first unknown or missing key, with the path to it.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}; known keys: {', '.join(sorted(known))}")
    for name, f in known.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ValueError(f"{where}: missing key {name!r}")
    built = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()}
    return cls(**built)


def _convert(kind: Any, value: Any, where: str) -> Any:
    """Coerce what JSON cannot express (tuples, nested configs) and check the rest against its annotation."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object, got {value!r}")
        return from_dict(kind, value, where)
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise ValueError(f"{where}: {value!r} is not one of {typing.get_args(kind)}")
        return value
    if origin is types.UnionType:
        options = [a for a in typing.get_args(kind) if a is not type(None)]
        if len(options) == 1:
            return None if value is None else _convert(options[0], value, where)
        if type(value) not in (*options, int):  # int: JSON may write 2.0 as 2
            raise ValueError(f"{where}: expected {' or '.join(a.__name__ for a in options)}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        return tuple(_convert(typing.get_args(kind)[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object, got {value!r}")
        return {k: _convert(typing.get_args(kind)[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (int, float, str, bool) and type(value) is not kind:
        raise ValueError(f"{where}: expected {kind.__name__}, got {value!r}")
    return value
