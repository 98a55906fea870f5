"""The synthetic shop of make_demo_world: words, hidden vectors, engagements. numpy only, no Spark."""
