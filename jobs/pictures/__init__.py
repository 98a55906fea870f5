"""Pictures of items: each known by the hash of its bytes, and each distinct one decoded and encoded."""
