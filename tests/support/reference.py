"""The truth for the model: transformers, one document at a time, unpacked."""

import torch

from osim_core.batch import PackedBatch
from osim_core.config import ModelConfig


def hugging_face_model(model: ModelConfig, config_class: type, model_class: type, seed: int = 5) -> torch.nn.Module:
    """transformers' model with the weights every test starts from (RandomWeights of `seed`)."""
    from osim_core.parallel.device import install

    install()
    from osim_core.checkpoint.hf import RandomWeights, tensor_shapes
    from osim_core.model.hf_config import model_config_to_hf

    built = model_class(config_class(**model_config_to_hf(model, "float32"))).float()
    weights = RandomWeights(model, seed)
    missing, unexpected = built.load_state_dict({name: weights(name) for name in tensor_shapes(model)}, strict=False)
    assert not unexpected and all(name == "lm_head.weight" and model.tied_embeddings for name in missing)
    return built


def hugging_face_loss_and_gradients(
    model: ModelConfig, rows: list[PackedBatch], config_class: type, model_class: type
) -> tuple[float, dict[str, torch.Tensor]]:
    """Weighted mean cross-entropy of all documents and its gradients, by transformers."""
    built = hugging_face_model(model, config_class, model_class)
    total = sum(row.weights["ce"].sum() for row in rows)
    loss = torch.zeros(())
    for row in rows:
        for start, stop in zip(row.cu_seqlens[:-1].tolist(), row.cu_seqlens[1:].tolist(), strict=True):
            if start == stop:
                continue
            logits = built(row.tokens_T[None, start:stop]).logits[0]
            losses = torch.nn.functional.cross_entropy(logits, row.labels_T[start:stop], reduction="none")
            loss = loss + (losses * row.weights["ce"][start:stop]).sum() / total
    loss.backward()
    return loss.item(), {name: p.grad for name, p in built.named_parameters()}
