"""The frozen text encoder: query text -> 256-d vectors. It stands where the paper has SearchSage.

Two kinds behind one interface: latent semantic analysis fitted on the catalog's own text (offline, deterministic), and
any local sentence-transformers folder. Saved as JSON and safetensors, never as a pickle.

Differs from the paper: SearchSage is trained on engagement; this encoder never sees any.
"""
