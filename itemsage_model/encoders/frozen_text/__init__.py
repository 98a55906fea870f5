"""The frozen text encoder: text of a query or an item -> 256-d vectors. It stands where the paper has SearchSage.

Three kinds behind one interface: latent semantic analysis fitted on the catalog's own text (offline, deterministic),
any local sentence-transformers folder, and both joined. Saved as JSON and safetensors, never as a pickle.

Differs from the paper: SearchSage is trained on engagement; this encoder never sees any.
"""
