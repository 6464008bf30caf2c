"""OSim Core: a training stack for behavioural foundation models (language models that simulate people)."""
