"""How near a reply is in meaning to a reference: cosine of mean-pooled MiniLM sentence embeddings (Reimers and Gurevych
2019, https://arxiv.org/abs/1908.10084; model all-MiniLM-L6-v2, inside a package).

    encoder = SentenceEncoder()
    rewards = similarity_rewards(encoder, replies, references)      # [0, 1] or Missing

Limits: it reads 256 tokens, and it measures topic more than stance: "I did" and "I did not" are near. The detectors
read the same embeddings. Shape suffixes: N texts, T tokens, D embedding.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from osim_core.missing import Missing, Value
from osim_core.model.packaged import minilm_folder

MAX_TOKENS = 256  # what the model was trained with


class SentenceEncoder:
    """MiniLM on one device. Texts of similar length share a batch, and equal texts are encoded once."""

    def __init__(self, device: str = "cpu", batch_size: int = 128) -> None:
        folder = str(minilm_folder())
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
        self.device, self.batch_size = device, batch_size

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [N, D = 384], rows of length 1, in the order of `texts`; independent of what shares a batch."""
        distinct = sorted(set(texts), key=lambda text: (len(text), text))  # same batches in every process
        row = {text: at for at, text in enumerate(distinct)}
        parts = [np.zeros((0, self.model.config.hidden_size), np.float32)]
        for start in range(0, len(distinct), self.batch_size):
            batch = self.tokenizer(
                distinct[start : start + self.batch_size],
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            ).to(self.device)
            hidden_NTD = self.model(**batch).last_hidden_state
            mask_NT1 = batch["attention_mask"].unsqueeze(-1).to(hidden_NTD.dtype)
            mean_ND = (hidden_NTD * mask_NT1).sum(1) / mask_NT1.sum(1)  # never empty: [CLS] and [SEP] are always there
            parts.append(torch.nn.functional.normalize(mean_ND, dim=-1).cpu().numpy())
        return np.concatenate(parts)[[row[text] for text in texts]]


def similarity_rewards(encoder: SentenceEncoder, replies: Sequence[str], references: Sequence[str]) -> list[Value]:
    """max(0, cosine) of each reply and its reference, in [0, 1]: opposite directions are no worse than unrelated ones.

    An empty reply scores 0 (it was given, and it says nothing); an empty reference is Missing.
    """
    if len(replies) != len(references):
        raise ValueError(f"similarity: {len(replies)} replies for {len(references)} references")
    embedded_ND = encoder.embed([*replies, *references])
    cosine_N = (embedded_ND[: len(replies)] * embedded_ND[len(replies) :]).sum(-1).clip(0.0, 1.0)
    return [
        Missing("no reference") if not reference.strip() else float(cosine) if reply.strip() else 0.0
        for reply, reference, cosine in zip(replies, references, cosine_N, strict=True)
    ]
