"""Vector stores that the published table is pushed to: one small interface (`store`), one file a target."""
