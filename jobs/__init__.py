"""spark-submit entry points: each turns tables into tables and imports no other job."""
